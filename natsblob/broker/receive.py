"""Cutting messages out of what a server sends (ADR 0004).

What arrives is read into one buffer that is used over and over, and each payload is copied out of it
once, while the processor still has it at hand. Messages go to their handlers straight from the reading of
the socket; whatever else a server says is left to the client library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from nats.errors import ProtocolError

LANDING: Final = 768 * 1024
"""Bytes that are read at a time at most: a chunk of the usual size, and little more than a cache holds."""
_LEAST_ROOM: Final = 64 * 1024
"""Bytes to read into at least."""
_LONGEST_LINE: Final = 1024 * 1024
"""Bytes of a control line; INFO names every server of a cluster."""
_LARGEST: Final = 128 * 1024 * 1024
"""Bytes of headers and payload. Clients may send 64 MiB at most; servers send more themselves: base64, or
the names of many subjects."""
_LONGEST_NUMBER: Final = 19
_CRLF: Final = 2
_CROWD: Final = 64
_CROWDED_ROOM: Final = 16 * 1024
"""After more than so many messages in one reading, the next one is so small: thousands of requests in one
reading would leave no time to those that are being served."""

Deliver: TypeAlias = Callable[[int, bytes, bytes, bytes, bytes], None]
"""Takes one message: subscription, subject, reply subject, header block and payload."""
Control: TypeAlias = Callable[[bytes], None]
"""Takes one line that is no message, with its end."""


class Cutter:
    """Takes bytes in pieces of any size and hands on each message and each line once it is complete.

    Ask for `room`, write to its beginning, and say how much that was to `received`.
    """

    def __init__(self, deliver: Deliver, control: Control) -> None:
        self._deliver = deliver
        self._control = control
        self._hold(LANDING)
        self._start = self._end = 0
        self._messages = 0
        self._crowded = False
        self._needed = 1
        """Bytes from `_start` on with which there is something to cut."""

    def room(self) -> memoryview:
        """Where the next bytes go. Void after the next call of `received`."""
        held = self._end - self._start
        # What a server announces is believed as it arrives.
        wanted = max(min(self._needed, max(LANDING, 2 * held)), held + _LEAST_ROOM)
        if self._start + wanted > len(self._buffer):
            self._make_room(wanted)
        return self._view[self._end :][:_CROWDED_ROOM] if self._crowded else self._view[self._end :]

    def received(self, size: int) -> None:
        """Take the `size` bytes that were written to `room`; `ProtocolError` if they make no sense."""
        self._end += size
        before = self._messages
        while self._end - self._start >= self._needed:
            line_end = self._buffer.find(b"\n", self._start, self._end) + 1
            if not line_end:
                if self._end - self._start > _LONGEST_LINE:
                    raise ProtocolError("nats: a control line without an end")
                break
            line = bytes(self._view[self._start : line_end])
            if not line.startswith((b"MSG ", b"HMSG ")):
                self._start = line_end
                self._control(line)
            elif not self._cut(line, line_end):
                break
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > LANDING:
                self._hold(LANDING)
        self._crowded = self._messages - before > _CROWD

    def _cut(self, line: bytes, line_end: int) -> bool:
        """Hand on the message that begins with `line`, unless some of it is still to come."""
        try:
            # By spaces only: anybody may have a vertical tab in a subject.
            operation, subject, sid, *rest = line.rstrip(b"\r\n").split(b" ")
            size = _number(rest.pop())
            header_size = _number(rest.pop()) if operation == b"HMSG" else 0
            reply = rest.pop() if rest else b""
            number = _number(sid)
        except (ValueError, IndexError) as error:
            raise ProtocolError("nats: malformed MSG") from error
        if rest or not header_size <= size <= _LARGEST:
            raise ProtocolError("nats: malformed MSG")
        payload_start = line_end + header_size
        payload_end = line_end + size
        self._needed = payload_end + _CRLF - self._start
        if self._end - self._start < self._needed:
            return False
        self._start += self._needed
        self._needed = 1
        header = bytes(self._view[line_end:payload_start])
        payload = bytes(self._view[payload_start:payload_end])
        self._messages += 1
        self._deliver(number, subject, reply, header, payload)
        return True

    def _make_room(self, wanted: int) -> None:
        """Move what is held to the front, of a larger buffer if this one is too small."""
        held = self._view[self._start : self._end]
        if wanted > len(self._buffer) or len(self._buffer) > LANDING >= wanted:
            self._hold(max(wanted, LANDING))
        self._view[: len(held)] = held
        self._start, self._end = 0, len(held)

    def _hold(self, size: int) -> None:
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)


def _number(text: bytes) -> int:
    """Decimal digits and nothing else, which `int` would take."""
    if not text.isdigit() or len(text) > _LONGEST_NUMBER:
        raise ValueError("no number")
    return int(text)
