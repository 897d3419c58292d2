"""The endpoints: each reads a request, asks the store, and says what the answer is (`docs/protocol.md`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from msgspec import structs

from natsblob import chunking, wire
from natsblob.digest import Digest
from natsblob.errors import (
    BadRangeError,
    BadRequestError,
    BlobCorruptError,
    BlobNotFoundError,
    DigestMismatchError,
    TooLargeError,
    UnprovenError,
)
from natsblob.hashing import digest_of_bytes
from natsblob.objectstore.turns import Asker, Places, on_behalf_of
from natsblob.service import fitting
from natsblob.service.limits import Limits
from natsblob.service.messages import Answer, Handler, Reply, Request
from natsblob.service.replies import Replies
from natsblob.service.uploads import Uploads
from natsblob.store.base import Delegating, Doubting, Store
from natsblob.wire import Caps, GetRequest, HasReply, Info, ListRequest, MissingReply

_WHOLE_FOR_A_PART: Final = 8 * 1024 * 1024
"""Bytes of a blob without sums that a worker reads for a range of it; the client has to read larger ones."""
BATCHES_AT_ONCE: Final = 4
"""Batches of `has` that are looked up at a time; more wait their turn, one client after the other."""
LISTS_AT_ONCE: Final = 2
"""Pages made at a time: for each, names may have to be read from the leader first. More wait their turn."""
_FOREIGN_ACCOUNT: Final = "_R_."
"""A reply subject of a service import; nobody but the service may publish to it."""


class Handlers:
    """The endpoints over one store."""

    def __init__(self, store: Store, uploads: Uploads, limits: Limits, caps: Caps, replies: Replies) -> None:
        self._store = store
        self._uploads = uploads
        self._limits = limits
        self._caps = caps
        self._replies = replies
        self._listing = Places(LISTS_AT_ONCE)
        self._looking_up = Places(BATCHES_AT_ONCE)

    def by_subject(self, subjects: wire.Subjects) -> dict[str, Handler]:
        """Which handler answers on which subject."""
        return {
            subjects.put: self.put,
            subjects.get: self.get,
            subjects.has: self.has,
            subjects.stat: self.stat,
            subjects.list: self.list,
            subjects.delete: self.delete,
            subjects.caps: self.caps,
            subjects.open: self.open,
            subjects.status: self.status,
            subjects.commit: self.commit,
            subjects.abort: self.abort,
        }

    @property
    def _max_inline(self) -> int:
        """Bytes of a blob in one reply: fewer than at the start if the server takes less by now."""
        return min(self._caps.max_inline, self._replies.room)

    async def put(self, request: Request) -> Answer:
        data = request.data
        request.noted.bytes_in = request.noted.size = len(data)
        if len(data) > self._caps.max_blob:
            raise TooLargeError("the blob is larger than this service takes", limit=self._caps.max_blob)
        declared = request.headers.get(wire.DIGEST)
        expected = Digest.parse(declared) if declared is not None else None
        digest = await digest_of_bytes(data)
        request.noted.digest = digest
        if expected is not None and digest != expected:
            raise DigestMismatchError
        return _json(await self._store.put(_once(data), expected=digest))

    async def get(self, request: Request) -> Answer:
        wanted = _get_request(request.data)
        request.noted.digest = wanted.digest
        if wanted.mode == "stream":
            return await self._stream(request, wanted)
        info = await self._store.stat(wanted.digest)
        request.noted.size = info.size
        offset = wanted.offset or 0
        span = chunking.span(info.size, info.chunk_size, offset, wanted.length)
        if span.length > self._max_inline:
            raise TooLargeError(
                'the answer does not fit one message; ask for windows with "mode": "stream"',
                size=info.size,
                limit=self._max_inline,
                mode="stream",
            )
        headers = {wire.DIGEST: wanted.digest.hex, wire.SIZE: str(info.size)}
        if wanted.offset is not None or wanted.length is not None:
            headers[wire.OFFSET] = str(offset)
        with self._limits.bytes(min(span.count * info.chunk_size, info.size)):
            data = await self._read(wanted.digest, info, span)
        request.noted.bytes_out = len(data)
        return Reply(data, headers)

    async def has(self, request: Request) -> Answer:
        if not request.data.lstrip().startswith(b"["):
            digest = request.noted.digest = wire.decode_digest(request.data)
            try:
                info = await self._store.stat(digest)
            except BlobNotFoundError:
                return _json(HasReply(digest, exists=False))
            return _json(HasReply(digest, exists=True, size=info.size))
        digests = wire.decode(request.data, list[Digest])
        if len(digests) > self._caps.max_batch:
            raise BadRequestError(f"at most {self._caps.max_batch} digests can be asked for at a time")
        if len(digests) > (most := fitting.batch(self._replies.room)):
            raise TooLargeError("the answer may not fit one message; ask for fewer digests", limit=most)
        async with self._looking_up.place(request.client):
            return _json(MissingReply(await self._store.missing(digests)))

    async def stat(self, request: Request) -> Answer:
        digest = request.noted.digest = wire.decode_digest(request.data)
        return _json(await self._store.stat(digest))

    async def list(self, request: Request) -> Answer:
        wanted = wire.decode(request.data or b"{}", ListRequest)
        async with self._listing.place(request.client):
            page = await self._store.list(after=wanted.after, limit=wanted.limit, prefix=wanted.prefix)
        return Reply(fitting.page(page, self._replies.room))

    async def delete(self, request: Request) -> Answer:
        digest = request.noted.digest = wire.decode_digest(request.data)
        return _json(await self._store.delete(digest))

    async def caps(self, request: Request) -> Answer:
        direct = not _is_foreign(request) and await self._uploads.takes_direct()
        now = structs.replace(
            self._caps,
            chunk_size=self._store.chunk_size,
            max_inline=self._max_inline,
            max_batch=min(self._caps.max_batch, fitting.batch(self._replies.room)),
            features=[*self._caps.features, *(["direct"] if direct else [])],
        )
        return _json(now)

    async def open(self, request: Request) -> Answer:
        wanted = wire.decode(request.data or b"{}", wire.OpenRequest)
        request.noted.digest, request.noted.size = wanted.digest, wanted.size
        if wanted.size is not None and wanted.size > self._caps.max_blob:
            raise TooLargeError("the blob is larger than this service takes", limit=self._caps.max_blob)
        if (
            wanted.upload is None
            and wanted.digest is not None
            and (info := await self._store.held(wanted.digest)) is not None
        ):
            return _json(info)
        relayed = wanted.relayed or _is_foreign(request)
        return _json(await self._uploads.open(wanted.upload, relayed=relayed, most=wanted.max_chunk))

    async def status(self, request: Request) -> Answer:
        wanted = wire.decode(request.data, wire.StatusRequest)
        with on_behalf_of(_asker(request)):
            status = await self._uploads.status(wanted.upload)
        return Reply(fitting.status(status, self._replies.room))

    async def commit(self, request: Request) -> Answer:
        wanted = wire.decode(request.data, wire.CommitRequest)
        request.noted.size = wanted.size
        if wanted.size > self._caps.max_blob:
            raise TooLargeError("the blob is larger than this service takes", limit=self._caps.max_blob)
        with on_behalf_of(_asker(request)):
            info = await self._uploads.commit(wanted)
        request.noted.digest = info.digest
        return _json(info)

    async def abort(self, request: Request) -> Answer:
        await self._uploads.abort(wire.decode(request.data, wire.AbortRequest).upload)
        return Reply()

    async def _read(self, digest: Digest, info: Info, span: chunking.Span) -> bytes:
        """The bytes of a range; those of a whole blob are verified, and read once more if they are bad."""
        for _ in range(2):
            try:
                chunks = self._store.chunks(digest, span.first, span.count, chunk_size=info.chunk_size)
                pieces = [chunk async for chunk in chunks]
            except UnprovenError:
                data = await self._read_of_whole(digest, info, span)
            else:
                data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                data = data[span.skip : span.skip + span.length]
            if len(data) == span.length and (
                span.length < info.size or await digest_of_bytes(data) == digest
            ):
                return data
        if isinstance(self._store, Doubting):
            await self._store.doubt(digest)
        raise BlobCorruptError("the stored bytes do not have their digest; none were delivered")

    async def _read_of_whole(self, digest: Digest, info: Info, span: chunking.Span) -> bytes:
        """A range of a blob without sums, which is read whole, since nothing else proves it."""
        if info.size > _WHOLE_FOR_A_PART:
            raise TooLargeError(
                'nothing vouches for a part of this blob; read it whole with "mode": "stream"',
                size=info.size,
                limit=_WHOLE_FOR_A_PART,
                mode="stream",
            )
        with self._limits.bytes(info.size):
            chunks = self._store.chunks(digest, verify=False)
            whole = b"".join([chunk async for chunk in chunks])
        if await digest_of_bytes(whole) != digest:
            return b""
        offset = span.first * info.chunk_size + span.skip
        return whole[offset : offset + span.length]

    async def _stream(self, request: Request, wanted: GetRequest) -> Answer:
        if wanted.count > self._caps.window:
            raise BadRequestError(f"a window has at most {self._caps.window} chunks")
        if (
            isinstance(self._store, Delegating)
            and not wanted.verify
            and not _is_foreign(request)
            and await self._store.delegate(
                wanted.digest, wanted.first, wanted.count, request.reply, chunk_size=wanted.chunk_size
            )
        ):
            return None
        info = await self._store.stat(wanted.digest)
        request.noted.size = info.size
        chunking.check_cut(info.size, info.chunk_size, wanted.chunk_size)
        if wanted.first >= info.chunks and info.chunks > 0:
            raise BadRangeError(f"the blob has {info.chunks} chunks", chunks=info.chunks)
        return self._relay(request, wanted, info)

    async def _relay(self, request: Request, wanted: GetRequest, info: Info) -> AsyncGenerator[Reply, None]:
        with self._limits.bytes(min(wanted.count * info.chunk_size, info.size)):
            async for index, chunk, is_proven in self._chunks(wanted, info.chunk_size):
                request.noted.bytes_out += len(chunk)
                proof = {wire.SUM: wire.chunk_sum(chunk)} if is_proven else {}
                whole = Reply(chunk, {wire.CHUNK: str(index), **proof})
                for frame in fitting.frames(whole, self._replies):
                    yield frame
        yield Reply(b"", {wire.STATUS: "204 EOB"})

    async def _chunks(self, wanted: GetRequest, size: int) -> AsyncIterator[tuple[int, bytes, bool]]:
        """The chunks of a window by their indexes, and whether each has been compared with its sum."""
        index, stop = wanted.first, wanted.first + wanted.count
        try:
            async for chunk in self._store.chunks(wanted.digest, index, wanted.count, chunk_size=size):
                yield index, chunk, True
                index += 1
        except UnprovenError:
            rest = self._store.chunks(wanted.digest, index, stop - index, verify=False, chunk_size=size)
            async for chunk in rest:
                yield index, chunk, False
                index += 1


def _asker(request: Request) -> Asker:
    """Whom staged chunks are read for."""
    return Asker(request.client, request.allow)


def _is_foreign(request: Request) -> bool:
    """Whether it came through a service import: its account may write nowhere but to the service."""
    return request.reply.startswith(_FOREIGN_ACCOUNT)


def _get_request(data: bytes) -> GetRequest:
    if data.lstrip().startswith(b"{"):
        return wire.decode(data, GetRequest)
    return GetRequest(wire.decode_digest(data))


async def _once(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


def _json(message: object) -> Reply:
    return Reply(wire.encode(message))
