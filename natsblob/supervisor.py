"""What `natsblob serve` runs: the embedded server, if asked for, and one worker or several processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from natsblob.app import Ready, run_worker
from natsblob.broker.allocator import keep_memory
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.loop import loop_factory
from natsblob.config import Address, Settings, decode, encode
from natsblob.errors import BlobError, SetupError, UnavailableError
from natsblob.logs import configure_logging, get_logger
from natsblob.service.worker import DRAIN_TIMEOUT

log = get_logger("natsblob")

START_TIMEOUT: Final = 60.0
"""Seconds that a worker process has to get ready."""
STOP_GRACE: Final = DRAIN_TIMEOUT + 10.0
RESTART_DELAY: Final = 1.0
"""Seconds before a worker process that died is started anew."""
AGAIN: Final = 0.5
"""Seconds after which a second signal is meant: launchers hand on the one that the terminal sent, too."""
_STDOUT: Final = 1


async def serve(settings: Settings, *, ready: Ready) -> None:
    """Run what the settings say until SIGTERM, SIGINT or SIGHUP; requests in flight end before it returns.

    Raises `SetupError` and the like if it cannot start, and `UnavailableError` if the server is
    lost for good.
    """
    with stop_signals() as stop:
        async with AsyncExitStack() as stack:
            started = await stack.enter_async_context(_starting_unless(stop))
            if settings.embedded:
                server = EmbeddedServer(settings.store_dir, port=settings.port)
                await stack.enter_async_context(server)
                settings = settings.on_embedded(server.url)
                await stack.enter_async_context(_ending_with(server, stop))

            def announced(line: str) -> None:
                started()
                ready(line)

            if settings.workers == 1:
                await run_worker(settings, stop, ready=announced)
            else:
                started()  # worker processes heed `stop` at any time
                await _supervise(settings, stop, ready=ready)


@contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM, SIGINT and SIGHUP set, instead of ending the process.

    The same again, from somebody who does not want to wait, ends it at once.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    asked_at = 0.0

    def ask(number: int) -> None:
        nonlocal asked_at
        if not stop.is_set():
            asked_at = loop.time()
        elif loop.time() > asked_at + AGAIN:
            os._exit(128 + number)
        stop.set()

    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN  # as nohup has it
    ]
    for number in numbers:
        loop.add_signal_handler(number, ask, number)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _starting_unless(stop: asyncio.Event) -> AsyncIterator[Callable[[], None]]:
    """Give up what happens inside when `stop` is set, until the callable that is yielded was called."""
    asked = asyncio.ensure_future(stop.wait())
    scope = asyncio.timeout(None)
    starting = True

    def give_up(_: object) -> None:
        if starting and stop.is_set():
            scope.reschedule(asyncio.get_running_loop().time())

    def started() -> None:
        nonlocal starting
        starting = False

    asked.add_done_callback(give_up)
    try:
        async with scope:
            yield started
    except TimeoutError:
        if not scope.expired():
            raise
    finally:
        started()
        asked.cancel()


@asynccontextmanager
async def _ending_with(server: EmbeddedServer, stop: asyncio.Event) -> AsyncIterator[None]:
    """Set `stop` when the embedded server dies, and say on leaving that this was the reason."""
    died = asyncio.ensure_future(server.wait())
    died.add_done_callback(lambda _: stop.set())
    try:
        yield
        if died.done() and not died.cancelled():
            raise UnavailableError(
                "the embedded nats-server ended by itself; what was acknowledged is in its store. "
                f"{server.last_words()}"
            )
    finally:
        died.cancel()
        await asyncio.wait({died})


async def _supervise(settings: Settings, stop: asyncio.Event, *, ready: Ready) -> None:
    """Run `settings.workers` processes. One that dies is replaced; all drain when `stop` is set."""
    loop = asyncio.get_running_loop()
    lines: list[asyncio.Future[str]] = [loop.create_future() for _ in range(settings.workers)]
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_announce(lines, ready))
            for number, line in enumerate(lines):
                group.create_task(_keep_running(_settings_of(settings, number), stop, line))
    except BaseExceptionGroup as failures:
        if (errors := failures.subgroup(BlobError)) is not None:
            raise _first(errors) from failures
        raise


def _first(errors: BaseExceptionGroup[BlobError]) -> BlobError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _announce(lines: list[asyncio.Future[str]], ready: Ready) -> None:
    line = (await asyncio.gather(*lines))[0]
    ready(f"{line.rpartition('=')[0]}={len(lines)}")


def _settings_of(settings: Settings, number: int) -> Settings:
    """A worker's own settings: each serves its metrics on a port of its own, counting up."""
    address = settings.metrics
    if address is not None and address.port:
        address = Address(address.host, address.port + number)
    return msgspec.structs.replace(settings, workers=1, embedded=False, metrics=address)


