"""The command that runs workers."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Annotated, Final, Literal, TypeAlias

from cyclopts import Group, Parameter

from natsblob.cli.options import UNSET, Common

_EMBEDDED: Final = Group("A server of its own", sort_key=1)
_STORING: Final = Group("What blobs lie in", sort_key=2)
_WORKING: Final = Group("Workers", sort_key=3)
_TELLING: Final = Group("What they tell", sort_key=4)
_STORAGE: Final = Group("Connection to the bucket", sort_key=21)

# The loader reads and checks all values, from whatever source they come: here they are text.
Text: TypeAlias = str | None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Serving:
    """Settings of workers that are flags as well."""

    embedded: Annotated[bool, Parameter(group=_EMBEDDED)] = False
    """Start a nats-server with JetStream on this machine, and use it."""
    store_dir: Annotated[Text, Parameter(group=_EMBEDDED, metavar="DIR")] = None
    """Where it keeps its data. [default: ~/.local/share/natsblob]"""
    port: Annotated[Text, Parameter(group=_EMBEDDED, metavar="PORT")] = None
    """Where it listens, on the loopback only; 0 for any free port. [default: 4222]"""

    replicas: Annotated[Text, Parameter(group=_STORING, metavar="N")] = None
    """Copies in a bucket that is created now: 1 to 5. [default: 1]"""
    storage: Annotated[Literal["file", "memory"] | None, Parameter(group=_STORING)] = None
    """Where a bucket that is created now lies. [default: file]"""
    disk: Annotated[Text, Parameter(group=_STORING, metavar="DIR")] = None
    """Keep blobs in this directory, which is a volume, and not in a bucket."""
    create_disk: Annotated[bool, Parameter(group=_STORING)] = False
    """Make a volume of that directory, if it is missing or empty: for the first start."""
    disk_volume: Annotated[Text, Parameter(group=_STORING, metavar="UUID")] = None
    """Refuse any other volume there; natsblob.json in the directory has the UUID."""
    chunk_size: Annotated[Text, Parameter(group=_STORING, metavar="SIZE")] = None
    """The most in one chunk. [default: 512KiB]"""
    window_bytes: Annotated[Text, Parameter(group=_STORING, metavar="SIZE")] = None
    """Bytes on their way at a time in one transfer. [default: 8MiB]"""
    max_blob: Annotated[Text, Parameter(group=_STORING, metavar="SIZE")] = None
    """The largest blob. [default: 1TiB]"""

    workers: Annotated[Text, Parameter(name=["--workers", "-w"], group=_WORKING, metavar="N")] = None
    """Worker processes. [default: 1]"""
    queue: Annotated[Text, Parameter(group=_WORKING, metavar="NAME")] = None
    """The queue group that shares the requests. [default: natsblob]"""
    max_requests: Annotated[Text, Parameter(group=_WORKING, metavar="N")] = None
    """Requests in flight in one worker; one more is told to come back. [default: 256]"""
    max_bytes: Annotated[Text, Parameter(group=_WORKING, metavar="SIZE")] = None
    """Bytes in flight in one worker. [default: 64MiB]"""
    request_timeout: Annotated[Text, Parameter(group=_WORKING, metavar="TIME")] = None
    """A worker's deadline for one request. [default: 30s]"""

    metrics: Annotated[Text, Parameter(group=_TELLING, metavar="HOST:PORT")] = None
    """Serve Prometheus metrics there."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"] | None, Parameter(group=_TELLING)] = (
        None
    )
    """Log this and what is worse, on stderr. [default: info]"""
    log_format: Annotated[Literal["auto", "json", "console"] | None, Parameter(group=_TELLING)] = None
    """How; auto is JSON if stderr is no terminal. [default: auto]"""

    storage_server: Annotated[Text, Parameter(group=_STORAGE, metavar="URL")] = None
    """Where the bucket is, if not on --server."""
    storage_creds: Annotated[Text, Parameter(group=_STORAGE, metavar="FILE")] = None
    """A credentials file for the bucket, if not --creds."""


_NOTHING: Final = Serving()


async def serve(*, serving: Serving = _NOTHING, common: Common = UNSET) -> None:
    """Run workers that answer requests.

    They run until Ctrl-C or SIGTERM, and then finish what they have begun; asked twice, they end at once.
    When they are ready, one line on standard output says where. Start as many as you like, on as many
    machines: they share the requests. With --embedded nothing else is needed to try it out.
    """
    from natsblob.app import on_volume
    from natsblob.logs import configure_logging
    from natsblob.supervisor import serve as run_until_stopped

    given = {name: value for name, value in asdict(serving).items() if value is not False}
    settings = common.load(**given).settings
    configure_logging(settings.log_level, settings.log_format)
    await run_until_stopped(await on_volume(settings), ready=_ready)


def _ready(line: str) -> None:
    if sys.stdout is None:  # closed: the log says it, too
        return
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
