"""What is remembered of a file that was verified: a sum of each piece, to compare with what is read later."""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from zlib import crc32

from natsblob.digest import Digest

MOST_SUMS: Final = 2**21
"""Sums of one blob. A blob with more chunks has one for several chunks, which are then read together."""
MEMORY: Final = 32 * 1024 * 1024
"""Bytes that the sums of all blobs may take; those that were not used for longest are forgotten."""
_SMALLEST_PIECE: Final = 64 * 1024
_OVERHEAD: Final = 512
"""Bytes that an entry takes beside its sums."""


class Identity(NamedTuple):
    """Which file it is that was verified. Rot changes none of this: that is what the sums are for."""

    digest: Digest
    inode: int
    modified_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class Sums:
    """The CRC-32 of each piece of a file, taken while its SHA-256 was found to be right."""

    piece: int
    """Bytes in a piece, a whole number of chunks; the last one is shorter."""
    values: array[int]
    taken: float = field(default_factory=time.monotonic)

    def fits(self, index: int, data: bytes) -> bool:
        return self.values[index] == crc32(data)


def piece_size(size: int, chunk_size: int) -> int:
    """Bytes in a piece of a file of that size."""
    chunks = max(1, -(-_SMALLEST_PIECE // chunk_size), -(-size // chunk_size // MOST_SUMS))
    return chunks * chunk_size


class Remembered:
    """The sums of the files that were verified last, within `MEMORY`."""

    def __init__(self, memory: int = MEMORY) -> None:
        self._most = memory
        self._entries: OrderedDict[Identity, Sums] = OrderedDict()
        self.held = 0
        """Bytes that the entries take."""

    def get(self, identity: Identity) -> Sums | None:
        sums = self._entries.get(identity)
        if sums is not None:
            self._entries.move_to_end(identity)
        return sums

    def keep(self, identity: Identity, sums: Sums) -> None:
        self.forget(identity)
        self._entries[identity] = sums
        self.held += _cost(sums)
        while self.held > self._most:
            _, oldest = self._entries.popitem(last=False)
            self.held -= _cost(oldest)

    def forget(self, identity: Identity) -> None:
        sums = self._entries.pop(identity, None)
        if sums is not None:
            self.held -= _cost(sums)


def _cost(sums: Sums) -> int:
    return _OVERHEAD + sums.values.itemsize * len(sums.values)
