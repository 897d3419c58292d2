"""One upload whose chunks go through this worker: what is known of it, and what a further chunk may do."""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from dataclasses import dataclass
from typing import Final

from natsblob.broker.jetstream import Ack
from natsblob.chunking import Seen
from natsblob.errors import BadRequestError, BusyError
from natsblob.hashing import ConcurrentHasher
from natsblob.service.limits import RETRY_AFTER_MS

FAR: Final = 4096
"""Chunks ahead of the next one that no client can have sent which keeps to a window."""
FRESH: Final = 60.0
"""Seconds after the last ack for which a commit may go by what passed here: then chunks may be about to be
collected, or to expire, and reading them back finds out how old they are."""
REPEAT_AFTER: Final = 3.0
"""Seconds after which a chunk is published once more if it comes again: its ack may be lost."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk as it came."""

    index: int
    data: bytes
    crc: int
    reply: str
    since: float


@dataclass(slots=True)
class Flight:
    """A chunk on its way. Its publisher is answered once it is stored, and hashed if that matters."""

    crc: int
    reply: str
    size: int
    since: float
    is_passed: bool = False
    """Whether it has been published and hashed, so that its bytes are no longer held here."""
    is_sent: bool = False
    ack: bytes = b""

    def is_lost(self, now: float, after: float) -> bool:
        """Whether it was published more than `after` seconds ago, and still has no ack."""
        return self.is_sent and not self.ack and now - self.since > after


class Forwarded:
    """One upload, as far as this worker knows it.

    Of a *whole* one, which was opened here, the chunks go on in order. Of one that was opened elsewhere,
    or that this worker has forgotten since, they go on as they come.
    """

    def __init__(self, stage: str, *, is_whole: bool, chunk_size: int, window: int) -> None:
        self.stage = stage
        self.window = window
        self.is_whole = is_whole
        self.chunk_size = chunk_size
        self._is_sure = is_whole
        self._size = 0
        self._sums = array("I")
        self._seqs = array("Q")
        self.hasher = ConcurrentHasher()
        self._stored_at = asyncio.get_running_loop().time()
        self.is_used = False
        """Whether a chunk of it has come."""
        self.commits = 0
        """How many commits of it are under way, during which it takes no chunks."""
        self.held = 0
        """Bytes of it that are on their way."""
        self.flying: dict[int, Flight] = {}
        self.early: dict[int, Chunk] = {}
        """Chunks that wait for those before them."""
        self.queue: deque[tuple[Chunk, bool]] = deque()
        """Chunks to be published, and whether each is to be hashed as well."""
        self.pump: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        """Set while chunks wait for others."""

    @property
    def taken(self) -> int:
        """How many chunks have gone on in order."""
        return len(self._sums)

    def check(self, chunk: Chunk) -> None:
        """`BadRequestError` if it is another chunk than came before, or cannot be one of this upload."""
        flight = self.flying.get(chunk.index)
        early = self.early.get(chunk.index)
        known = flight.crc if flight else early.crc if early else self._sum(chunk.index)
        if known is not None and known != chunk.crc:
            raise BadRequestError(f"two different contents were published for chunk {chunk.index}")
        if len(chunk.data) > self.chunk_size:
            raise BadRequestError(f"chunk {chunk.index} has more than {self.chunk_size} bytes")
        if self.is_whole and chunk.index >= self.taken + FAR:
            raise BadRequestError(f"chunk {chunk.index} lies far beyond the window")
        if self.is_whole and chunk.index >= self.taken + self.window:
            raise busy()
        if self.is_next(chunk.index) and self._size != chunk.index * self.chunk_size:
            raise BadRequestError("a chunk that is not the last one is short")

    def is_next(self, index: int) -> bool:
        """Whether it is the turn of this chunk, in an upload whose chunks have turns."""
        return self.is_whole and index == self.taken

    def is_early(self, index: int) -> bool:
        return self.is_whole and index > self.taken

    def loosen(self) -> None:
        """Let chunks go on as they come: those that are missing come elsewhere, or not at all."""
        self.is_whole = self._is_sure = False

    def place(self, index: int) -> int:
        """The stream sequence of a chunk; 0 if that is not known."""
        return self._seqs[index] if index < self.taken else 0

    def take_next(self, chunk: Chunk) -> None:
        """The next chunk goes on."""
        self._sums.append(chunk.crc)
        self._seqs.append(0)
        self._size += len(chunk.data)

    def stored(self, index: int, ack: Ack) -> None:
        """Note where a chunk lies."""
        self._stored_at = asyncio.get_running_loop().time()
        if index >= self.taken:
            return
        if ack.duplicate and not self._seqs[index]:  # another may have stored it, with other bytes
            self._is_sure = False
        after = self._seqs[index + 1] if index + 1 < self.taken else 0
        if (index and self._seqs[index - 1] >= ack.seq) or (after and after <= ack.seq):
            self._is_sure = False
        self._seqs[index] = ack.seq

    async def seen(self, chunks: int) -> Seen | None:
        """What went through here, if that is all `chunks` chunks of the upload, each stored in its turn."""
        if asyncio.get_running_loop().time() - self._stored_at > FRESH:
            return None
        if not self._is_sure or self.taken != chunks or chunks == 0 or self.flying or not all(self._seqs):
            return None
        size = min(self.chunk_size, self._size)
        return Seen(await self.hasher.digest(), self._size, chunks, size, self._sums, self._seqs)

    def _sum(self, index: int) -> int | None:
        return self._sums[index] if index < self.taken else None


def busy() -> BusyError:
    return BusyError("too many chunks are on their way through this worker", retry_after_ms=RETRY_AFTER_MS)
