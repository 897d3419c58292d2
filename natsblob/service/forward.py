"""Uploads of which this worker publishes every chunk into the store itself, with headers of its own.

So it is for publishers that are not to write into the stream (ADR 0015). The chunks are staged like those
that come directly: any worker answers status, commit and abort, and takes the rest of an upload once the
client has named it there. What is known of an upload here spares the commit a second look at its chunks;
a worker that does not know it reads them back.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

import msgspec

from natsblob import wire
from natsblob.broker.connection import Connection
from natsblob.broker.jetstream import decode_ack
from natsblob.broker.message import MALFORMED, Message
from natsblob.chunking import Seen
from natsblob.errors import (
    BadRequestError,
    BlobError,
    NoRespondersError,
    NotAllowedError,
    UnavailableError,
    UploadExpiredError,
)
from natsblob.logs import get_logger
from natsblob.service.forwarded import REPEAT_AFTER, Chunk, Flight, Forwarded, busy
from natsblob.service.limits import ByteBudget
from natsblob.service.messages import Reply
from natsblob.service.replies import Replies

log = get_logger("natsblob")

MAX_KNOWN: Final = 1024
"""Uploads that a worker knows; with one more it forgets one that has been idle for longest."""
MAX_HELD: Final = 64 * 1024 * 1024
"""Bytes of chunks that may be on their way through one worker, shared by the uploads that have any."""
MAX_EARLY: Final = 16 * 1024 * 1024
"""Bytes of chunks that may wait in one worker for chunks before them."""
LOST_AFTER: Final = 10.0
"""Seconds after which nobody is expected to come back for a chunk that has no ack, or waits for others."""
IN_ORDER_WITHIN: Final = 2.0
"""Seconds that a chunk waits for those before it. They may go through another worker."""
_SWEEP_EVERY: Final = 1.0
_LANDS_WITHIN: Final = 2.0
"""Seconds that a commit waits for chunks that are on their way; an honest client has none then."""
_LAST_ANSWERS: Final = 5.0
"""Seconds that a stopping worker waits for the answers to chunks that it has published."""


async def admit_all(_: int) -> None:
    """There is always room."""


class _Named(msgspec.Struct):
    """What matters here of an object's metadata."""

    nuid: str = ""


