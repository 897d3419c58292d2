"""Uploads whose chunks this worker takes and stores itself, for stores that cannot stage them.

To a client it looks the same: it publishes to a chunk subject and is answered for each chunk. An upload
lives in one worker here; if that is lost, the client begins again.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self

import msgspec

from natsblob import wire
from natsblob.broker.connection import Connection
from natsblob.broker.jetstream import Ack
from natsblob.broker.message import MALFORMED, Message
from natsblob.errors import (
    BadRequestError,
    BlobError,
    BusyError,
    ConflictError,
    DigestMismatchError,
    InternalError,
    UploadExpiredError,
)
from natsblob.hashing import ConcurrentHasher
from natsblob.logs import get_logger
from natsblob.service.limits import RETRY_AFTER_MS, ByteBudget
from natsblob.service.messages import Reply
from natsblob.service.replies import Replies
from natsblob.service.uploads import new_upload, ranges, smallest, stage_of
from natsblob.store.base import Writer
from natsblob.wire import CommitRequest, Info, Opened, UploadStatus

log = get_logger("natsblob")

MAX_UPLOADS: Final = 64
"""Relayed uploads open at a time in one worker; one more takes the place of an idle one, or is `busy`."""
IDLE: Final = 5.0
"""Seconds without a chunk after which an upload may be dropped to make room for another."""
MAX_HELD: Final = 64 * 1024 * 1024
"""Bytes of chunks that may wait to be stored in one worker."""
REMEMBERED: Final = 1024
"""Commits whose outcome is kept, so that a repeat is answered alike."""


class Relay:
    """One upload: chunks come in any order within the window, and go to the store in theirs."""

    def __init__(self, replies: Replies, budget: ByteBudget, *, chunk_size: int, window: int) -> None:
        self._replies = replies
        self._budget = budget
        self.chunk_size = chunk_size
        self._window = window
        self._waiting: dict[int, tuple[bytes, str]] = {}
        self._sums = array("I")
        self._fault: BlobError | None = None
        self._stored = 0
        self._size = 0
        self._request: CommitRequest | None = None
        self._changed = asyncio.Event()
        self.heard_at = asyncio.get_running_loop().time()
        """When the last chunk came."""

    @property
    def indexes(self) -> list[int]:
        """The chunks that have been answered."""
        return list(range(self._stored))

    def take(self, message: Message) -> None:
        """A chunk, in whatever order and however often it is published."""
        if not self._replies.allows(message.reply):
            return
        self.heard_at = asyncio.get_running_loop().time()
        index = wire.chunk_index(message.headers)
        if index is None or index >= self._stored + self._window or not self._is_chunk(message):
            text = "a chunk outside the window, or of the wrong size, or not what its headers say"
            self._replies.refuse(message.reply, BadRequestError(text))
        elif self._contradicts(index, message.data):
            self._fault = BadRequestError(f"two different contents were published for chunk {index}")
            self._replies.refuse(message.reply, self._fault)
            self._changed.set()
        elif index < self._stored:
            self._acknowledge(index, message.reply)
        elif index in self._waiting:
            self._waiting[index] = (self._waiting[index][0], message.reply)
        elif self._budget.hold(len(message.data)):
            self._waiting[index] = (message.data, message.reply)
            self._changed.set()
        else:
            self._replies.refuse(
                message.reply, BusyError("too many chunks wait to be stored", retry_after_ms=RETRY_AFTER_MS)
            )

    def _is_chunk(self, message: Message) -> bool:
        if MALFORMED in message.headers or not 0 < len(message.data) <= self.chunk_size:
            return False
        return message.headers.get(wire.SUM) in (None, wire.chunk_sum(message.data))

    def _contradicts(self, index: int, data: bytes) -> bool:
        if index < self._stored:
            return self._sums[index] != wire.crc32(data)
        return index in self._waiting and self._waiting[index][0] != data

    def finish(self, request: CommitRequest) -> None:
        """Every chunk has been answered: check what the client says of them, and let the store end."""
        self._request = request
        self._changed.set()

    async def chunks(self, idle: float) -> AsyncIterator[bytes]:
        """The chunks in order, until the commit; what does not fit it is raised here, into the store."""
        hasher = ConcurrentHasher()
        while True:
            if self._fault is not None:
                raise self._fault
            if self._stored in self._waiting:
                data, _ = self._waiting[self._stored]
                if self._size != self._stored * self.chunk_size:
                    raise BadRequestError("a chunk that is not the last one is short")
                self._size += len(data)
                await hasher.update(data)
                yield data
                _, reply = self._waiting.pop(self._stored)
                self._budget.release(len(data))
                self._sums.append(wire.crc32(data))
                self._acknowledge(self._stored, reply)
                self._stored += 1
            elif self._request is not None:
                await self._check(self._request, hasher)
                return
            else:
                await self._next(idle)

    async def _next(self, idle: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(idle):
                await self._changed.wait()
        except TimeoutError:
            raise UploadExpiredError("no chunk came for too long; begin again") from None

    async def _check(self, request: CommitRequest, hasher: ConcurrentHasher) -> None:
        wrong_count = (self._size, self._stored) != (request.size, request.chunks)
        if wrong_count or (request.digest is not None and await hasher.digest() != request.digest):
            raise DigestMismatchError("the chunks are not what was declared; nothing is stored")

    def _acknowledge(self, index: int, reply: str) -> None:
        self._replies.answer_now(reply, Reply(msgspec.json.encode(Ack(seq=index + 1))))

    def close(self, failure: BlobError | None) -> None:
        """Let go of what is not stored; its publishers hear of the failure, if there was one."""
        for data, reply in self._waiting.values():
            self._budget.release(len(data))
            if failure is not None:
                self._replies.refuse(reply, failure)
        self._waiting.clear()


class RelayUploads:
    """The relayed uploads of one worker, as a context that ends them all."""

    def __init__(
        self,
        store: Writer,
        connection: Connection,
        replies: Replies,
        *,
        chunk_subjects: str,
        commit_subject: str,
        chunk_size: Callable[[], int],
        window: int,
        expiry: timedelta,
    ) -> None:
        self._store = store
        self._connection = connection
        self._replies = replies
        self._chunk_subjects = chunk_subjects
        self._commit_subject = commit_subject
        self._chunk_size = chunk_size
        self._window = window
        self._expiry = expiry
        self._budget = ByteBudget(MAX_HELD)
        self._open: dict[str, tuple[Relay, asyncio.Task[Info]]] = {}
        self._done: OrderedDict[str, Info | BlobError] = OrderedDict()

    async def takes_direct(self) -> bool:
        return False

    async def open(
        self,
        upload: str | None = None,
        *,
        relayed: bool = False,  # noqa: ARG002 - there is no other way
        most: int | None = None,
    ) -> Opened:
        if upload is not None:
            relay, _ = self._find(stage_of(upload))
            return self._opened(upload, relay.chunk_size)
        await self._make_room()
        upload = new_upload()
        stage = stage_of(upload)
        subject = f"{self._chunk_subjects}.{stage}"
        chunk_size = smallest(self._chunk_size(), most)
        relay = Relay(self._replies, self._budget, chunk_size=chunk_size, window=self._window)
        listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._store_chunks(relay, subject, listening))
        self._open[stage] = (relay, task)
        task.add_done_callback(lambda done: self._ended(stage, done))
        waiting: set[asyncio.Future[None] | asyncio.Future[Info]] = {listening, task}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        return self._opened(upload, chunk_size)

    async def _make_room(self) -> None:
        """Drop the upload that has been idle for longest, as long as too many are open."""
        while len(self._open) >= MAX_UPLOADS:
            relay, task = min(self._open.values(), key=lambda entry: entry[0].heard_at)
            if asyncio.get_running_loop().time() - relay.heard_at < IDLE:
                raise BusyError("too many uploads are open at this worker", retry_after_ms=RETRY_AFTER_MS)
            await _cancelled(task)
            await asyncio.sleep(0)  # it leaves the open ones in a callback

    def _opened(self, upload: str, chunk_size: int) -> Opened:
        return Opened(
            upload=upload,
            chunk_subject=f"{self._chunk_subjects}.{stage_of(upload)}",
            commit_subject=self._commit_subject,
            chunk_size=chunk_size,
            window=self._window,
            expires=datetime.now(UTC) + self._expiry,
            relayed=True,
        )

    async def status(self, upload: str) -> UploadStatus:
        relay, _ = self._find(stage_of(upload))
        return UploadStatus(upload, ranges(relay.indexes))

    async def commit(self, request: CommitRequest) -> Info:
        stage = stage_of(request.upload)
        if stage not in self._done:
            relay, task = self._find(stage)
            relay.finish(request)
            await asyncio.wait({task})
        return self._outcome(stage)

    async def abort(self, upload: str) -> None:
        stage = stage_of(upload)
        if stage in self._open:
            await _cancelled(self._open[stage][1])
        if isinstance(self._done.get(stage), Info):
            raise ConflictError("the upload is committed already; delete the blob instead")

    async def _store_chunks(self, relay: Relay, subject: str, listening: asyncio.Future[None]) -> Info:
        failure: BlobError | None = None
        try:
            async with self._connection.subscribe(subject, relay.take):
                listening.set_result(None)
                return await self._store.put(relay.chunks(self._expiry.total_seconds()))
        except BlobError as error:
            failure = error
            raise
        finally:
            relay.close(failure)

    def _find(self, stage: str) -> tuple[Relay, asyncio.Task[Info]]:
        try:
            return self._open[stage]
        except KeyError:
            raise UploadExpiredError("this worker does not know the upload; begin again") from None

    def _outcome(self, stage: str) -> Info:
        outcome = self._done.get(stage, UploadExpiredError("the upload was dropped; begin again"))
        if isinstance(outcome, BlobError):
            raise outcome
        return outcome

    def _ended(self, stage: str, task: asyncio.Task[Info]) -> None:
        del self._open[stage]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, BlobError):
            log.error("relay.failed", exc_info=error)
            error = InternalError("the service failed to store the upload; its log has more")
        self._done[stage] = error or task.result()
        while len(self._done) > REMEMBERED:
            self._done.popitem(last=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, task in list(self._open.values()):
            await _cancelled(task)


async def _cancelled(task: asyncio.Task[Info]) -> None:
    task.cancel()
    await asyncio.wait({task})
