"""Whatever comes over the wire is understood or refused; nothing else happens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from natsblob import chunking, wire
from natsblob.digest import Digest, Hasher
from natsblob.errors import BadRangeError, BadRequestError, BlobError, ConflictError

REQUESTS: list[type[Any]] = [
    wire.GetRequest,
    wire.ListRequest,
    wire.OpenRequest,
    wire.StatusRequest,
    wire.CommitRequest,
    wire.AbortRequest,
    list[Digest],
]
FIELDS = [
    "digest",
    "offset",
    "length",
    "mode",
    "first",
    "count",
    "verify",
    "after",
    "limit",
    "prefix",
    "size",
]
FIELDS += ["upload", "chunks", "marks", "every", "seqs"]

digests = st.binary(min_size=32, max_size=32).map(Digest)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | digests.map(str),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=6)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", REQUESTS)
@given(data=st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_a_request_is_understood_or_a_bad_request(kind: type[Any], data: bytes) -> None:
    try:
        request = wire.decode(data, kind)
    except BadRequestError:
        return
    assert wire.decode(wire.encode(request), kind) == request


@given(st.binary(max_size=80) | st.text(max_size=70).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_body_is_a_digest_or_a_bad_request(data: bytes) -> None:
    try:
        assert wire.decode_digest(data).hex.encode() == data
    except BadRequestError:
        return


@given(st.text())
def test_an_object_store_digest_is_read_or_a_bad_request(text: str) -> None:
    for candidate in (text, f"SHA-256={text}"):
        try:
            digest = Digest.from_adr20(candidate)
        except BadRequestError:
            continue
        assert Digest.from_adr20(digest.adr20()) == digest


@given(digests)
def test_a_digest_survives_both_ways_of_writing_it(digest: Digest) -> None:
    assert Digest.parse(str(digest)) == Digest.from_adr20(digest.adr20()) == digest


@given(
    digest=digests,
    offset=st.none() | st.integers(0, 2**53),
    length=st.none() | st.integers(0, 2**53),
    first=st.integers(0, 2**53),
    count=st.integers(1, 2**32),
)
def test_a_get_request_survives_the_wire(
    digest: Digest, offset: int | None, length: int | None, first: int, count: int
) -> None:
    request = wire.GetRequest(digest=digest, offset=offset, length=length, first=first, count=count)
    assert wire.decode(wire.encode(request), wire.GetRequest) == request


@given(
    st.text(max_size=2_000),
    st.dictionaries(st.text(max_size=5), st.integers(-(2**53), 2**53) | st.booleans()),
)
def test_an_error_reply_fits_a_header_and_keeps_its_details(text: str, details: dict[str, int]) -> None:
    body, headers = wire.encode_error(ConflictError(text, **details))
    assert headers[wire.ERROR_TEXT].isprintable()
    assert 0 < len(headers[wire.ERROR_TEXT]) <= 500
    received = wire.decode_error(body, headers)
    assert isinstance(received, ConflictError)
    assert received.details == details


@given(
    body=st.binary() | json_values.map(lambda value: json.dumps({"error": value}).encode()), code=st.text()
)
@example(body=b"", code="9" * 5_000)
@example(body=b'{"error": {"code": 400, "name": "\xff"}}', code="400")
@example(body=b'{"error": {"x": ' + b"[" * 50_000 + b"}}", code="400")
def test_whatever_an_error_reply_holds_it_becomes_an_error(body: bytes, code: str) -> None:
    assert isinstance(wire.decode_error(body, {wire.ERROR_CODE: code}), BlobError)


@given(st.integers(0, 2**31))
def test_a_chunk_index_is_what_its_digits_say(index: int) -> None:
    assert wire.chunk_index({wire.CHUNK: str(index)}) == index


@given(st.text())
def test_a_chunk_index_is_a_number_or_nothing(text: str) -> None:
    index = wire.chunk_index({wire.CHUNK: text})
    assert index is None or (index >= 0 and text.isdigit())


SMALL = st.integers(0, 70)


@given(data=st.binary(max_size=64), chunk_size=st.integers(1, 17), offset=SMALL, wanted=st.none() | SMALL)
@example(data=b"", chunk_size=1, offset=0, wanted=None)
@example(data=bytes(16), chunk_size=8, offset=8, wanted=8)
@example(data=bytes(17), chunk_size=8, offset=7, wanted=2)
def test_a_span_cuts_what_a_slice_would(
    data: bytes, chunk_size: int, offset: int, wanted: int | None
) -> None:
    size = len(data)
    if offset > size:
        with pytest.raises(BadRangeError):
            chunking.span(size, chunk_size, offset, wanted)
        return
    span = chunking.span(size, chunk_size, offset, wanted)
    chunks = [data[at : at + chunk_size] for at in range(0, size, chunk_size)]
    covered = b"".join(chunks[span.first : span.first + span.count])
    assert covered[span.skip : span.skip + span.length] == data[offset:][:wanted]
    # Not one chunk more than holds a byte of the range.
    assert (span.count == 0) == (span.length == 0)
    assert span.count == 0 or (
        span.skip < chunk_size and span.skip + span.length > (span.count - 1) * chunk_size
    )


@given(size=st.integers(0, 2**53), chunk_size=st.integers(1, 2**26))
def test_the_chunks_add_up_to_the_blob(size: int, chunk_size: int) -> None:
    count = chunking.count(size, chunk_size)
    last = chunking.length(count - 1, size, chunk_size) if count else 0
    assert max(0, count - 1) * chunk_size + last == size
    assert (last > 0) == (size > 0)
    assert chunking.length(count, size, chunk_size) == 0


@given(st.lists(st.binary(max_size=40)))
def test_a_hasher_does_not_care_how_bytes_are_cut(parts: list[bytes]) -> None:
    hasher = Hasher()
    for part in parts:
        hasher.update(part)
    whole = b"".join(parts)
    assert (hasher.digest(), hasher.size) == (Digest.of(whole), len(whole))