async def _keep_running(settings: Settings, stop: asyncio.Event, line: asyncio.Future[str]) -> None:
    """Run one worker process after the other until `stop`; the first one's ready line goes to `line`."""
    try:
        await _restarting(settings, stop, line)
    finally:
        line.cancel()


async def _restarting(settings: Settings, stop: asyncio.Event, line: asyncio.Future[str]) -> None:
    while not stop.is_set():
        process = await _spawned(restarted=line.done())
        try:
            starting = asyncio.ensure_future(_start(process, settings, line))
            await _first_of(starting, stop)
            await _first_of(asyncio.ensure_future(process.wait()), stop)
        finally:
            await _stop(process)
        if not stop.is_set():
            log.error("worker.died", pid=process.pid, status=process.returncode)
            with suppress(TimeoutError):
                async with asyncio.timeout(RESTART_DELAY):
                    await stop.wait()


async def _spawned(*, restarted: bool) -> Process:
    """A worker process. If one ran before, the machine was able to: then it is tried until it is again."""
    command = [sys.executable, *_search_path(), "-m", "natsblob.supervisor"]
    while True:
        try:
            return await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, start_new_session=True
            )
        except OSError as error:
            if not restarted:
                raise SetupError(f"a worker process cannot be started: {error.strerror}") from error
            log.error("worker.not_started", reason=error.strerror)  # noqa: TRY400
            await asyncio.sleep(RESTART_DELAY)


def _search_path() -> list[str]:
    """Have Python take no modules from the current directory, unless natsblob itself lies there."""
    try:
        return [] if Path.cwd().samefile(Path(__file__).parents[1]) else ["-P"]
    except OSError:  # it has been removed
        return ["-P"]


async def _start(process: Process, settings: Settings, line: asyncio.Future[str]) -> None:
    if process.stdin is None or process.stdout is None:
        raise SetupError("a worker process without pipes")
    first = b""
    with suppress(TimeoutError, ConnectionError, ValueError):
        process.stdin.write(encode(settings) + b"\n")
        async with asyncio.timeout(START_TIMEOUT):
            await process.stdin.drain()
            first = await process.stdout.readline()
    if not line.done():
        if not first:
            raise SetupError("a worker process could not start; its log above says why")
        line.set_result(first.decode(errors="replace").rstrip())


async def _first_of(work: asyncio.Future[Any], stop: asyncio.Event) -> None:
    """Wait until `work` is done, or until `stop` is set and then cancel it; an error of `work` is raised."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
    finally:
        work.cancel()
        stopping.cancel()


async def _stop(process: Process) -> None:
    """Let the process drain, and end it if it does not."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _child() -> int:
    """A worker process: settings come as one line on standard input, whose end means stop. Its exit code."""
    reader = asyncio.StreamReader(limit=2**20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    line = await reader.readline()
    if not line.endswith(b"\n"):
        return 0  # the parent has gone before we were here
    settings = decode(line)
    configure_logging(settings.log_level, settings.log_format)
    keep_memory()
    with stop_signals() as stop:
        parent = asyncio.ensure_future(reader.read())
        parent.add_done_callback(lambda _: stop.set())
        try:
            async with _starting_unless(stop) as started:

                def ready(line: str) -> None:
                    started()
                    os.write(_STDOUT, f"{line}\n".encode())

                await run_worker(settings, stop, ready=ready)
        except BlobError as error:
            log.error("worker.failed", error=error.name, reason=error.message)  # noqa: TRY400
            return 1
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            log.error("worker.failed", reason=what)  # noqa: TRY400
            return 1
        finally:
            parent.cancel()
    return 0


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(_child()))
