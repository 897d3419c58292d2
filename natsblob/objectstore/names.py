"""The names of blobs in ascending order, without reading all of them for every page of a list.

The server knows names by subject, and subjects of blobs have another order than their digests: what comes
next in order it cannot tell without listing all subjects, which takes it seconds if there are a million.
So that is done for a range of many pages at once, and the last few ranges are kept up to date.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, overload

from natsblob.broker.jetstream import StreamState
from natsblob.broker.scan import Subjects
from natsblob.objectstore.generation import Evidence, Witnesses
from natsblob.objectstore.info import is_address
from natsblob.objectstore.objects import Objects, believe

END: Final = "g"
"""Behind every name: they are hex digits."""
SPAN: Final = 300_000
"""Subjects of a stream, about, whose names are in one range; half of them are metadata."""
RANGES: Final = 2
"""Ranges that are remembered, 5 MiB each."""
_SPACE: Final = 16**64
_SIZE: Final = 32


class _Digests(Sequence[str]):
    """Digests in ascending order, in 32 bytes each."""

    def __init__(self, raw: bytes = b"") -> None:
        """Those in `raw`, which are in any order, some of them perhaps twice."""
        ascending = sorted(raw[at : at + _SIZE] for at in range(0, len(raw), _SIZE))
        self._raw = b"".join(one for one, _ in groupby(ascending))

    def __len__(self) -> int:
        return len(self._raw) // _SIZE

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return self._raw[index * _SIZE : (index + 1) * _SIZE].hex()

    def add(self, names: Iterable[str]) -> None:
        pieces: list[bytes] = []
        begin = 0
        for name in sorted(set(names)):
            at = bisect_left(self, name, begin)
            if at == len(self) or self[at] != name:
                pieces += (self._raw[begin * _SIZE : at * _SIZE], bytes.fromhex(name))
                begin = at
        self._raw = b"".join((*pieces, self._raw[begin * _SIZE :]))


@dataclass(slots=True)
class _Range:
    """The names above `low` and not above `high`, as of a stream sequence."""

    low: str
    high: str
    seq: int
    names: _Digests = field(default_factory=_Digests)

    def holds(self, name: str) -> bool:
        return self.low < name <= self.high and is_address(name)

    def tells(self, name: str, last: int) -> bool:
        """Whether the name after this one can be told, and not too much was stored since, up to `last`."""
        return self.low <= name < self.high and last - self.seq <= SPAN


@dataclass(slots=True)
class _Reading:
    """A range that is being read. A request that runs out of time leaves it to the next one."""

    range: _Range
    subjects: Subjects
    most: int
    """Messages that a copy counts on all of the subjects."""
    counted: int = 0
    """Messages on those that were looked at."""
    found: bytearray = field(default_factory=bytearray)


class Names:
    """The names of the blobs in a bucket, those of deleted ones among them."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._ranges: deque[_Range] = deque(maxlen=RANGES)
        self._reading: _Reading | None = None
        self._turn = asyncio.Lock()
        self._witnesses = Witnesses(objects.bucket.jetstream, objects.bucket.layout)
        self._generation = objects.bucket.generation
        self._last_seq = -1

    async def behind(self, name: str, most: int) -> tuple[list[str], str]:
        """Up to `most` names above this one, in order, and up to where there are no others; at last `END`.

        What was stored before the call is not left out; `UnavailableError` if that cannot be told.
        """
        async with self._turn:
            state = (await self._objects.bucket.info()).state
            await self._check(state)
            known = next((one for one in self._ranges if one.tells(name, state.last_seq)), None)
            if known is None:
                known = await self._read(name, state)
            await self._keep_up(known, state.last_seq)
        at = bisect_right(known.names, name)
        found = known.names[at : at + most]
        return found, found[-1] if at + most < len(known.names) else known.high

    async def _check(self, state: StreamState) -> None:
        """Forget what was read from another stream than there is now, or perhaps so."""
        bucket = self._objects.bucket
        if bucket.generation == self._generation and state.last_seq == self._last_seq:
            return
        is_same = bucket.generation == self._generation
        if is_same and (self._ranges or self._reading):
            evidence = await self._witnesses.ask()
            is_same = evidence is Evidence.SAME
            if evidence is Evidence.OTHER:
                bucket.renew()
        if not is_same:
            self._ranges.clear()
            self._reading = None
            self._witnesses.forget()
        await self._witnesses.note()
        self._generation, self._last_seq = bucket.generation, state.last_seq

    async def _read(self, name: str, state: StreamState) -> _Range:
        reading = self._reading
        if reading is None or not reading.range.tells(name, state.last_seq):
            wanted = _Range(name, _high(name, state.num_subjects), state.last_seq)
            reading = self._reading = _Reading(wanted, self._objects.subjects(), await self._most(1))
        layout = self._objects.bucket.layout
        async for subject, count in reading.subjects:
            reading.counted += count
            if reading.range.holds(found := layout.name_of(subject) or ""):
                reading.found += bytes.fromhex(found)
        self._reading = None
        believe(reading.counted, reading.most)
        reading.range.names = _Digests(bytes(reading.found))
        self._ranges.append(reading.range)
        return reading.range

    async def _keep_up(self, known: _Range, last: int) -> None:
        """Add what was stored since; what was deleted may stay."""
        if last <= known.seq:
            return
        start = known.seq + 1
        most = await self._most(start)
        subjects = [stored.subject async for stored in self._objects.metadata(start=start)]
        believe(len(subjects), most)
        names = filter(None, map(self._objects.bucket.layout.name_of, subjects))
        known.names.add(filter(known.holds, names))
        known.seq = last

    async def _most(self, start: int) -> int:
        """What has to be listed; nothing is compared if copies let messages expire one by one."""
        may_expire = await self._objects.bucket.max_age() is not None
        return 0 if may_expire else await self._objects.most_metadata(start)


def _high(low: str, subjects: int) -> str:
    """Where a range of about `SPAN` subjects ends: digests lie evenly."""
    high = int(low.ljust(64, "0"), 16) + _SPACE * SPAN // max(subjects, 1)
    return END if high >= _SPACE else f"{high:064x}"
