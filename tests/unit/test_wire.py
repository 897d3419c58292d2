from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from natsblob import errors, wire
from natsblob.digest import Digest
from natsblob.errors import BadRequestError, BlobError

DIGEST = Digest.of(b"natsblob")


def test_info_goes_over_the_wire_as_documented() -> None:
    info = wire.Info(
        digest=DIGEST,
        size=3,
        chunks=1,
        chunk_size=1024,
        created=True,
        modified=datetime(2026, 1, 2, tzinfo=UTC),
    )
    assert json.loads(wire.encode(info)) == {
        "digest": DIGEST.hex,
        "size": 3,
        "chunks": 1,
        "chunk_size": 1024,
        "created": True,
        "modified": "2026-01-02T00:00:00Z",
    }
    assert wire.decode(wire.encode(info), wire.Info) == info


def test_unknown_fields_are_ignored() -> None:
    body = json.dumps({"digest": DIGEST.hex, "colour": "blue"}).encode()
    assert wire.decode(body, wire.GetRequest) == wire.GetRequest(digest=DIGEST)


@pytest.mark.parametrize(
    "field",
    [
        {"digest": DIGEST.hex.upper()},
        {"digest": DIGEST.hex + "\n"},
        {"digest": 5},
        {"digest": None},
        {"offset": -1},
        {"offset": 1.5},
        {"offset": "1"},
        {"offset": 2**53 + 1},
        {"length": 10**400},
        {"mode": "sideways"},
        {"count": 0},
        {"first": -1},
        {"verify": "yes"},
    ],
)
def test_a_field_out_of_its_range_or_type_is_a_bad_request(field: dict[str, object]) -> None:
    body = json.dumps({"digest": DIGEST.hex, **field}).encode()
    with pytest.raises(BadRequestError):
        wire.decode(body, wire.GetRequest)


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[" * 100_000, b'"\xff"', b'{"digest":"\\ud800"}'])
def test_malformed_json_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        wire.decode(body, wire.GetRequest)


@pytest.mark.parametrize("prefix", ["A", "g", "0" * 65, "ab\n", "../"])
def test_a_list_goes_by_lower_case_hex_digits(prefix: str) -> None:
    with pytest.raises(BadRequestError):
        wire.decode(json.dumps({"prefix": prefix}).encode(), wire.ListRequest)


@pytest.mark.parametrize("limit", [0, wire.MAX_BATCH + 1])
def test_a_page_has_a_bound(limit: int) -> None:
    with pytest.raises(BadRequestError):
        wire.decode(json.dumps({"limit": limit}).encode(), wire.ListRequest)


@pytest.mark.parametrize(
    "body", [b"", DIGEST.hex.upper().encode(), DIGEST.hex.encode() + b"\n", b"\xff" * 64]
)
def test_a_body_that_is_no_digest_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        wire.decode_digest(body)


WIRE_ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, BlobError)
    and kind not in (BlobError, errors.NoRespondersError, errors.SetupError, errors.UnprovenError)
]


@pytest.mark.parametrize("kind", WIRE_ERRORS)
def test_an_error_arrives_as_what_it_was(kind: type[BlobError]) -> None:
    body, headers = wire.encode_error(kind("what happened", size=5, where="here"))
    assert headers[wire.ERROR_CODE] == str(kind.code)
    assert json.loads(body)["error"]["retryable"] is kind.retryable
    received = wire.decode_error(body, headers)
    assert type(received) is kind
    assert received is not None
    assert received.details == {"size": 5, "where": "here"}


def test_a_reply_without_an_error_code_is_no_error() -> None:
    assert wire.decode_error(b'{"error": "in the payload of a blob"}', {}) is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [("404", errors.BlobNotFoundError), ("503", errors.UnavailableError), ("999", errors.InternalError)],
)
def test_an_error_of_which_only_the_headers_are_understood_goes_by_its_code(
    code: str, kind: type[BlobError]
) -> None:
    assert type(wire.decode_error(b"not JSON", {wire.ERROR_CODE: code})) is kind


@pytest.mark.parametrize("code", ["", "4O4", "-1", "9" * 5_000, "٤٠٤"])
def test_a_code_that_is_none_is_an_internal_error(code: str) -> None:
    assert type(wire.decode_error(b"", {wire.ERROR_CODE: code})) is errors.InternalError


def test_details_may_have_any_name() -> None:
    body = wire.encode(
        wire.ErrorReply(
            wire.ErrorInfo(409, "conflict", "text", retryable=False, details={"message": 1, "self": "me"})
        )
    )
    received = wire.decode_error(body, {wire.ERROR_CODE: "409"})
    assert isinstance(received, errors.ConflictError)
    assert received.details == {"message": 1, "self": "me"}


def test_chunk_headers_name_index_checksum_and_message() -> None:
    headers = wire.chunk_headers("upload", 7, b"123456789")
    assert headers == {wire.CHUNK: "7", wire.SUM: "crc32=cbf43926", wire.MESSAGE_ID: "upload.7"}
    assert wire.chunk_index(headers) == 7


@pytest.mark.parametrize("text", ["", "-1", "1.0", "x", " 1", "٣", "9" * 17])
def test_a_chunk_index_is_a_plain_number(text: str) -> None:
    assert wire.chunk_index({wire.CHUNK: text}) is None


@pytest.mark.parametrize("prefix", ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "$JS", "a\n", "é"])
def test_a_prefix_that_is_no_subject_is_refused(prefix: str) -> None:
    with pytest.raises(BadRequestError):
        wire.Subjects(prefix)


@pytest.mark.parametrize("text", ["", "a" * 21, "a" * 23, "a" * 21 + ".", "a" * 21 + "*", "a" * 22 + "\n"])
def test_an_upload_id_cannot_change_the_meaning_of_a_subject(text: str) -> None:
    assert not wire.is_upload_id(text)
