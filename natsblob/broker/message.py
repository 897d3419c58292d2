"""A message as it arrived, and the parsing of its header block."""

from __future__ import annotations

from typing import Final, NamedTuple

from natsblob.wire import STATUS, Headers

MALFORMED: Final = "Natsblob-Malformed"
"""Set by the parser, and by nobody else, if the header block breaks the rules."""

MAX_HEADERS: Final = 16 * 1024
"""Bytes of a header block that are parsed; a larger one is malformed."""
_TAIL: Final = 1024
"""Bytes at the end of a larger one that are parsed: what a server adds to a stored message stands there."""

SUBJECT: Final = "Nats-Subject"
"""Added by the server to each stored message that a direct read delivers, behind what was stored."""

SEQUENCE: Final = "Nats-Sequence"
"""Added likewise: its place in the stream."""

DESCRIPTION: Final = "Description"
_VERSION: Final = b"NATS/1.0"
_END: Final = b"\r\n\r\n"
"""Of a block without it the server cuts off the last bytes if it adds headers of its own."""
_NOTHING: Final[Headers] = {}


class Message(NamedTuple):
    """A message. `headers` is never to be changed; it is shared if there are none."""

    subject: str
    reply: str
    data: bytes
    headers: Headers
    block: bytes = b""
    """The header block as it came."""

    @property
    def status(self) -> str | None:
        """The inline status of a message that a server made (`204`, `404`, `503`), if any.

        A stored message has none: older servers keep the status line that its publisher wrote.
        """
        return None if self.is_stored else self.headers.get(STATUS)

    @property
    def is_stored(self) -> bool:
        """Whether this is a stored message from a direct read: all other headers are its publisher's then."""
        # A server's "no responders" names the subject, too; only what is stored has a sequence.
        return SEQUENCE in self.headers

    def __repr__(self) -> str:
        return f"Message({self.subject!r}, {len(self.data)} bytes)"


def parse_headers(block: bytes | None) -> Headers:
    """The headers in a block that anybody may have sent: never raises.

    A status is taken from the first line only, where servers put it. A line that is not `Name: value`
    with a printable ASCII name and a printable UTF-8 value, or a block over `MAX_HEADERS`, sets
    `MALFORMED`, so that a service can refuse the request. The client library would stop reading the
    connection. Of a name that occurs twice the last value counts: servers add theirs at the end.
    """
    if not block:
        return _NOTHING
    if len(block) > MAX_HEADERS:
        return _parse_tail(block)
    first, _, rest = block.partition(b"\r\n")
    headers: Headers = {}
    well_formed = first.startswith(_VERSION) and block.endswith(_END)
    if first.startswith(_VERSION) and len(first) > len(_VERSION):
        status, _, description = first[len(_VERSION) :].strip().partition(b" ")
        headers[STATUS] = status.decode("ascii", "replace")
        headers[DESCRIPTION] = description.decode("utf-8", "replace")
    for line in rest.split(b"\r\n"):
        if line:
            well_formed = _parse_line(line, headers) and well_formed
    if not well_formed:
        headers[MALFORMED] = "1"
    return headers


def _parse_tail(block: bytes) -> Headers:
    """What the last lines of a block say that is too large to be parsed."""
    headers: Headers = {}
    _, _, lines = block[-_TAIL:].partition(b"\r\n")
    for line in lines.split(b"\r\n"):
        if line:
            _parse_line(line, headers)
    headers[MALFORMED] = "1"
    return headers


def _parse_line(line: bytes, headers: Headers) -> bool:
    name, colon, value = line.partition(b":")
    # What is not UTF-8 is kept readable: a server's header may have the subject of a stored message.
    key, text = name.decode("ascii", "replace"), value.strip().decode("utf-8", "replace")
    if (
        not colon
        or not key
        or not key.isascii()
        or not key.isprintable()
        or " " in key
        or key in (MALFORMED, STATUS)
    ):
        return False
    headers[key] = text
    return text.isprintable() and _is_utf8(value)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
