"""Peers as processes that are given orders, one at a time."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench import profiles
from bench.peers.driver import Order
from natsblob.chunking import DEFAULT_CHUNK_SIZE

_HERE: Final = Path(__file__).parent
_ANSWER_LIMIT: Final = 64 * 1024 * 1024
"""Bytes in an answer: each operation's latency is in it."""
_INSTALL_TIMEOUT: Final = 180.0
STALLED: Final = 300.0
"""Seconds after which an order is taken to have failed, and its peer is ended."""

OWN_BUCKET: Final = "blobs"
PEERS_BUCKET: Final = "peers"
BARE_BUCKET: Final = "bare"


class PeerError(Exception):
    """A peer did not do what it was ordered to."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of peer: how it is started, and what it can be asked for."""

    name: str
    command: tuple[str, ...]
    bucket: str = PEERS_BUCKET
    verbs: frozenset[str] = frozenset({"put", "get", "info"})
    serial_only: bool = False
    largest: int = sys.maxsize
    """Bytes in the largest blob that it can put."""

    @property
    def uses_worker(self) -> bool:
        return self.bucket == OWN_BUCKET


def _python(name: str, module: str, *flags: str, **more: Any) -> Kind:
    return Kind(name, (sys.executable, "-m", f"bench.peers.{module}", "{url}", "{bucket}", *flags), **more)


_TRANSFERS: Final = frozenset({"put", "get"})
OURS: Final = (
    _python(
        profiles.SERVICE,
        "service",
        bucket=OWN_BUCKET,
        verbs=frozenset({"put", "get", "has", "has_batch", "clear"}),
    ),
    _python(
        profiles.PLAIN,
        "plain",
        bucket=OWN_BUCKET,
        verbs=frozenset({"put", "get", "has", "clear"}),
        largest=DEFAULT_CHUNK_SIZE,
    ),
    _python(profiles.RELAYED, "relayed", bucket=OWN_BUCKET, verbs=frozenset({"put", "get", "clear"})),
)
BARE: Final = (
    _python(profiles.BARE_LOOP, "bare_loop", bucket=BARE_BUCKET, verbs=_TRANSFERS),
    _python(profiles.BARE_SOCKET, "bare_socket", bucket=BARE_BUCKET, verbs=_TRANSFERS, serial_only=True),
    _python(
        profiles.BARE_SOCKET_VERIFIED,
        "bare_socket",
        "--verify",
        bucket=BARE_BUCKET,
        verbs=_TRANSFERS,
        serial_only=True,
    ),
)


def kinds(natsgo: Path | None, build_dir: Path) -> tuple[list[Kind], dict[str, str]]:
    """All peers that can run here, and why the others cannot. `natsgo` is a binary built before."""
    found = [*OURS, *BARE, _python(profiles.NATS_PY, "natspy")]
    missing: dict[str, str] = {}
    if importlib.util.find_spec("natsrpy"):
        found.append(_python(profiles.ASYNC_NATS, "async_nats"))
    else:
        missing[profiles.ASYNC_NATS] = "natsrpy is not installed: pip install 'natsblob[bench]'"
    for name, make in ((profiles.NATS_JS, _natsjs), (profiles.NATS_GO, lambda: _natsgo(natsgo, build_dir))):
        try:
            found.append(Kind(name, (*make(), "{url}", "{bucket}")))
        except PeerError as error:
            missing[name] = str(error)
    return found, missing


def _natsjs() -> tuple[str, ...]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        raise PeerError("there is no Node.js with npm")
    folder = _HERE / "peers" / "natsjs"
    if not (folder / "node_modules").is_dir():
        _run(npm, "install", "--no-audit", "--no-fund", "--no-package-lock", cwd=folder)
    return node, str(folder / "peer.mjs")


def _natsgo(binary: Path | None, build_dir: Path) -> tuple[str, ...]:
    if binary is not None:
        if not binary.is_file():
            raise PeerError(f"there is no {binary}")
        return (str(binary.absolute()),)
    go = shutil.which("go")
    if not go:
        raise PeerError("there is no Go toolchain; --natsgo PATH names a binary built elsewhere")
    source = build_dir / "natsgo"  # a copy: the build adds to go.mod and go.sum
    shutil.copytree(_HERE / "peers" / "natsgo", source, dirs_exist_ok=True)
    _run(go, "build", "-mod=mod", "-o", "peer", ".", cwd=source)
    return (str((source / "peer").absolute()),)


def _run(*command: str, cwd: Path) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        words = (getattr(error, "stderr", None) or str(error)).split()
        raise PeerError(f"{Path(command[0]).name} {command[1]} failed: {' '.join(words)[:200]}") from error


class PeerProcess:
    """One peer that runs, or ran: where it ended it is started anew for the next order."""

    def __init__(self, kind: Kind, url: str) -> None:
        self.kind = kind
        self._url = url
        self._process: Process | None = None

    async def process(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            places = {"{url}": self._url, "{bucket}": self.kind.bucket}
            self._process = await asyncio.create_subprocess_exec(
                *(places.get(word, word) for word in self.kind.command),
                stdin=PIPE,
                stdout=PIPE,
                limit=_ANSWER_LIMIT,
                cwd=_HERE.parent,
            )
        return self._process

    async def pid(self) -> int:
        return (await self.process()).pid

    async def order(self, order: Order) -> Mapping[str, Any]:
        """What the peer answers. `PeerError` where it says that it failed, ends, or stalls."""
        process = await self.process()
        if process.stdin is None or process.stdout is None:
            raise AssertionError("a peer without pipes")
        try:
            process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
            async with asyncio.timeout(STALLED):
                line = await process.stdout.readline()
        except TimeoutError as error:
            await self.end()
            raise PeerError(f"no answer within {STALLED:.0f} s") from error
        if not line:
            raise PeerError(f"ended with status {await process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    async def end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def running(found: list[Kind], url: str) -> AsyncIterator[list[PeerProcess]]:
    """All peers, each ended on leaving."""
    peers = [PeerProcess(kind, url) for kind in found]
    try:
        yield peers
    finally:
        await asyncio.gather(*(peer.end() for peer in peers))
