"""Remembering millions of names in little memory, if a mistake in one direction does no harm."""

from __future__ import annotations

from random import getrandbits
from typing import Final

_BITS_EACH: Final = 16
_LEAST: Final = 10_000
_PLACES: Final = 4


class Sieve:
    """A Bloom filter: a set of strings in 2 to 4 bytes each, which takes a few others for members.

    With as many members as it was made for, it takes at most one other string in 400 for one, and another
    filter takes other ones.
    """

    def __init__(self, count: int) -> None:
        self._mask = (1 << (_BITS_EACH * max(count, _LEAST)).bit_length()) - 1
        self._bits = bytearray((self._mask >> 3) + 1)
        self._salt = getrandbits(64)

    def add(self, name: str) -> None:
        place, step = self._places(name)
        for _ in range(_PLACES):
            self._bits[place >> 3] |= 1 << (place & 7)
            place = (place + step) & self._mask

    def __contains__(self, name: str) -> bool:
        place, step = self._places(name)
        for _ in range(_PLACES):
            if not self._bits[place >> 3] & 1 << (place & 7):
                return False
            place = (place + step) & self._mask
        return True

    def _places(self, name: str) -> tuple[int, int]:
        """Where the first bit of a name is, and how far it is from each to the next."""
        number = hash((self._salt, name))
        return number & self._mask, number >> 30 & self._mask | 1
