"""The client: blobs put, got and asked about through whichever workers and servers are there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Final

from natsblob import wire
from natsblob.broker import connection as broker
from natsblob.broker.connection import Access, Connection
from natsblob.client.download import download
from natsblob.client.fetch import Fetch, corrupt, in_one_reply, stat
from natsblob.client.progress import Gauge, Progress
from natsblob.client.reader import BlobReader
from natsblob.client.service import Service, about, broken_protocol, decoded
from natsblob.client.sources import BlobSource, source_of
from natsblob.client.upload import Upload
from natsblob.digest import Digest
from natsblob.errors import BadRequestError, ConflictError, TooLargeError
from natsblob.wire import Caps, GetRequest, HasReply, Info, ListRequest, MissingReply, Page

DEFAULT_SERVER: Final = "nats://127.0.0.1:4222"
_DIGEST_BYTES: Final = 68
"""Of one digest in a JSON array, and of the array."""
DEFAULT_TIMEOUT: Final = 30.0
"""Seconds. An election of a new leader takes 4 to 9."""


@asynccontextmanager
async def connect(
    server: str | Access = DEFAULT_SERVER,
    *,
    prefix: str = wire.DEFAULT_PREFIX,
    timeout: float = DEFAULT_TIMEOUT,
    creds: str | Path | None = None,
) -> AsyncIterator[Client]:
    """A client of the service under `prefix`, for as long as the context lasts.

        async with natsblob.connect("nats://localhost") as blobs:
            info = await blobs.put(b"hello")
            assert await blobs.get(info.digest) == b"hello"

    `server` is an address, or several with commas between, or an `Access`, which also takes users,
    tokens, NKEYs and TLS. `creds` names a credentials file. `timeout`, in seconds, is the default of
    every method; see `Client`. Once connected, the client reconnects for as long as it lives.

    `UnavailableError` if no server answers within 5 s, `NotAllowedError` if it refuses the
    credentials, `BadRequestError` for a prefix that cannot be a subject.
    """
    access = Access(tuple(server.split(","))) if isinstance(server, str) else server
    if creds is not None:
        access = replace(access, creds=fspath(creds))
    wire.Subjects(prefix)
    async with await broker.connect(access) as connection:
        yield Client(connection, prefix=prefix, timeout=timeout)


class Client:
    """The blobs of one service. Made by `connect`; any number of tasks may use one client.

    A blob is named by its `Digest`, or by the same as 64 lower-case hex digits. Sizes and offsets are
    bytes.

    **Time.** `timeout` is in seconds and by default the client's. For `has`, `missing`, `stat`, `delete`,
    `caps` and each page of `list` it bounds the call as a whole. For `put`, `get`, `open` and `download`
    it is how long there may be no progress: a transfer takes as long as its size needs. Whoever wants a
    bound on the whole puts `asyncio.timeout` around the call: all of them may be cancelled at any time.

    **Errors.** Whatever passes is tried again within that time: a worker or server that died, an
    election, a worker at its limit. What remains is raised as a `natsblob.BlobError`:
    `UnavailableError` (with `NoRespondersError` if no worker listens), `DeadlineError`, `BusyError`
    when the time is over, `NotAllowedError`, `BadRequestError`, and what each method names. What the
    caller's own files and iterables raise, `OSError` above all, passes through.
    """

    def __init__(self, connection: Connection, *, prefix: str, timeout: float) -> None:
        self._service = Service(connection, prefix, timeout)

    async def put(
        self,
        source: BlobSource,
        *,
        digest: Digest | str | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Info:
        """Store the bytes of `source`: bytes, a `Path`, a binary file from where it stands, a reader whose
        `read` is awaited, or an async iterable of bytes. They are stored durably and all readers see them
        when this returns. A file or reader stays open; an async generator is closed at the end.

        `Info.created` is false if the content was there already; that is no error. With `digest`
        the bytes must have that address (`DigestMismatchError` otherwise), and large content that is
        there already is not sent at all, nor read to its end.

        If it raises or is cancelled, nothing is visible, except that an answer may have got lost; to
        put the same again is always safe. An upload that the service has lost is begun again by itself,
        up to five times, if the source can be read again: bytes, a `Path`, a seekable file.
        `UploadExpiredError` otherwise, `TooLargeError` and `InsufficientStorageError` if it does not
        fit, `ConflictError` if the bucket takes no more.
        """
        patience = self._patience(timeout)
        expected = None if digest is None else _digest(digest)
        bytes_to_put = await source_of(source)
        caps = await self._service.known_caps(timeout=patience)
        gauge = Gauge(progress, bytes_to_put.size)
        upload = Upload(self._service, caps, bytes_to_put, gauge, expected=expected, patience=patience)
        return await upload.run()

    async def get(
        self,
        digest: Digest | str,
        *,
        offset: int = 0,
        length: int | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """The bytes of a blob, or `length` of them from `offset` on; fewer if the blob ends before.

        A whole blob is verified against its address before it is returned: if the bytes received do
        not match, they are read once more through a worker that checks them, and then it is a
        `BlobCorruptError`. Of a range each chunk is checked against the CRC-32 that was stored with it.

        `BlobNotFoundError` if there is no such blob, `BadRangeError` if `offset` lies beyond its
        end. The result is held in memory: use `open` or `download` for what is large.
        """
        address = _digest(digest)
        patience = self._patience(timeout)
        if offset < 0 or (length is not None and length < 0):
            raise BadRequestError("offset and length are not negative")
        data = await self._get_small(address, offset, length, patience)
        if data is not None:
            Gauge(progress, None).complete(len(data))
            return data
        try:
            return await self._get_large(address, offset, length, progress, patience)
        except ConflictError:  # the blob was stored in other chunks meanwhile
            return await self._get_large(address, offset, length, progress, patience)

    async def _get_small(
        self, digest: Digest, offset: int, length: int | None, patience: float
    ) -> bytes | None:
        """What `get` returns, if it fits one reply."""
        if length is not None and length > self._service.connection.max_payload:
            return None
        if offset or length is not None:
            return await in_one_reply(self._service, GetRequest(digest, offset, length), patience)
        for verify in (False, True):
            data = await in_one_reply(self._service, GetRequest(digest, verify=verify), patience)
            if data is None or Digest.of(data) == digest:
                return data
        raise corrupt(digest)

    async def _get_large(
        self, digest: Digest, offset: int, length: int | None, progress: Progress | None, patience: float
    ) -> bytes:
        whole = offset == 0 and length is None
        fetch = await Fetch.of(self._service, digest, patience)
        gauge = Gauge(progress, fetch.info.size if whole else None)
        data = await (fetch.whole(gauge) if whole else fetch.range(offset, length, gauge))
        gauge.complete(len(data))
        return data

    @asynccontextmanager
    async def open(self, digest: Digest | str, *, timeout: float | None = None) -> AsyncIterator[BlobReader]:
        """A blob as a file: read it in pieces, seek in it, iterate over its chunks.

            async with blobs.open(digest) as reader:
                async for chunk in reader:
                    ...

        `BlobNotFoundError` if there is no such blob. `BlobReader` says what is verified when. A read is a
        `ConflictError` if the blob has been put again in chunks of another size: open it anew.
        """
        reader = BlobReader(await Fetch.of(self._service, _digest(digest), self._patience(timeout)))
        try:
            yield reader
        finally:
            await reader.close()

    async def download(
        self,
        digest: Digest | str,
        path: PathLike[str] | str,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Info:
        """Write a blob to a file. `path` has all bytes, verified and durable, or is what it was before.

        The bytes are collected beside it in `.<name>.<12 digits>.part`. An interrupted download
        leaves that file, and the next one of the same blob to the same path goes on from there, once
        it has hashed what is there; unless that file is a link, or another user's, or the file system
        has no locks: then the bytes are collected under a name that nobody can tell. Bytes that do not
        match the address are all read again, once, through a worker that checks them; then it is a
        `BlobCorruptError` and the file is removed.

        As with `cp`, a link leads to the file that is written, an existing file keeps its mode, and a
        FIFO or a device gets the bytes as they come: there the last ones come when all are verified.
        Other names (hard links) of an existing file keep what it was.

        `BlobNotFoundError` if there is no such blob, `ConflictError` while another process
        downloads the same blob to the same path, or as for `open`, `OSError` with the path if it cannot be
        written: a directory, one that is missing, a link that leads nowhere.
        """
        fetch = await Fetch.of(self._service, _digest(digest), self._patience(timeout))
        gauge = Gauge(progress, fetch.info.size)
        info = await download(fetch, path, gauge)
        gauge.complete(info.size)
        return info

    async def has(self, digest: Digest | str, *, timeout: float | None = None) -> bool:
        """Whether the blob is stored. "No" is confirmed beyond a replica that lags."""
        body = str(_digest(digest)).encode()
        reply = await self._service.call(self._service.subjects.has, body, timeout=timeout)
        answer = decoded(reply, HasReply)
        if str(answer.digest) != body.decode():
            raise broken_protocol()
        return answer.exists

    async def missing(self, digests: Iterable[Digest | str], *, timeout: float | None = None) -> list[Digest]:
        """Those of `digests`, any number, that are not stored; in the order given, duplicates kept.

        A request asks for up to 1,000 of them, and `timeout` is for each request.
        """
        wanted = [_digest(digest) for digest in digests]
        most = max(1, min(wire.MAX_BATCH, self._service.room // _DIGEST_BYTES))
        missing: list[Digest] = []
        asked = 0
        while asked < len(wanted):
            batch = wanted[asked : asked + most]
            try:
                reply = await self._service.ask(
                    self._service.subjects.has, batch, MissingReply, timeout=timeout
                )
            except TooLargeError as error:
                # This worker's server takes less than ours.
                most = smaller(len(batch), error)
                continue
            if not set(reply.missing) <= set(batch):
                raise broken_protocol()
            missing += reply.missing
            asked += len(batch)
        return missing

    async def stat(self, digest: Digest | str, *, timeout: float | None = None) -> Info:
        """What is known of a blob; `BlobNotFoundError` if there is none."""
        return await stat(self._service, _digest(digest), timeout)

    async def list(self, prefix: str = "", *, timeout: float | None = None) -> AsyncIterator[Info]:
        """All blobs whose digest begins with `prefix`, in ascending order of digest.

        Pages of 1,000 are fetched as they are needed; what is put or deleted meanwhile may or may not
        appear. `BadRequestError` if `prefix` is not up to 64 lower-case hex digits.
        """
        after: Digest | None = None
        while True:
            request = ListRequest(after=after, prefix=prefix)
            page = await self._service.ask(self._service.subjects.list, request, Page, timeout=timeout)
            _check_page(page, request)
            for info in page.blobs:
                yield info
            if page.after is None:
                return
            after = page.after

    async def delete(self, digest: Digest | str, *, timeout: float | None = None) -> Info:
        """Remove a blob, and what was known of it; `BlobNotFoundError` if there is none.

        That may also be said if the answer to the request that removed it got lost.
        """
        address = _digest(digest)
        body = str(address).encode()
        reply = await self._service.call(self._service.subjects.delete, body, timeout=timeout)
        return about(reply, address)

    async def caps(self, *, timeout: float | None = None) -> Caps:
        """What the service can do and carry, as one of its workers says it now."""
        return await self._service.caps(timeout=timeout)

    def _patience(self, timeout: float | None) -> float:
        return self._service.timeout if timeout is None else timeout


def smaller(batch: int, refusal: TooLargeError) -> int:
    """How many to ask for instead; raises the refusal if even one is too many."""
    limit = refusal.details.get("limit")
    if batch == 1:
        raise refusal
    return max(1, min(limit, batch - 1) if isinstance(limit, int) and limit > 0 else batch // 2)


def _check_page(page: Page, request: ListRequest) -> None:
    """`InternalError` if a page does not go on from where the one before ended, or shows other blobs."""
    last = request.after.hex if request.after else ""
    for name in [info.digest.hex for info in page.blobs]:
        if name <= last or not name.startswith(request.prefix):
            raise broken_protocol()
        last = name
    if page.after is not None and (page.after.hex < last or page.after == request.after):
        raise broken_protocol()


def _digest(given: Digest | str) -> Digest:
    return given if isinstance(given, Digest) else Digest.parse(given)
