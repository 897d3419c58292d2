"""What `natsblob serve` runs: the embedded server, if asked for, and one worker or several processes."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
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


async def serve(settings: Settings, *, ready: Ready) -> None:
    """Run what the settings say until SIGTERM or SIGINT; requests in flight end before it returns.

    Raises `SetupError` and the like where it cannot start, and `UnavailableError` where the server is
    lost for good.
    """
    with stop_signals() as stop:
        async with AsyncExitStack() as stack:
            if settings.embedded:
                server = EmbeddedServer(settings.store_dir, port=settings.port)
                await stack.enter_async_context(server)
                settings = settings.on_embedded(server.url)
                await stack.enter_async_context(_ending_with(server, stop))
            if settings.workers == 1:
                await run_worker(settings, stop, ready=ready)
            else:
                await _supervise(settings, stop, ready=ready)


@contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set, instead of ending the process."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


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
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "natsblob.supervisor", stdin=PIPE, stdout=PIPE, start_new_session=True
        )
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


async def _start(process: Process, settings: Settings, line: asyncio.Future[str]) -> None:
    if process.stdin is None or process.stdout is None:
        raise SetupError("a worker process without pipes")
    process.stdin.write(encode(settings) + b"\n")
    try:
        async with asyncio.timeout(START_TIMEOUT):
            first = await process.stdout.readline()
    except TimeoutError:
        first = b""
    if not line.done():
        if not first:
            raise SetupError("a worker process could not start; its log above says why")
        line.set_result(first.decode().rstrip())


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
    """Let the process drain, and end it where it does not."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _child() -> None:
    """A worker process: settings come as one line on standard input, whose end means stop."""
    reader = asyncio.StreamReader(limit=2**20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    settings = decode(await reader.readline())
    configure_logging(settings.log_level, settings.log_format)
    keep_memory()
    with stop_signals() as stop:
        parent = asyncio.ensure_future(reader.read())
        parent.add_done_callback(lambda _: stop.set())
        try:
            await run_worker(settings, stop, ready=lambda line: print(line, flush=True))  # noqa: T201
        except BlobError as error:
            log.error("worker.failed", error=error.name, reason=error.message)  # noqa: TRY400
            sys.exit(1)
        finally:
            parent.cancel()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_child())
