"""A short run of what `make fuzz` does for longer, and that it would notice."""

from __future__ import annotations

import json

import pytest

from natsblob.errors import BadRequestError, BlobCorruptError, BlobError, NotAllowedError
from natsblob.wire import encode_error
from tests.fuzz.link import Answer
from tests.fuzz.oracle import BAD, OK, World, expected, judged_error
from tests.fuzz.run import fuzz

REQUESTS = 20_000
GROWTH = 1.2
"""Of the worker's memory since three tenths of the requests: it begins with empty pools and caches."""
KNOWN, POOL, ABSENT = "1" * 64, "2" * 64, "3" * 64
CAPS = {"window": 4, "chunk_size": 4, "max_inline": 8, "max_batch": 2, "max_blob": 100}
WORLD = World({KNOWN: bytes(10)}, {POOL: b"pool"}, CAPS)


async def test_requests_of_every_kind_are_answered_as_the_protocol_says_or_dropped() -> None:
    report = await fuzz(seed=20261120, requests=REQUESTS)
    assert not report.violations, "\n".join(report.lines())
    assert report.answered + report.dropped == report.requests == REQUESTS
    assert {
        OK,
        BAD,
        "blob_not_found",
        "bad_range",
        "digest_mismatch",
        "upload_expired",
    } <= report.outcomes.keys()
    assert report.uploads > 0
    assert report.memory[-1] < report.memory[2] * GROWTH, report.lines()


@pytest.mark.parametrize(
    ("endpoint", "body", "names"),
    [
        ("get", KNOWN.encode(), {"too_large"}),
        ("get", {"digest": KNOWN, "offset": 4, "length": 6}, {OK}),
        ("get", {"digest": KNOWN, "offset": 11}, {"bad_range"}),
        ("get", {"digest": POOL, "mode": "stream"}, {OK, "blob_not_found"}),
        ("get", {"digest": KNOWN, "mode": "stream", "first": 3}, {"bad_range"}),
        ("get", {"digest": KNOWN, "mode": "stream", "count": 5}, {BAD}),
        ("get", {"digest": KNOWN, "offset": 1.0}, {BAD}),
        ("stat", ABSENT.encode(), {"blob_not_found"}),
        ("stat", ABSENT.upper().encode() + b"A", {BAD}),
        ("has", [ABSENT] * 3, {BAD}),
        ("put.status", {"upload": "A" * 22}, {"upload_expired"}),
        ("put.commit", {"upload": "A" * 22, "size": 1}, {BAD}),
        ("put.commit", {"upload": "A" * 22, "size": 101, "chunks": 1}, {"too_large"}),
    ],
)
def test_what_may_be_answered(endpoint: str, body: object, names: set[str]) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert expected(WORLD, endpoint, data, None).names == names


def test_other_bytes_are_noticed() -> None:
    check = expected(
        WORLD, "get", json.dumps({"digest": KNOWN, "offset": 4, "length": 6}).encode(), None
    ).check
    assert not check(Answer(bytes(6), {}, ""))
    assert check(Answer(bytes(5), {}, ""))


class StrangeError(BadRequestError):
    code = 499


@pytest.mark.parametrize(
    ("error", "is_right"),
    [
        (BadRequestError("a digest is hex"), True),
        (BlobCorruptError("the bytes are bad"), True),
        (StrangeError("another code"), False),
        (NotAllowedError("no row of the table"), False),
        (BadRequestError("ValueError('x')"), False),
        (BadRequestError("<nats.aio.client object at 0x7f>"), False),
        (BadRequestError("cannot open /var/lib or /home/me/blobs"), False),
    ],
)
def test_an_error_reply_is_held_to_the_table(error: BlobError, is_right: bool) -> None:
    body, headers = encode_error(error)
    assert (judged_error(WORLD, Answer(body, headers, ""))[1] == "") is is_right
