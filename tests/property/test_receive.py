"""What a server sends, cut anywhere: the same messages come out, whatever subjects and payloads hold."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from natsblob.broker.message import MALFORMED, MAX_HEADERS, parse_headers
from natsblob.broker.receive import LANDING, Cutter
from natsblob.wire import STATUS

# nats-server takes any bytes as a subject but those that separate its words: not even vertical tabs.
subjects = st.binary(min_size=1, max_size=12).filter(lambda name: not set(name) & set(b" \t\r\n"))


class Sent(NamedTuple):
    """A message as the server has it."""

    sid: int
    subject: bytes
    reply: bytes
    headers: bytes
    payload: bytes

    def wire(self) -> bytes:
        words = [b"HMSG" if self.headers else b"MSG", self.subject, b"%d" % self.sid]
        words += [self.reply] if self.reply else []
        words += [b"%d" % len(self.headers)] if self.headers else []
        words.append(b"%d" % (len(self.headers) + len(self.payload)))
        return b" ".join(words) + b"\r\n" + self.headers + self.payload + b"\r\n"


payloads = st.binary(max_size=60) | st.sampled_from(
    [b"MSG a 1 3\r\nabc\r\n", b"\r\n", b"PING\r\n", bytes(3000), bytes(LANDING - 20), bytes(2 * LANDING)]
)
messages = st.builds(
    Sent,
    st.integers(1, 2**40),
    subjects,
    st.just(b"") | subjects,
    st.just(b"") | st.binary(min_size=1),
    payloads,
)
lines = st.sampled_from(
    [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'Permissions Violation'\r\n", b'INFO {"a":1}\r\n']
)


@given(
    sent=st.lists(messages | lines, max_size=8),
    cuts=st.lists(st.integers(1, 300) | st.just(LANDING), max_size=30),
)
@example(sent=[Sent(1, b"a\x0bb", b"_INBOX.a\x0cb", b"", b"x")], cuts=[])
@example(sent=[Sent(1, b"a", b"_INBOX.\x1c\x1d\x85\xa0", b"NATS/1.0\r\n\r\n", b"")], cuts=[1] * 30)
def test_messages_come_out_as_they_went_in(sent: list[Sent | bytes], cuts: list[int]) -> None:
    got: list[Sent | bytes] = []
    cutter = Cutter(lambda *message: got.append(Sent(*message)), got.append)
    rest = b"".join(one if isinstance(one, bytes) else one.wire() for one in sent)
    while rest:
        size = cuts.pop() if cuts else len(rest)
        piece = rest[: min(size, len(cutter.room()))]
        cutter.room()[: len(piece)] = piece
        cutter.received(len(piece))
        rest = rest[len(piece) :]
    assert got == sent


@given(
    st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: b"NATS/1.0\r\n" + rest + b"\r\n\r\n")
)
@example(b"NATS/1.0 503\r\n\r\n")
@example(b"NATS/1.0\r\nStatus: 503\r\n\r\n")
@example(b"NATS/1.0\r\n" + bytes(MAX_HEADERS))
def test_a_header_block_is_understood_or_malformed(block: bytes) -> None:
    headers = parse_headers(block)
    lines = block.split(b"\r\n")
    if MALFORMED not in headers:
        assert all(name.isascii() and name.isprintable() for name in headers)
        assert all(
            value.isprintable() for name, value in headers.items() if name not in (STATUS, "Description")
        )
        assert not block or (block.startswith(b"NATS/1.0") and block.endswith(b"\r\n\r\n"))
    if STATUS in headers:
        assert lines[0] != b"NATS/1.0"


names = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=9
)
values = st.text(max_size=20).filter(lambda text: text.isprintable()).map(str.strip)


@given(st.dictionaries(names.filter(lambda name: name not in (MALFORMED, STATUS)), values, max_size=6))
def test_headers_survive(headers: dict[str, str]) -> None:
    block = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    assert parse_headers(block.encode()) == headers


def test_after_a_crowd_of_messages_the_next_reading_is_a_short_one() -> None:
    """Else a flood of small requests is read on and on, and those that were taken get no turn."""
    cutter = Cutter(lambda *_: None, lambda _: None)
    whole = len(cutter.room())
    small, large = Sent(1, b"a", b"", b"", b"x").wire(), Sent(1, b"a", b"", b"", bytes(whole // 2)).wire()
    for piece, is_short in [(small * 500, True), (small, False), (large, False)]:
        cutter.room()[: len(piece)] = piece
        cutter.received(len(piece))
        assert (len(cutter.room()) < whole // 10) is is_short
