"""Serving by digest what other clients stored under names of their own.

Each such object gets an ADR-20 link from its digest to it, once its bytes have been read and found to be
what its metadata says. The object stays where it is and as it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from natsblob.broker.translate import LostRaceError
from natsblob.digest import Digest
from natsblob.errors import BlobCorruptError, BlobNotFoundError, ConflictError
from natsblob.hashing import ConcurrentHasher
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.info import Entry, digest_of
from natsblob.objectstore.objects import Objects

Outcome: TypeAlias = Literal["adopted", "present", "corrupt", "gone"]
OnBytes: TypeAlias = Callable[[int], None]
"""Told how many more bytes have been read."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of one object that has a name of its own."""

    name: str
    outcome: Outcome
    """`adopted`: it has a link now. `present`: its content is served by digest already. `corrupt`: its
    bytes are not what its metadata says, and it was left alone. `gone`: deleted or replaced meanwhile."""
    size: int
    digest: Digest | None
    """The digest that its metadata claims, if it claims one."""


async def adopt(objects: Objects, on_bytes: OnBytes | None = None) -> AsyncGenerator[Adoption, None]:
    """Let the bucket take chunks, and give every object a digest; yields what became of each.

    Objects come in ascending order of name; blobs, links and delete markers are passed over. It may be
    interrupted and repeated, and run while the bucket is in use. `ConflictError` where the bucket takes
    chunks for a service with another prefix.
    """
    await _prepare(objects.bucket)
    async for entry in objects.list():
        claimed = digest_of(entry.info)
        if entry.is_content and (claimed is None or entry.info.name != claimed.hex):
            outcome = await _adopt_one(objects, entry, claimed, on_bytes)
            yield Adoption(entry.info.name, outcome, entry.info.size, claimed)


async def _prepare(bucket: Bucket) -> None:
    """Let the bucket take chunks, unless that would take it from a service with another prefix."""
    config = (await bucket.info()).config
    source = (config.get("subject_transform") or {}).get("src")
    if source and not bucket.takes_chunks(config):
        raise ConflictError(
            f"the bucket takes chunks on {source}: name the prefix of its service with --prefix"
        )
    await bucket.set_ingest()


async def _adopt_one(
    objects: Objects, entry: Entry, claimed: Digest | None, on_bytes: OnBytes | None
) -> Outcome:
    if claimed is None:
        return "corrupt"
    if await _is_served(objects, claimed):
        return "present"
    try:
        if await _read(objects, entry, on_bytes) != claimed:
            return "corrupt"
    except BlobCorruptError:
        return "corrupt"
    except BlobNotFoundError:
        return "gone"
    newest = await objects.newest(claimed.hex)
    try:
        await objects.link(claimed.hex, entry.info.name, newest.seq if newest else 0)
    except LostRaceError:
        return "present"
    return "adopted"


async def _is_served(objects: Objects, digest: Digest) -> bool:
    """Whether the digest names content already, of its own or by a link that still holds."""
    named = await objects.find(digest.hex)
    if named is None:
        return False
    try:
        return digest_of((await objects.resolve(named)).info) == digest
    except BlobNotFoundError:
        return False


async def _read(objects: Objects, entry: Entry, on_bytes: OnBytes | None) -> Digest:
    hasher = ConcurrentHasher()
    async for chunk in objects.read(entry):
        await hasher.update(chunk)
        if on_bytes:
            on_bytes(len(chunk))
    return await hasher.digest()
