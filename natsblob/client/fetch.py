"""Reading the bytes of a blob: in one reply if they fit, else as windows of frames."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing
from typing import Final

from natsblob import chunking, wire
from natsblob.broker.frames import read_frames
from natsblob.broker.message import Message
from natsblob.client.progress import Gauge
from natsblob.client.service import Service, about, broken_protocol, traced
from natsblob.digest import Digest
from natsblob.errors import (
    BlobCorruptError,
    BlobError,
    NoRespondersError,
    TooLargeError,
    UnavailableError,
    UnprovenError,
)
from natsblob.hashing import ConcurrentHasher
from natsblob.wire import GetRequest, Info

_DIGITS: Final = 16
AHEAD: Final = 2
"""Windows asked for at a time."""
WINDOW_BYTES: Final = 8 * 1024 * 1024
"""Bytes in a window, whatever more the service would send."""


async def stat(service: Service, digest: Digest, timeout: float | None) -> Info:
    """What is known of a blob; `BlobNotFoundError` if there is none."""
    reply = await service.call(service.subjects.stat, str(digest).encode(), timeout=timeout)
    return about(reply, digest)


async def in_one_reply(service: Service, request: GetRequest, timeout: float) -> bytes | None:
    """The bytes asked for, as the worker read and checked them, or `None` if they need several replies."""
    try:
        reply = await service.call(service.subjects.get, wire.encode(request), timeout=timeout)
    except TooLargeError:
        return None
    wanted = request.offset or 0
    size = reply.headers.get(wire.SIZE, "")
    if not size.isdecimal() or len(size) > _DIGITS or reply.headers.get(wire.OFFSET, "0") != str(wanted):
        raise broken_protocol()
    here = int(size) - wanted
    if len(reply.data) != (here if request.length is None else min(here, request.length)):
        raise broken_protocol()
    return reply.data


class Frames:
    """The chunks of one blob as frames from workers and replicas; a `FrameSource`.

    With `check` each chunk is compared with its CRC-32, in `sums` or as it was stored beside it: for
    ranges, which the digest of the whole says nothing about. `UnprovenError` if a chunk has none. With
    `verify` a worker does so before it sends them. `close` it when no more is read.
    """

    def __init__(
        self, service: Service, info: Info, *, check: bool, verify: bool, sums: Sequence[str] = ()
    ) -> None:
        self._service = service
        self._info = info
        self._check = check
        self._verify = verify
        self._sums = sums
        self._is_unproven = False
        self._awaited: dict[str, set[int]] = {}

    async def ask(self, first: int, count: int, reply: str, attempt: int) -> None:
        for earlier in [subject for subject, missing in self._awaited.items() if first in missing]:
            self._leave(earlier)
        if self._is_unproven:
            raise UnprovenError("nothing that is stored vouches for a part of this blob")
        verify = self._verify
        if attempt >= 2:
            await stat(self._service, self._info.digest, self._service.timeout)
            verify = True  # what a replica cannot send may come through a worker
        await self._enter(reply, range(first, first + count))
        request = GetRequest(
            self._info.digest,
            mode="stream",
            first=first,
            count=count,
            verify=verify,
            chunk_size=self._info.chunk_size,
        )
        await self._service.connection.publish(
            self._service.subjects.get, wire.encode(request), reply=reply, headers=traced(None)
        )

    async def _enter(self, reply: str, chunks: range) -> None:
        """Wait while too much is on its way to this client: frames come without flow control."""
        await self._service.windows.enter(reply)
        self._awaited[reply] = set(chunks)

    def _leave(self, reply: str) -> None:
        if self._awaited.pop(reply, None) is not None:
            self._service.windows.leave(reply)

    def place(self, frame: Message) -> int | None:
        index = wire.chunk_index(frame.headers)
        if index is None or len(frame.data) != chunking.length(index, self._info.size, self._info.chunk_size):
            return None
        if self._check:
            claimed = self._sums[index] if self._sums else frame.headers.get(wire.SUM)
            if claimed != wire.chunk_sum(frame.data):
                self._is_unproven = self._is_unproven or claimed is None
                return None
        self._service.windows.hear(frame.subject)
        missing = self._awaited.get(frame.subject, set())
        missing.discard(index)
        if not missing:
            self._leave(frame.subject)
        return index

    def end(self, frame: Message) -> BlobError | None:
        self._leave(frame.subject)
        error = wire.decode_error(frame.data, frame.headers)
        if error is not None or frame.status == "204":
            return error
        if frame.status == "503":
            return NoRespondersError(f"nobody answers on {self._service.subjects.get}")
        return UnavailableError(f"a replica has no more chunks to give ({frame.status})")

    def close(self) -> None:
        for reply in list(self._awaited):
            self._leave(reply)


class Fetch:
    """Reads one blob. `patience` is the seconds without a new chunk after which it gives up."""

    def __init__(self, service: Service, info: Info, *, window: int, patience: float) -> None:
        self.info = info
        self._service = service
        self._window = window
        self._patience = patience
        self._sums: list[str] = []
        """Of all chunks, once the whole was verified because nothing else vouched for them."""

    @classmethod
    async def of(cls, service: Service, digest: Digest, patience: float) -> Fetch:
        """The blob, as it can be read here; `BlobNotFoundError` if there is none."""
        info = await stat(service, digest, patience)
        if info.size and not info.chunk_size:
            raise broken_protocol()
        if info.chunks != (chunking.count(info.size, info.chunk_size) if info.size else 0):
            raise corrupt(digest)  # a read would end early, or never
        caps = await service.known_caps(timeout=patience)
        window = max(1, min(caps.window, WINDOW_BYTES // max(1, info.chunk_size)))
        return cls(service, info, window=window, patience=patience)

    async def chunks(
        self, first: int = 0, stop: int | None = None, *, check: bool = False, verify: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """Chunks `first` to `stop - 1` in order (`None`: to the end), `AHEAD` windows asked for ahead.

        With `check` each is proven by its sum; a blob without sums is read and verified whole first.
        """
        stop = self.info.chunks if stop is None else stop
        while first < stop:
            try:
                async with aclosing(self._chunks(range(first, stop), check=check, verify=verify)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                        first += 1
            except UnprovenError:
                await self._prove()

    async def _prove(self) -> None:
        """Read and verify the whole blob, and keep the sums of its chunks."""
        hasher = ConcurrentHasher()
        sums: list[str] = []
        everything = self._chunks(range(self.info.chunks), check=False, verify=False)
        async with aclosing(everything) as chunks:
            async for chunk in chunks:
                await hasher.update(chunk)
                sums.append(wire.chunk_sum(chunk))
        if await hasher.digest() != self.info.digest:
            raise corrupt(self.info.digest)
        self._sums = sums

    async def _chunks(self, wanted: range, *, check: bool, verify: bool) -> AsyncGenerator[bytes, None]:
        frames = Frames(self._service, self.info, check=check, verify=verify, sums=self._sums)
        chunks = read_frames(
            self._service.connection,
            frames,
            wanted,
            window=self._window,
            ahead=AHEAD,
            patience=self._patience,
        )
        with closing(frames):
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    async def whole(self, gauge: Gauge) -> bytes:
        """All bytes, verified; read once more through a worker that checks them if they are bad."""
        for verify in (False, True):
            # A BytesIO hands its buffer over without copying it, and grows without moving it.
            collected = io.BytesIO()
            hasher = ConcurrentHasher()
            async with aclosing(self.chunks(verify=verify)) as chunks:
                async for chunk in chunks:
                    collected.write(chunk)
                    await hasher.update(chunk)
                    gauge.at(collected.tell())
            if await hasher.digest() == self.info.digest:
                return collected.getvalue()
        raise corrupt(self.info.digest)

    async def range(self, offset: int, length: int | None, gauge: Gauge) -> bytes:
        """`length` bytes from `offset` (`None`: to the end), each chunk checked against its stored sum."""
        span = chunking.span(self.info.size, self.info.chunk_size, offset, length)
        collected = io.BytesIO()
        chunks = self.chunks(span.first, span.first + span.count, check=True)
        async with aclosing(chunks):
            skip = span.skip
            async for chunk in chunks:
                collected.write(memoryview(chunk)[skip : skip + span.length - collected.tell()])
                skip = 0
                gauge.at(collected.tell())
        return collected.getvalue()


def corrupt(digest: Digest) -> BlobCorruptError:
    return BlobCorruptError(f"the bytes read are not those of blob {digest}; ask its operator to scrub it")
