"""Header blocks that anybody may have sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natsblob.broker.message import MALFORMED, MAX_HEADERS, Message, parse_headers

GOOD = b"NATS/1.0\r\nBlob-Chunk: 7\r\nNats-Msg-Id: a.7\r\n\r\n"


def test_well_formed_headers() -> None:
    assert parse_headers(GOOD) == {"Blob-Chunk": "7", "Nats-Msg-Id": "a.7"}
    assert parse_headers(b"") == {}
    assert parse_headers(None) == {}


@pytest.mark.parametrize(
    ("block", "status", "description"),
    [
        (b"NATS/1.0 503\r\n\r\n", "503", ""),
        (b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n", "204", "EOB"),
        (b"NATS/1.0 408 Request Timeout\r\n\r\n", "408", "Request Timeout"),
    ],
)
def test_a_status_is_taken_from_the_first_line(block: bytes, status: str, description: str) -> None:
    headers = parse_headers(block)
    assert (headers["Status"], headers["Description"]) == (status, description)
    assert MALFORMED not in headers


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\nStatus: 204\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\n: no name\r\n\r\n",
        b"NATS/1.0\r\nwith space: x\r\n\r\n",
        b"NATS/1.0\r\nA: \x00\r\n\r\n",
        b"NATS/1.0\r\nA: \xff\r\n\r\n",
        b"NATS/1.0\r\nA: a",
        b"Blob-Chunk: 7\r\n\r\n",
        b"NATS/1.0\r\nA: " + b"a" * MAX_HEADERS + b"\r\n\r\n",
        f"NATS/1.0\r\n{MALFORMED}: 1\r\n\r\n".encode(),
    ],
)
def test_malformed_blocks_are_marked_and_give_no_status(block: bytes) -> None:
    headers = parse_headers(block)
    assert MALFORMED in headers
    assert "Status" not in headers


@given(st.binary(max_size=300))
def test_whatever_comes_is_parsed(tail: bytes) -> None:
    for block in (tail, GOOD[:8] + tail, GOOD[:-2] + tail):
        for name, value in parse_headers(block).items():
            assert isinstance(name, str)
            assert isinstance(value, str)


def test_what_a_server_says_of_a_subject_without_listeners_is_no_stored_message() -> None:
    """It names the subject since 2.12; a stored message has a sequence beside it, whatever else it says."""
    said = Message("_INBOX.a", "", b"", parse_headers(b"NATS/1.0 503\r\nNats-Subject: blob.put\r\n\r\n"))
    assert (said.status, said.is_stored) == ("503", False)
    stored = b"NATS/1.0 503\r\nNats-Stream: OBJ_b\r\nNats-Subject: $O.b.C.x\r\nNats-Sequence: 7\r\n\r\n"
    kept = Message("_INBOX.a", "", b"x", parse_headers(stored))
    assert (kept.status, kept.is_stored) == (None, True)
