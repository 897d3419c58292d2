"""Reading what a stream has on many subjects, a part at a time: memory does not grow with the stream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import chain
from typing import Final

import msgspec

from natsblob.broker.jetstream import (
    BEFORE,
    PART_BYTES,
    PENDING,
    ApiErrorBody,
    JetStream,
    Stored,
    expect_not_found,
)
from natsblob.broker.message import SEQUENCE
from natsblob.broker.retry import retrying
from natsblob.errors import UnavailableError

PART: Final = 4_096
"""Messages in one answer. To count what is left takes the server a tenth of a second
with 1,000,000 subjects, however few it then sends."""
_PAGE_TIMEOUT: Final = 20.0
"""Seconds for a page of subjects, which takes long if there are millions."""
_BACK: Final = 10_000
"""Subjects to go back if some have gone meanwhile."""
_TURN: Final = 4_096
"""Subjects that are handed on before anybody else on the loop has a turn."""
_SUBJECT: Final = re.compile(rb'"((?:[^"\\]|\\.)*)":\s*(\d+)')


class _State(msgspec.Struct):
    subjects: msgspec.Raw = msgspec.Raw(b"null")


class _Page(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)
    total: int = 0
    error: ApiErrorBody | None = None


class Subjects:
    """The subjects that match `pattern`, and how many messages each has, as the leader sees them, in order.

    The server sends 100,000 at a time, and for each of these pages it sorts all of them, 1,000,000 in a
    second. Iterating again goes on behind the subject that came last. What is there all the time comes once.
    """

    def __init__(self, jetstream: JetStream, stream: str, pattern: str) -> None:
        self._jetstream = jetstream
        self._operation = f"STREAM.INFO.{stream}"
        self._pattern = pattern
        self._last = ""
        self._seen = 0
        """How many subjects there were up to the last one."""

    async def __aiter__(self) -> AsyncIterator[tuple[str, int]]:
        while True:
            start = max(0, self._seen - 1)
            body = {"subjects_filter": self._pattern, "offset": start}
            page = await self._jetstream.call(self._operation, body, _Page, timeout=_PAGE_TIMEOUT)
            found = _each(page.state.subjects)
            first = next(found, None)
            if start and (first is None or first[0] > self._last):
                # Some before it have gone, and those behind it have moved up: it is not the last one's place.
                self._seen = max(0, self._seen - _BACK)
                continue
            place = start
            for place, (subject, count) in enumerate(chain([first] if first else [], found), start + 1):
                if place % _TURN == 0:
                    await asyncio.sleep(0)
                if subject > self._last:
                    self._last, self._seen = subject, place
                    yield subject, count
            self._seen = place
            if place == start or place >= page.total:
                return


def _each(page: msgspec.Raw) -> Iterator[tuple[str, int]]:
    """The subjects of a page, decoded one by one: a page takes 10 MB as it is."""
    is_plain = b"\\" not in bytes(page)
    for match in _SUBJECT.finditer(page):
        name = match[1].decode() if is_plain else msgspec.json.decode(b'"%b"' % match[1], type=str)
        yield name, int(match[2])


async def every(jetstream: JetStream, stream: str, pattern: str, *, start: int = 1) -> AsyncIterator[Stored]:
    """The messages on subjects that match `pattern`, from a sequence on, in stream order.

    They are what replicas have, and one that lags may end early.
    """
    left = 1
    while left:
        attempt = partial(_part, jetstream, stream, pattern, start)
        messages, left = await retrying(attempt, patience=jetstream.patience)
        for stored in messages:
            yield stored
            start = stored.seq + 1


async def _part(jetstream: JetStream, stream: str, pattern: str, start: int) -> tuple[list[Stored], int]:
    """The next messages, and how many come after them."""
    body = {"seq": start, "next_by_subj": pattern, "batch": PART, "max_bytes": PART_BYTES}
    messages, end = await jetstream.collect(stream, msgspec.json.encode(body))
    if not messages:
        expect_not_found(end)
        return [], 0
    before = "0"
    for headers in (*(stored.headers for stored in messages), end.headers):
        if headers.get(BEFORE) != before:
            raise UnavailableError("some of a replica's answer got lost")
        before = headers.get(SEQUENCE, "")
    return messages, int(end.headers.get(PENDING, "0"))