class Forwarder:
    """The uploads that go through one worker.

    `chunk_subject` says where the chunks of a stage belong. They come here on `<beneath>.<stage>`. What comes
    on `metadata` tells which chunks any worker has named: no more are taken for those. `admit` raises if
    there is no room for so many bytes.
    """

    def __init__(
        self,
        front: Connection,
        storage: Connection,
        replies: Replies,
        *,
        chunk_subject: Callable[[str], str],
        beneath: str,
        metadata: str,
        window: int,
        admit: Callable[[int], Awaitable[None]] = admit_all,
    ) -> None:
        self._metadata = metadata
        self._front = front
        self._admit = admit
        self._storage = storage
        self._replies = replies
        self._chunk_subject = chunk_subject
        self._beneath = beneath
        self._window = window
        self._known: OrderedDict[str, Forwarded] = OrderedDict()
        self._active: set[Forwarded] = set()
        """Those with chunks on their way."""
        self._budget = ByteBudget(MAX_HELD)
        self._early = ByteBudget(MAX_EARLY)
        self._swept_at = 0.0
        self._idle = asyncio.Event()
        self._acks = ""
        self._stream = ""
        """As the last ack named it."""

    @asynccontextmanager
    async def taking(self) -> AsyncIterator[None]:
        """Take chunks while the context lasts; those that were taken are answered before it ends."""
        with self._storage.inbox(self._on_ack) as self._acks:
            try:
                async with AsyncExitStack() as stack:
                    with suppress(NotAllowedError):  # then other clients may stumble over what comes late
                        await stack.enter_async_context(self._front.subscribe(self._metadata, self._hear))
                    await stack.enter_async_context(self._front.subscribe(f"{self._beneath}.*", self._take))
                    yield
                await self._last_answers()
            finally:
                for stage in list(self._known):
                    self.forget(stage)

    def begin(self, stage: str, *, is_whole: bool, chunk_size: int) -> tuple[str, int]:
        """Where an upload's chunks go, and how many may be unanswered.

        `is_whole` says that no chunk of it can have been published yet.
        """
        upload = self._known.get(stage)
        if upload is None:
            if len(self._known) >= MAX_KNOWN:
                self.forget(self._most_idle())
            share = MAX_HELD // chunk_size // (len(self._active) + 1)
            window = max(1, min(self._window, share))
            upload = Forwarded(stage, is_whole=is_whole, chunk_size=chunk_size, window=window)
            self._known[stage] = upload
        return f"{self._beneath}.{stage}", upload.window

    @asynccontextmanager
    async def held_back(self, stage: str) -> AsyncIterator[None]:
        """Take no chunks of an upload while it is committed: they would lie in the blob for other clients.

        Those that are on their way are waited for, unless they are lost.
        """
        upload = self._known.get(stage)
        if upload is None:
            yield
            return
        upload.commits += 1
        try:
            await self._landed(upload)
            yield
        finally:
            upload.commits -= 1

    async def _landed(self, upload: Forwarded) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LANDS_WITHIN):
                while upload.flying:
                    self._idle.clear()
                    await self._idle.wait()

    async def seen(self, stage: str, chunks: int) -> Seen | None:
        """What went through here of an upload, if that was all of its `chunks` chunks."""
        upload = self._known.get(stage)
        return await upload.seen(chunks) if upload else None

    def forget(self, stage: str) -> None:
        """Take no further chunks of an upload. What is stored of it stays."""
        upload = self._known.pop(stage, None)
        if upload is None:
            return
        if upload.pump is not None:
            upload.pump.cancel()
        if upload.timer is not None:
            upload.timer.cancel()
        for index in list(upload.flying):
            self._land(upload, index)
        for index in list(upload.early):
            self._let_go(upload, index)

    def _most_idle(self) -> str:
        """Of those that never had a chunk the oldest, else the one that had none for longest."""
        unused = (stage for stage, upload in self._known.items() if not upload.is_used)
        return next(unused, next(iter(self._known)))

    def _hear(self, message: Message) -> None:
        if self._known:
            with suppress(*wire.NOT_DECODED):
                self.forget(msgspec.json.decode(message.data, type=_Named).nuid)

    def _take(self, message: Message) -> None:
        if not self._replies.allows(message.reply):
            return
        try:
            self._accept(message)
        except BlobError as error:
            self._replies.refuse(message.reply, error)

    def _accept(self, message: Message) -> None:
        """Let a chunk go on, in its turn, or answer it; an error says why neither can be done."""
        upload = self._known.get(message.subject.rpartition(".")[2])
        if upload is None:
            raise UploadExpiredError("this worker does not know the upload; open it again by its name")
        chunk = self._chunk(message)
        upload.check(chunk)
        upload.is_used = True
        self._known.move_to_end(upload.stage)
        flight = upload.flying.get(chunk.index)
        if seq := upload.place(chunk.index):
            ack = {"stream": self._stream, "seq": seq, "duplicate": True}
            self._replies.answer_now(chunk.reply, Reply(msgspec.json.encode(ack)))
        elif flight is not None and not flight.is_lost(chunk.since, REPEAT_AFTER):
            flight.reply = chunk.reply
        elif upload.commits:
            raise busy()
        elif upload.is_early(chunk.index):
            self._wait(upload, chunk)
        else:
            self._let_fly(upload, chunk)
            self._let_followers_fly(upload)

    def _chunk(self, message: Message) -> Chunk:
        index, data, headers = wire.chunk_index(message.headers), message.data, message.headers
        if index is None or MALFORMED in headers or not data:
            raise BadRequestError("a chunk without an index, empty, or with a malformed header")
        crc = wire.crc32(data)
        if headers.get(wire.SUM) not in (None, wire.sum_header(crc)):
            raise BadRequestError(f"chunk {index} is not what its {wire.SUM} says")
        return Chunk(index, data, crc, message.reply, asyncio.get_running_loop().time())

    def _wait(self, upload: Forwarded, chunk: Chunk) -> None:
        """Keep a chunk until those before it have come."""
        before = upload.early.get(chunk.index)
        if before is not None:
            chunk = replace(before, reply=chunk.reply, since=chunk.since)
        elif not self._early.hold(len(chunk.data)):
            self._sweep(chunk.since)
            raise busy()
        upload.early[chunk.index] = chunk
        if upload.timer is None:
            loop = asyncio.get_running_loop()
            upload.timer = loop.call_later(IN_ORDER_WITHIN, self._stop_waiting, upload, upload.taken)

    def _stop_waiting(self, upload: Forwarded, taken: int) -> None:
        """Let the chunks of an upload go on as they come, if its next one has not come since."""
        upload.timer = None
        if not upload.early:
            return
        if upload.taken > taken:
            upload.timer = asyncio.get_running_loop().call_later(
                IN_ORDER_WITHIN, self._stop_waiting, upload, upload.taken
            )
            return
        upload.loosen()
        for index in sorted(upload.early):
            if chunk := self._let_go(upload, index):
                self._try_to_fly(upload, chunk)

    def _let_followers_fly(self, upload: Forwarded) -> None:
        while chunk := self._let_go(upload, upload.taken):
            self._try_to_fly(upload, chunk)

    def _try_to_fly(self, upload: Forwarded, chunk: Chunk) -> None:
        try:
            if upload.commits:
                raise busy()
            upload.check(chunk)
            self._let_fly(upload, chunk)
        except BlobError as error:
            self._replies.refuse(chunk.reply, error)

    def _let_go(self, upload: Forwarded, index: int) -> Chunk | None:
        """A chunk that waited no longer does."""
        chunk = upload.early.pop(index, None)
        if chunk is not None:
            self._early.release(len(chunk.data))
        return chunk

    def _let_fly(self, upload: Forwarded, chunk: Chunk) -> None:
        """Have a chunk published; `BusyError` if too many are on their way."""
        self._land(upload, chunk.index)
        self._make_room(upload, chunk)
        is_next = upload.is_next(chunk.index)
        if is_next:
            upload.take_next(chunk)
        upload.flying[chunk.index] = Flight(chunk.crc, chunk.reply, len(chunk.data), chunk.since)
        upload.queue.append((chunk, is_next))
        if upload.pump is None:
            self._start_pump(upload)

    def _start_pump(self, upload: Forwarded) -> None:
        upload.pump = asyncio.create_task(self._publish_all(upload))
        upload.pump.add_done_callback(lambda done: self._pumped(upload, done))

    def _make_room(self, upload: Forwarded, chunk: Chunk) -> None:
        size = len(chunk.data)
        share = max(upload.chunk_size, MAX_HELD // len(self._active | {upload}))
        is_within = len(upload.flying) < upload.window and upload.held + size <= share
        if not is_within or not self._budget.hold(size):
            self._sweep(chunk.since)
            raise busy()
        upload.held += size
        self._active.add(upload)

    def _land(self, upload: Forwarded, index: int) -> Flight | None:
        """A chunk is not on its way any more."""
        flight = upload.flying.pop(index, None)
        if flight is not None:
            self._budget.release(flight.size)
            upload.held -= flight.size
        if not upload.flying:
            self._active.discard(upload)
            self._idle.set()
        return flight

    def _sweep(self, now: float) -> None:
        """Let go of what nobody comes back for, so that others have room."""
        if now - self._swept_at < _SWEEP_EVERY:
            return
        self._swept_at = now
        for upload in self._known.values():
            for index in [i for i, flight in upload.flying.items() if flight.is_lost(now, LOST_AFTER)]:
                self._land(upload, index)
            for index in [i for i, chunk in upload.early.items() if now - chunk.since > LOST_AFTER]:
                self._let_go(upload, index)

    async def _publish_all(self, upload: Forwarded) -> None:
        """Publish what waits, in order, and hash it meanwhile."""
        loop = asyncio.get_running_loop()
        subject = self._chunk_subject(upload.stage)
        while upload.queue:
            chunk, is_next = upload.queue.popleft()
            flight = upload.flying.get(chunk.index)
            message_id = f"{upload.stage}.{chunk.index}"
            headers = {
                wire.CHUNK: str(chunk.index),
                wire.SUM: wire.sum_header(chunk.crc),
                wire.MESSAGE_ID: message_id,
            }
            try:
                await self._admit(len(chunk.data))
                await self._storage.publish(
                    subject, chunk.data, reply=f"{self._acks}.{message_id}", headers=headers
                )
            except BlobError as error:
                self._failed(upload, chunk.index, error)
            if is_next:
                await upload.hasher.update(chunk.data)
            if flight is not None:
                flight.since, flight.is_sent, flight.is_passed = loop.time(), True, True
                self._answer(upload, chunk.index)

    def _pumped(self, upload: Forwarded, task: asyncio.Task[None]) -> None:
        upload.pump = None
        if not task.cancelled() and (defect := task.exception()) is not None:
            log.error("relay.failed", exc_info=defect)
            self.forget(upload.stage)
        elif upload.queue and self._known.get(upload.stage) is upload:
            self._start_pump(upload)

    def _on_ack(self, message: Message) -> None:
        stage, _, number = message.subject.removeprefix(f"{self._acks}.").partition(".")
        upload = self._known.get(stage)
        if upload is None or not number.isdecimal():
            return
        index = int(number)
        try:
            ack = decode_ack(message)
        except NoRespondersError:
            self._failed(upload, index, UnavailableError("the storage is not available for now"))
        except BlobError as error:
            self._failed(upload, index, error)
        else:
            self._stream = ack.stream
            upload.stored(index, ack)
            if (flight := upload.flying.get(index)) is not None:
                flight.ack = message.data
                self._answer(upload, index)

    def _answer(self, upload: Forwarded, index: int) -> None:
        """Pass on the ack of a chunk, once its bytes are not needed here any more."""
        flight = upload.flying.get(index)
        if flight is not None and flight.ack and flight.is_passed:
            self._land(upload, index)
            self._replies.answer_now(flight.reply, Reply(flight.ack))

    def _failed(self, upload: Forwarded, index: int, error: BlobError) -> None:
        flight = self._land(upload, index)
        if flight is not None:
            self._replies.refuse(flight.reply, error)

    async def _last_answers(self) -> None:
        try:
            async with asyncio.timeout(_LAST_ANSWERS):
                while self._active:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            log.warning("relay.unanswered", uploads=len(self._active))
