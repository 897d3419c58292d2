"""What nothing in a stream names, and since when this process has seen it so: in bounded memory.

*Orphans* lie under a token that metadata could name: chunks, a decision, other records. *Strays* could be
named by nobody: their subject has a token that no client can use, or they are metadata that says nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, Protocol

from natsblob.broker.census import Listed
from natsblob.objectstore.info import Layout

MOST: Final = 200_000
"""Orphans that are watched, and strays: some 300 and 100 bytes each. Those that come first in the stream;
the others wait until these are gone."""


class Named(Protocol):
    """Tokens that something names; it may take a few others for such."""

    def __contains__(self, name: str, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class Orphan:
    """Messages that nothing names under one token, as they were first seen to be so many."""

    chunks: int
    below: int
    since: float


class Leftovers:
    """What was left over when it was looked last, and what is found this time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.orphans: dict[str, Orphan] = {}
        self.strays: dict[int, float] = {}
        """By stream sequence: since when they have been known."""

    def forget(self) -> None:
        self.orphans, self.strays = {}, {}

    def looking(self, named: Named, now: float) -> Look:
        return Look(self, self._layout, named, now)


class Look:
    """One look at the stream: `see` each message, then `end`."""

    def __init__(self, left: Leftovers, layout: Layout, named: Named, now: float) -> None:
        self._left = left
        self._layout = layout
        self._named = named
        self._now = now
        self._chunks = Counter[str]()
        self._below = Counter[str]()
        self._strays: dict[int, float] = {}
        self.first: int | None = None
        """Sequence of the first message that nothing names."""

    def see(self, listed: Listed) -> None:
        owner = self._layout.owner_of(listed.subject)
        if owner is not None:
            if owner[0] not in self._named:
                self._add(listed.seq, *owner)
        elif self._layout.is_stray(listed.subject):
            self.add_stray(listed.seq)

    def _add(self, seq: int, owner: str, below: str) -> None:
        self.first = min(seq, self.first or seq)
        is_known = owner in self._chunks or owner in self._below
        if is_known or len(self._chunks) + len(self._below) < MOST:
            (self._below if below else self._chunks)[owner] += 1

    def add_stray(self, seq: int) -> None:
        """A message that nobody can make use of: it has been known since now, or longer."""
        self.first = min(seq, self.first or seq)
        if len(self._strays) < MOST:
            self._strays[seq] = self._left.strays.get(seq, self._now)

    def end(self) -> None:
        """From now on this is what is left over; what has changed has been left over since now."""
        before = self._left.orphans
        orphans: dict[str, Orphan] = {}
        for owner in self._chunks.keys() | self._below.keys():
            found = Orphan(self._chunks[owner], self._below[owner], self._now)
            seen = before.get(owner, found)
            is_same = (seen.chunks, seen.below) == (found.chunks, found.below)
            orphans[owner] = seen if is_same else found
        self._left.orphans, self._left.strays = orphans, self._strays
