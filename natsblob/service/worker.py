"""A worker: takes requests in a queue group, bounds them, answers every one, and drains at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from itertools import count
from time import perf_counter_ns
from typing import Final

from natsblob import wire
from natsblob.broker.connection import Connection
from natsblob.broker.message import MALFORMED, MAX_HEADERS, Message
from natsblob.broker.retry import delay
from natsblob.broker.translate import translated
from natsblob.errors import BadRequestError, BlobError, BusyError, DeadlineError, UnavailableError
from natsblob.logs import get_logger
from natsblob.service.discovery import Endpoint
from natsblob.service.limits import RETRY_AFTER_MS, Limits
from natsblob.service.messages import Handler, Reply, Request, client_of
from natsblob.service.replies import Replies
from natsblob.telemetry import Telemetry

log = get_logger("natsblob")

STORAGE_GRACE: Final = 2.0
"""Seconds for which requests wait while there is no connection to the storage."""
_SLOWLY: Final = 5
"""Times that a worker waits longer than others before it tries to take requests again."""
DRAIN_TIMEOUT: Final = 30.0
"""Seconds that requests in flight have to end once the worker has stopped taking new ones."""
_BUSY: Final = Reply(
    *wire.encode_error(BusyError("this worker is at its limit; ask again", retry_after_ms=RETRY_AFTER_MS))
)
"""Made once: under overload it is all that most requests get, and must not cost what serving does."""


class Worker:
    """Serves handlers on one connection."""

    def __init__(
        self,
        connection: Connection,
        replies: Replies,
        limits: Limits,
        telemetry: Telemetry,
        *,
        handlers: dict[str, Handler],
        prefix: str,
        queue: str,
        request_timeout: float,
    ) -> None:
        self._connection = connection
        self._replies = replies
        self._limits = limits
        self._telemetry = telemetry
        self._request_timeout = request_timeout
        self._tasks: set[asyncio.Task[None]] = set()
        self.broken = asyncio.Event()
        """Set if a defect keeps this worker from taking requests again: then it is to end."""
        self._handlers = handlers
        self.endpoints = {
            subject: Endpoint(subject.removeprefix(f"{prefix}.").replace(".", "_"), subject, queue)
            for subject in handlers
        }

    @asynccontextmanager
    async def serving(self, *also: tuple[str, str], storage: Connection | None = None) -> AsyncIterator[None]:
        """Take requests while the context lasts, then finish those that were taken.

        `also` are further subjects for an endpoint, outside the queue group: pairs of the subject and
        of the endpoint's own. While `storage` is away no requests are taken: other workers have theirs.
        """
        try:
            async with AsyncExitStack() as subscriptions:
                await subscriptions.enter_async_context(self._taking_requests(also))
                if storage is None:
                    yield
                    return
                waiting = asyncio.create_task(self._while_there(storage, also, subscriptions))
                waiting.add_done_callback(self._no_longer_waiting)
                try:
                    yield
                finally:
                    waiting.cancel()
                    await asyncio.wait({waiting})
        finally:
            await self._drain()

    @asynccontextmanager
    async def _taking_requests(self, also: Sequence[tuple[str, str]]) -> AsyncIterator[None]:
        async with AsyncExitStack() as subscriptions:
            for subject, endpoint in self.endpoints.items():
                await subscriptions.enter_async_context(
                    self._connection.subscribe(subject, self._taking(subject), endpoint.queue_group)
                )
            for subject, served_by in also:
                await subscriptions.enter_async_context(
                    self._connection.subscribe(subject, self._taking(served_by))
                )
            yield

    async def _while_there(
        self, storage: Connection, also: Sequence[tuple[str, str]], subscriptions: AsyncExitStack
    ) -> None:
        """Leave the queue group for as long as the storage is away, unless it is back soon (ADR 0016)."""
        while True:
            await storage.interruption.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(STORAGE_GRACE):
                    await storage.usable.wait()
                    continue
            log.error("storage.lost", error=storage.trouble, advice="requests go to other workers meanwhile")
            with suppress(BlobError), translated():
                await subscriptions.aclose()
            await storage.usable.wait()
            await self._take_again(also, subscriptions)
            log.info("storage.back", url=storage.url)

    def _no_longer_waiting(self, waiting: asyncio.Task[None]) -> None:
        if not waiting.cancelled() and (error := waiting.exception()) is not None:
            log.error("worker.defect", exc_info=error)
            self.broken.set()

    async def _take_again(self, also: Sequence[tuple[str, str]], subscriptions: AsyncExitStack) -> None:
        for number in count():
            try:
                await subscriptions.enter_async_context(self._taking_requests(also))
            except BlobError as error:
                log.warning("worker.deaf", error=error.message)
                await asyncio.sleep(delay(number) * _SLOWLY)
            else:
                return

    def _taking(self, subject: str) -> Callable[[Message], None]:
        return partial(self._take, self.endpoints[subject], self._handlers[subject])

    def _take(self, endpoint: Endpoint, handler: Handler, message: Message) -> None:
        """Begin to serve a request, or refuse it at once."""
        if not self._replies.allows(message.reply):
            return
        size = len(message.data)
        client = client_of(message.reply)
        if not self._limits.admit(size, client):
            endpoint.served(0, BusyError.name)
            self._replies.answer_now(message.reply, _BUSY)
            return
        task = asyncio.create_task(self._serve(endpoint, handler, message))
        self._tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            self._limits.leave(size, client)

        task.add_done_callback(ended)

    async def _serve(self, endpoint: Endpoint, handler: Handler, message: Message) -> None:
        started = perf_counter_ns()
        failure = ""
        try:
            await self._answer(endpoint, handler, message)
        except BlobError as error:
            failure = error.name
            self._replies.refuse(message.reply, error)
        except asyncio.CancelledError:
            self._replies.refuse(message.reply, UnavailableError("the worker is stopping; ask again"))
            raise
        finally:
            endpoint.served(perf_counter_ns() - started, failure)

    async def _answer(self, endpoint: Endpoint, handler: Handler, message: Message) -> None:
        malformed = MALFORMED in message.headers
        # Headers that are not printable reach no log: whoever reads the trace may tell of them.
        with self._telemetry.request(endpoint.name, {} if malformed else message.headers) as noted:
            if malformed:
                raise BadRequestError(f"a header is malformed, or they are over {MAX_HEADERS} bytes")
            try:
                async with asyncio.timeout(self._request_timeout) as deadline:
                    request = Request(message.data, message.headers, message.reply, noted, deadline)
                    answer = await handler(request)
                    if isinstance(answer, Reply):
                        await self._replies.send(message.reply, answer)
                    elif answer is not None:
                        async with aclosing(answer) as replies:
                            async for reply in replies:
                                await self._replies.send(message.reply, reply)
            except TimeoutError:
                raise DeadlineError("the worker could not finish in time; a repeat is safe") from None

    async def _drain(self) -> None:
        """Wait for the requests in flight, within bounds; those that remain are told to ask again."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_TIMEOUT)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
