"""Putting frames together that came in parts, since a message could not hold them."""

from __future__ import annotations

from typing import Final

from natsblob.broker.message import Message
from natsblob.wire import CHUNK, PART, part_of

LARGEST: Final = 64 * 1024 * 1024
"""Bytes of a chunk that is put together: no store has larger ones."""


class Parts:
    """The parts of one chunk at a time, as a worker sends them: one behind the other."""

    def __init__(self) -> None:
        self._chunk = ""
        self._length = 0
        self._data = bytearray()

    def add(self, frame: Message) -> Message | None:
        """A frame that is whole, or the one that this part completes; `None` while parts are missing.

        A part out of turn is dropped, with those before it: the chunk is asked for again.
        """
        if PART not in frame.headers or frame.is_stored:
            return frame
        place = part_of(frame.headers)
        chunk = frame.headers.get(CHUNK, "")
        if place is None or not frame.data or place[0] + len(frame.data) > place[1] or place[1] > LARGEST:
            return None
        offset, length = place
        if offset == 0:
            self._chunk, self._length, self._data = chunk, length, bytearray()
        if (chunk, length, offset) != (self._chunk, self._length, len(self._data)):
            return None
        self._data += frame.data
        if len(self._data) < length:
            return None
        whole, self._data = bytes(self._data), bytearray()
        headers = {name: value for name, value in frame.headers.items() if name != PART}
        return frame._replace(data=whole, headers=headers)
