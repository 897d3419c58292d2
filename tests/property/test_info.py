"""Metadata and marks, whoever wrote them: understood, or refused in the one way that is meant for it."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from natsblob.broker.jetstream import Stored
from natsblob.digest import Digest
from natsblob.errors import BlobCorruptError
from natsblob.objectstore.info import (
    Entry,
    Layout,
    ObjectInfo,
    decode_marks,
    digest_of,
    encode_info,
    encode_marks,
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
    nuid=st.text(),
    size=st.integers(0, 2**53),
    chunks=st.integers(0, 2**53),
    digest=st.text(),
    deleted=st.booleans(),
)


def stored(data: bytes) -> Stored:
    return Stored("$O.b.M.x", 7, datetime.now(UTC), {}, data)


@given(st.binary() | st.dictionaries(st.sampled_from(FIELDS), json_values).map(msgspec.json.encode))
@example(b'{"name":"a","bucket":"b","nuid":"c","size":-1,"chunks":-5,"options":{"max_chunk_size":-3}}')
@example(b"[" * 100_000)
@example(b'{"name":"\xff"}')
@example(b'{"name":"a","bucket":"b","nuid":"c","headers":' + b"[" * 50_000 + b"}")
def test_metadata_is_understood_or_corrupt(data: bytes) -> None:
    try:
        info = Entry.decode(stored(data)).info
    except BlobCorruptError:
        return
    assert info.size >= 0
    assert info.chunks >= 0
    assert info.chunk_size > 0
    assert info.marks is None or info.marks.every > 0
    assert digest_of(info) is None or isinstance(digest_of(info), Digest)


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
