"""Metadata and marks, whoever wrote them: understood, or refused in the one way that is meant for it."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from natsblob.broker.jetstream import Stored
from natsblob.digest import Digest
from natsblob.objectstore.info import (
    Entry,
    Layout,
    ObjectInfo,
    claim_of,
    decode_marks,
    digest_of,
    encode_info,
    encode_marks,
    is_token,
)
from natsblob.wire import MAX_MARKS, marks_of
from tests.property.test_wire import json_values

FIELDS = [
    "name",
    "bucket",
    "nuid",
    "size",
    "chunks",
    "digest",
    "mtime",
    "deleted",
    "options",
    "metadata",
    "link",
]
infos = st.builds(
    ObjectInfo,
    name=st.text(),
    bucket=st.text(),
    nuid=st.from_regex(r"[A-Za-z0-9]{22}", fullmatch=True),
    size=st.integers(0, 2**53),
    chunks=st.integers(0, 2**53),
    digest=st.text(),
    deleted=st.booleans(),
)


def stored(data: bytes, subject: str = "$O.b.M.x") -> Stored:
    return Stored(subject, 7, datetime.now(UTC), {}, data)


@given(st.binary() | st.dictionaries(st.sampled_from(FIELDS), json_values).map(msgspec.json.encode))
@example(b'{"name":"a","bucket":"b","nuid":"c","size":-1,"chunks":-5,"options":{"max_chunk_size":-3}}')
@example(b"[" * 100_000)
@example(b'{"name":"\xff"}')
@example(b'{"name":"a","bucket":"b","nuid":"c","headers":' + b"[" * 50_000 + b"}")
def test_metadata_is_understood_or_unreadable(data: bytes) -> None:
    entry = Entry.decode(stored(data))
    info = entry.info
    assert entry.is_readable or not entry.is_content
    assert info.size >= 0
    assert info.chunks >= 0
    assert info.chunk_size > 0
    assert info.marks is None or info.marks.every > 0
    assert digest_of(info) is None or isinstance(digest_of(info), Digest)
    assert not entry.is_content or is_token(info.nuid)


@pytest.mark.parametrize(
    "body",
    [
        {"description": None, "headers": None, "metadata": None, "options": None, "deleted": None},
        {"options": {"link": None, "max_chunk_size": 131072.0}, "mtime": 5, "unknown": [1]},
        {"size": 5.0, "chunks": 1.0},
        {"metadata": {"a": 1, "b": None}, "headers": 7},
        {"name": None, "bucket": None},
        {"name": "another"},
    ],
)
def test_what_other_clients_write_is_understood(body: dict[str, object]) -> None:
    complete = {"name": "one", "bucket": "b", "nuid": "n", "size": 5, "chunks": 1, "digest": "d", **body}
    for subject in ("$O.b.M.b25l", "$O.b.M.b25l="):  # padded or not
        entry = Entry.decode(stored(msgspec.json.encode(complete), subject))
        assert entry.is_content
        assert (entry.info.name, entry.info.nuid, entry.info.size, entry.info.chunks) == ("one", "n", 5, 1)
        assert entry.info.chunk_size in (5, 131072)


@pytest.mark.parametrize("nuid", ["", ">", "*", "a.b", "a b", "a\n", "\u00e4", "x" * 256])
def test_chunks_whose_name_is_no_token_belong_to_no_object(nuid: str) -> None:
    body = {"name": "a", "bucket": "b", "nuid": nuid, "size": 5, "chunks": 1}
    assert not Entry.decode(stored(msgspec.json.encode(body))).is_content


@pytest.mark.parametrize(
    "body", [b'{"nuid":"abc"', b'{"size":-1,"nuid": "abc"}', b'\xff{"nuid":"abc","size":[]}']
)
def test_unreadable_metadata_still_names_its_chunks(body: bytes) -> None:
    entry = Entry.decode(stored(body, "$O.b.M.b25l"))
    assert (entry.is_readable, entry.info.name, entry.info.nuid) == (False, "one", "abc")


DIGEST = Digest.of(b"one")


@pytest.mark.parametrize(
    "text",
    [
        DIGEST.adr20(),
        DIGEST.adr20().rstrip("="),
        DIGEST.hex,
        DIGEST.hex.upper(),
        f"SHA-256={DIGEST.hex}",
        DIGEST.adr20().replace("SHA", "sha"),
        "SHA-256=" + b64encode(DIGEST.raw).decode(),
    ],
)
def test_a_digest_is_understood_in_any_spelling(text: str) -> None:
    assert claim_of(ObjectInfo("a", "b", "c", digest=text)) == DIGEST


@pytest.mark.parametrize("text", ["", "MD5=abc", "SHA-512=" + "A" * 86, "SHA-256=", "\u0661" * 64])
def test_what_is_no_digest_claims_none(text: str) -> None:
    assert claim_of(ObjectInfo("a", "b", "c", digest=text)) is None


@given(infos)
def test_metadata_survives(info: ObjectInfo) -> None:
    again = Entry.decode(stored(encode_info(info))).info
    assert msgspec.structs.replace(again, mtime="") == info


@given(st.text() | st.from_regex(r"-?[0-9]{1,30}:(-?[0-9]{0,30},){0,5}-?[0-9]{0,30}", fullmatch=True))
@example("1:" + "9" * 5000)
@example("\u0661:\u0662")
@example("1:" + "1," * 100_000 + "1")
def test_marks_are_understood_or_none(text: str) -> None:
    marks = decode_marks(text)
    if marks is not None:
        assert 0 < marks.every <= 2**32
        assert all(0 <= seq <= 2**53 for seq in marks.seqs)
        assert len(marks.seqs) <= MAX_MARKS


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=60).map(sorted))
def test_marks_survive(seqs: list[int]) -> None:
    marks = marks_of(seqs)
    assert decode_marks(encode_marks(marks)) == marks
    assert marks.seqs == (seqs[:1] if len(marks.seqs) == 1 else seqs[:: marks.every])


@given(st.text())
def test_a_subject_is_an_object_s_or_not(text: str) -> None:
    layout = Layout("b")
    assert layout.name_of(layout.meta(text)) == text
    for subject in (text, f"$O.b.M.{text}", f"$O.b.C.{text}"):
        assert layout.name_of(subject) is None or isinstance(layout.name_of(subject), str)
        assert layout.nuid_of(subject) is None or "." not in str(layout.nuid_of(subject))
