"""What is measured, as data: how long a run may take decides which profile to choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from natsblob.config.quantity import format_size

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

SERVICE: Final = "natsblob"
RELAYED: Final = "natsblob (relayed)"
PLAIN: Final = "natsblob, plain requests"
BARE_LOOP: Final = "bare loop"
BARE_SOCKET: Final = "bare socket"
BARE_SOCKET_VERIFIED: Final = "bare socket, SHA-256"
NATS_PY: Final = "nats-py"
ASYNC_NATS: Final = "async-nats"
NATS_GO: Final = "nats.go"
NATS_JS: Final = "@nats-io/obj"


@dataclass(frozen=True, slots=True)
class Deployment:
    """How the servers are set up."""

    sync: str = "always"
    """`sync_interval`: `always`, or how long an acknowledged write may wait for its fsync."""
    replicas: int = 1

    def __str__(self) -> str:
        return f"R{self.replicas}, sync_interval {self.sync}"


@dataclass(frozen=True, slots=True)
class Workload:
    """`count` blobs of `size` bytes are put and then got, `at_once` at a time."""

    size: int
    count: int = 1
    at_once: int = 1
    queries: int = 0
    """Requests for what is known of one blob: `has` of the service, object info of others; up to `count`."""
    batches: int = 0
    """Requests for 1,000 digests each, of those that can answer them; nothing else is measured then.

    Needs a `count` of 1,000 or more. Elsewhere it stays below: clients that leave a consumer behind for
    each get meet the server's limit there.
    """

    def __str__(self) -> str:
        what = f"{self.count} x {format_size(self.size)}, {self.at_once} at once"
        return f"{what}, asked for in batches" if self.batches else what


@dataclass(frozen=True, slots=True)
class Profile:
    about: str
    deployments: tuple[Deployment, ...]
    workloads: tuple[Workload, ...]
    rounds: int = 5
    largest: Mapping[str, int] = field(default_factory=dict)
    """The most bytes in a blob for peers that would take too long with more."""


PROFILES: Final[Mapping[str, Profile]] = {
    "quick": Profile(
        "about two minutes",
        (Deployment(),),
        (
            Workload(4 * KIB, count=60, queries=60),
            Workload(4 * KIB, count=400, at_once=32, queries=400),
            Workload(4 * KIB, count=1000, at_once=32, batches=20),
            Workload(1 * MIB, count=8),
            Workload(64 * MIB),
        ),
        largest={NATS_PY: 1 * MIB, NATS_JS: 1 * MIB, RELAYED: 0},
    ),
    "standard": Profile(
        "about ten minutes",
        (Deployment(), Deployment(sync="2m")),
        (
            Workload(4 * KIB, count=200, queries=200),
            Workload(4 * KIB, count=800, at_once=8, queries=800),
            Workload(4 * KIB, count=800, at_once=32, queries=800),
            Workload(4 * KIB, count=800, at_once=128, queries=800),
            Workload(4 * KIB, count=1000, at_once=32, batches=50),
            Workload(64 * KIB, count=100),
            Workload(1 * MIB, count=32),
            Workload(16 * MIB, count=4),
            Workload(256 * MIB),
        ),
        largest={NATS_PY: 16 * MIB, NATS_JS: 16 * MIB, RELAYED: 0},
    ),
    "large": Profile(
        "half an hour: 256 MiB and 1 GiB, also through nats-py, and relayed gets beside delegated ones",
        (Deployment(sync="2m"),),
        (Workload(256 * MIB), Workload(1 * GIB)),
        largest={NATS_PY: 256 * MIB, NATS_JS: 0, RELAYED: 1 * GIB},
    ),
    "cluster": Profile(
        "a quarter of an hour: three servers, R3",
        (Deployment(replicas=3),),
        (
            Workload(4 * KIB, count=60, queries=60),
            Workload(4 * KIB, count=400, at_once=32, queries=400),
            Workload(4 * KIB, count=800, at_once=128, queries=800),
            Workload(1 * MIB, count=16),
            Workload(64 * MIB),
            Workload(256 * MIB),
        ),
        largest={NATS_PY: 1 * MIB, NATS_JS: 1 * MIB, RELAYED: 0},
    ),
    "full": Profile(
        "hours: both fsync settings, one server and three",
        (
            Deployment(),
            Deployment(sync="2m"),
            Deployment(replicas=3),
            Deployment(sync="2m", replicas=3),
        ),
        (
            *(Workload(4 * KIB, count=800, at_once=at_once, queries=800) for at_once in (1, 8, 32, 128)),
            Workload(4 * KIB, count=1000, batches=50),
            Workload(4 * KIB, count=1000, at_once=32, batches=100),
            *(Workload(64 * KIB, count=512, at_once=at_once) for at_once in (1, 8, 32, 128)),
            *(Workload(1 * MIB, count=128, at_once=at_once) for at_once in (1, 8, 32, 128)),
            *(Workload(16 * MIB, count=32, at_once=at_once) for at_once in (1, 8, 32)),
            Workload(64 * MIB),
            Workload(256 * MIB),
            Workload(256 * MIB, count=8, at_once=8),
            Workload(1 * GIB),
        ),
        largest={NATS_PY: 256 * MIB, RELAYED: 0},
    ),
}
