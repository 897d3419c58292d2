"""Links to objects of other clients, and what was seen of their bytes when they were read (ADR 0018).

Other clients store no sums, so that nothing but the digest of the whole vouches for a chunk. Whoever adopts
an object has read it whole, and keeps a CRC-32 of each chunk, four bytes for each, stored as the chunks of
the link's own nuid, which other clients never read. They go with the link.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from natsblob import chunking
from natsblob.digest import Digest
from natsblob.objectstore.info import MARKS_KEY, Entry, Link, ObjectInfo, Options, encode_marks
from natsblob.objectstore.writer import Written
from natsblob.wire import chunk_sum

ADOPTED_KEY: Final = "natsblob.adopted"
"""In a link's `metadata`: the nuid of the object, bytes in its chunks, bytes in a chunk of their sums."""
_ADOPTED: Final = re.compile(r"(\S+) ([1-9][0-9]{0,14}) ([1-9][0-9]{0,14})", re.ASCII)
SUM_BYTES: Final = 4
MAX_SUMS: Final = 1 << 20
"""Chunks of an object that is linked: 128 GiB in chunks of 128 KiB."""
_PREFIX: Final = "crc32="


@dataclass(frozen=True, slots=True)
class Sums:
    """The CRC-32 of some chunks, from chunk `first` on."""

    first: int
    raw: bytes

    def of(self, index: int) -> str | None:
        """The sum of a chunk as its header would say it, or `None` if it is not among these."""
        start = (index - self.first) * SUM_BYTES
        if start < 0 or start + SUM_BYTES > len(self.raw):
            return None
        return _PREFIX + self.raw[start : start + SUM_BYTES].hex()


def sum_bytes(chunk: bytes) -> bytes:
    """The sum of a chunk as it is kept."""
    return bytes.fromhex(chunk_sum(chunk).removeprefix(_PREFIX))


def link_to(bucket: str, target: Entry, digest: Digest, chunk_size: int, sums: Written) -> ObjectInfo:
    """The metadata of a link from a digest to an object of the same bucket, whose chunks have these sums.

    It has the size and the digest of the object, for those who list links without following them.
    """
    adopted = f"{target.info.nuid} {chunk_size} {sums.chunk_size}"
    return ObjectInfo(
        name=digest.hex,
        bucket=bucket,
        nuid=sums.nuid,
        size=target.info.size,
        chunks=target.info.chunks,
        digest=digest.adr20(),
        metadata={ADOPTED_KEY: adopted, MARKS_KEY: encode_marks(sums.marks)},
        options=Options(link=Link(bucket=bucket, name=target.info.name)),
    )


def followed(link: Entry, target: Entry) -> Entry:
    """The object that a link leads to, with what its adoption found out about it.

    As it is if it has been replaced since, or if another client made the link.
    """
    found = _ADOPTED.fullmatch((link.info.metadata or {}).get(ADOPTED_KEY, ""))
    if found is None or found[1] != target.info.nuid:
        return target
    chunk_size, sums_size = int(found[2]), int(found[3])
    size = target.info.chunks * SUM_BYTES
    sums = msgspec.structs.replace(
        link.info,
        size=size,
        chunks=chunking.count(size, sums_size),
        options=Options(max_chunk_size=sums_size),
    )
    info = msgspec.structs.replace(
        target.info, digest=link.info.digest, metadata=None, options=Options(max_chunk_size=chunk_size)
    )
    return Entry(info, target.seq, target.modified, sums=sums)
