"""Putting a blob: in one request if it fits, else as chunks that are staged and then committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from contextlib import aclosing, suppress
from typing import Final

from msgspec import structs

from natsblob import wire
from natsblob.broker.cleanup import shielded
from natsblob.broker.message import Message
from natsblob.broker.publish import PublishWindow
from natsblob.broker.retry import delay, retrying
from natsblob.chunking import Block, chained, rechunk
from natsblob.client.progress import Gauge
from natsblob.client.service import Service, about, broken_protocol, decoded, has_field
from natsblob.client.sources import Source
from natsblob.client.way import Way
from natsblob.digest import Digest
from natsblob.errors import (
    BlobError,
    DeadlineError,
    DigestMismatchError,
    NoRespondersError,
    TooLargeError,
    UploadExpiredError,
)
from natsblob.hashing import ConcurrentHasher
from natsblob.wire import AbortRequest, Caps, CommitRequest, Info, Opened, OpenRequest

RESTARTS: Final = 5
"""Times that an upload is begun again because the service has lost it, if the source allows that."""
_MOST_UNANSWERED: Final = 64 * 1024 * 1024
"""Bytes that are held until they are answered, whatever more the service would take."""
_SLOWER: Final = 4
"""Attempts by which beginning again is slower than a repeated request: what lost it may need a moment."""
COMMIT_ATTEMPT: Final = 10.0
"""Seconds for one commit, and more for what a worker that did not watch has to read back."""
READ_BACK_RATE: Final = 64 * 1024 * 1024
"""Bytes per second that a worker is trusted to read back at least."""
ABORT_TIMEOUT: Final = 4.0
_LAST_ANSWERS: Final = 1.5


class Upload:
    """One put. `patience` is the seconds without progress after which it gives up."""

    def __init__(
        self,
        service: Service,
        caps: Caps,
        source: Source,
        gauge: Gauge,
        *,
        expected: Digest | None,
        patience: float,
    ) -> None:
        self._service = service
        self._caps = caps
        self._source = source
        self._gauge = gauge
        self._expected = expected
        self._patience = patience
        self._room = service.room
        """Bytes that fit one message, as of the beginning of an attempt."""

    async def run(self) -> Info:
        """Put the blob, from the beginning again if the service has lost the upload."""
        for number in range(RESTARTS if self._source.repeatable else 0):
            try:
                return await self._put()
            except UploadExpiredError:
                await asyncio.sleep(delay(number + _SLOWER))
            except TooLargeError:
                if self._service.room >= self._room:
                    raise
        return await self._put()

    async def _put(self) -> Info:
        self._room = self._service.room
        async with aclosing(self._source.blocks(self._caps.chunk_size)) as blocks:
            head: list[Block] = []
            room = min(self._caps.max_inline, self._room)
            async for block in blocks:
                head.append(block)
                room -= len(block)
                if room < 0:
                    info = await self._put_staged(chained(head, blocks))
                    break
            else:
                info = await self._put_inline(b"".join(head))
        self._gauge.complete(info.size)
        return info

    async def _put_inline(self, data: bytes) -> Info:
        digest = self._checked(Digest.of(data))
        reply = await self._service.call(
            self._service.subjects.put, data, headers={wire.DIGEST: str(digest)}, timeout=self._patience
        )
        return about(reply, digest)

    async def _put_staged(self, blocks: AsyncIterable[Block]) -> Info:
        await self._service.uploads.enter(self)
        try:
            return await self._put_in_turn(blocks)
        finally:
            self._service.uploads.leave(self)

    async def _put_in_turn(self, blocks: AsyncIterable[Block]) -> Info:
        opened = await self._open()
        if isinstance(opened, Info):
            return opened
        way = Way(self._service, self._caps, opened)
        window = PublishWindow(
            self._service.connection,
            opened.chunk_subject,
            message_id=way.place.message_id,
            window=max(1, min(opened.window, _MOST_UNANSWERED // opened.chunk_size)),
            patience=self._patience,
            elsewhere=way.elsewhere,
        )
        with window:
            try:
                request = await self._stage(window, way, blocks)
                return await self._commit(way.opened, request)
            except BaseException:
                await shielded(self._abort(window, way), ABORT_TIMEOUT)
                raise

    async def _open(self) -> Opened | Info:
        request = OpenRequest(
            self._expected,
            self._source.size,
            relayed=self._service.is_relayed,
            max_chunk=self._room,
        )
        subject = self._service.subjects.open
        reply = await self._service.call(subject, wire.encode(request), timeout=self._patience)
        if has_field(reply, "upload"):
            return decoded(reply, Opened)
        if self._expected is None:
            raise broken_protocol()
        return about(reply, self._expected)

    async def _stage(self, window: PublishWindow, way: Way, blocks: AsyncIterable[Block]) -> CommitRequest:
        """Stage all chunks. They are stored on return, and the request to commit them is answered."""
        hasher = ConcurrentHasher()
        chunk_size = way.opened.chunk_size
        size = 0
        async for chunk in rechunk(blocks, chunk_size):
            size += len(chunk)
            if size > self._caps.max_blob:
                raise TooLargeError(f"a blob has at most {self._caps.max_blob} bytes here")
            await hasher.update(chunk)
            await window.send(chunk)
            self._service.uploads.hear(self)
            self._gauge.at(window.answered * chunk_size)
        digest = self._checked(await hasher.digest())
        await window.finish()
        return CommitRequest(way.opened.upload, size, window.sent, digest, wire.marks_of(window.seqs))

    def _checked(self, digest: Digest) -> Digest:
        if self._expected is not None and digest != self._expected:
            raise DigestMismatchError
        return digest

    async def _commit(self, opened: Opened, request: CommitRequest) -> Info:
        """Make the staged chunks a blob: by the worker that watched them, or by any that reads them back."""
        subject = opened.commit_subject
        body = wire.encode(request)
        if len(body) > self._service.room:  # marks only spare the worker a look
            body = wire.encode(structs.replace(request, marks=None))
        allowed = COMMIT_ATTEMPT + request.size / READ_BACK_RATE

        async def attempt() -> Message:
            nonlocal subject
            try:
                return await self._service.once(subject, body, timeout=allowed)
            except (NoRespondersError, DeadlineError):
                subject = self._service.subjects.commit
                raise

        reply = await retrying(attempt, patience=self._patience + 2 * allowed)
        return decoded(reply, Info) if request.digest is None else about(reply, request.digest)

    async def _abort(self, window: PublishWindow, way: Way) -> None:
        """Have the staged chunks dropped; first those on their way arrive, or they would stay behind."""
        with suppress(BlobError, TimeoutError):
            async with asyncio.timeout(_LAST_ANSWERS):
                await window.finish()
        body = wire.encode(AbortRequest(way.opened.upload))
        with suppress(UploadExpiredError):
            await self._service.call(
                self._service.subjects.abort, body, timeout=ABORT_TIMEOUT - _LAST_ANSWERS
            )
