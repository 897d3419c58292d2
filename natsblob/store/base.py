"""What a store of blobs can do, one protocol for each verb, and their sum.

Contracts that bind every backend and every wrapper; `natsblob.testing.conformance` holds them to it:

- A digest names immutable bytes. `put` is idempotent: a second one answers with `created` false.
- A blob is visible entirely or not at all, also after a crash, a cancelled or a failed `put`.
- "Missing" is confirmed: after `put` has returned anywhere, nobody is told that the blob is not there.
- Every method may be cancelled at any `await` and leaves nothing behind that is not collected later.
- Errors are `natsblob.errors.BlobError` and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Protocol, runtime_checkable

from natsblob.chunking import Seen
from natsblob.digest import Digest
from natsblob.wire import CommitRequest, Info, Page


class Statter(Protocol):
    async def stat(self, digest: Digest) -> Info:
        """What is known of the blob; `BlobNotFoundError` if there is none."""
        ...

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those of `digests` that are not stored, in the order given, duplicates kept."""
        ...


class Reader(Protocol):
    def chunks(
        self,
        digest: Digest,
        first: int = 0,
        count: int | None = None,
        *,
        verify: bool = True,
        chunk_size: int | None = None,
    ) -> AsyncIterator[bytes]:
        """Chunks `first` to `first + count - 1` in order; `None` means to the end.

        Each is whole: `Info.chunk_size` bytes, the last one shorter. A put may replace a blob by the same
        bytes in chunks of another size: whoever has computed `first` passes the `chunk_size` that it was
        computed with, and gets `UnavailableError` if it is another one by now. Chunks past the end are not
        an error and yield nothing. With `verify` each chunk is checked against what the store
        remembers of it: a bad one is a `BlobCorruptError`, one of which nothing is remembered an
        `UnprovenError`. The digest of the whole is the caller's to check. `BlobNotFoundError`
        before the first chunk if there is no blob.
        """
        ...


class Writer(Protocol):
    async def held(self, digest: Digest) -> Info | None:
        """The blob as a put of the same bytes would find it, or `None`: then it has to be put.

        Stricter than `stat`: no lagging copy and nothing that others may take away answers for it.
        """
        ...

    async def put(self, source: AsyncIterable[bytes], *, expected: Digest | None = None) -> Info:
        """Store the bytes of `source`, cut anywhere, and make them visible at once at the end.

        If `expected` is given and the bytes differ, `DigestMismatchError`, and nothing is stored.
        An error of `source` passes through, and nothing is stored. Durable when it returns.
        """
        ...


class Lister(Protocol):
    async def list(self, *, after: Digest | None = None, limit: int = 1000, prefix: str = "") -> Page:
        """Up to `limit` blobs in ascending order of digest, behind `after`, that begin with `prefix`."""
        ...


class Deleter(Protocol):
    async def delete(self, digest: Digest) -> Info:
        """Remove the blob and return what was removed; `BlobNotFoundError` if there is none."""
        ...


class Store(Statter, Reader, Writer, Lister, Deleter, Protocol):
    """Everything a worker needs of a backend."""

    @property
    def chunk_size(self) -> int:
        """Bytes in the chunks of the blobs that this store writes."""
        ...


@runtime_checkable
class Doubting(Protocol):
    """A store that answers puts by what is there, as long as nobody has found that to be bad."""

    async def doubt(self, digest: Digest) -> None:
        """The bytes of the blob were read and are not its content: puts are to store theirs."""
        ...


@runtime_checkable
class Delegating(Protocol):
    """A store whose replicas can send chunks to a reader without passing through the worker."""

    async def delegate(
        self, digest: Digest, first: int, count: int, reply: str, *, chunk_size: int | None = None
    ) -> bool:
        """Have chunks `first` to `first + count - 1` sent to `reply` as frames of the wire protocol.

        Returns when the request is on its way: the frames, or an end frame that says that some are
        missing, come later or, if the replica dies, not at all, and the reader asks again. False
        if this blob cannot be read so, and `BlobNotFoundError` if there is none. `ConflictError` if
        it is not cut into chunks of `chunk_size`.
        """
        ...


@runtime_checkable
class Staging(Protocol):
    """A store that takes chunks from publishers directly, before they belong to a blob."""

    def chunk_subject(self, stage: str) -> str:
        """Where the chunks of the upload with this stage lie."""
        ...

    async def direct_subject(self, stage: str, *, anew: bool = False) -> str | None:
        """Where publishers put these chunks themselves; `None` if only workers may.

        What is known of that may be some seconds old; with `anew` it is not.
        """
        ...

    async def staged(self, stage: str) -> list[int]:
        """Indexes of the stored chunks, ascending; `UploadExpiredError` if the stage is unknown."""
        ...

    async def commit(self, stage: str, request: CommitRequest, seen: Seen | None) -> Info:
        """Make the staged chunks a blob; repeating it is harmless.

        `seen` is what the worker saw pass by, if it saw all. `UploadExpiredError` if the stage is
        unknown, aborted or too old, `DigestMismatchError` if the chunks are not what `request`
        says: then they are dropped.
        """
        ...

    async def is_settled(self, stage: str) -> bool:
        """Whether it is decided already what becomes of the chunks."""
        ...

    async def abort(self, stage: str) -> None:
        """Drop the staged chunks, unless they are committed: then it is a `ConflictError`."""
        ...
