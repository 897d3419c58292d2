from __future__ import annotations

import pytest

from natsblob import chunking
from natsblob.chunking import MESSAGE_RESERVE, Span
from natsblob.errors import BadRangeError, ConflictError

CHUNK = 8


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (0, []),
        (1, [1]),
        (CHUNK - 1, [CHUNK - 1]),
        (CHUNK, [CHUNK]),
        (CHUNK + 1, [CHUNK, 1]),
        (3 * CHUNK, [CHUNK, CHUNK, CHUNK]),
    ],
)
def test_all_chunks_are_full_but_the_last(size: int, lengths: list[int]) -> None:
    assert chunking.count(size, CHUNK) == len(lengths)
    assert [chunking.length(index, size, CHUNK) for index in range(len(lengths))] == lengths
    assert chunking.length(len(lengths), size, CHUNK) == 0


@pytest.mark.parametrize(
    ("offset", "wanted", "expected"),
    [
        (0, None, Span(first=0, count=3, skip=0, length=20)),
        (0, 0, Span(first=0, count=0, skip=0, length=0)),
        (20, None, Span(first=0, count=0, skip=0, length=0)),
        (7, 2, Span(first=0, count=2, skip=7, length=2)),
        (8, 8, Span(first=1, count=1, skip=0, length=8)),
        (19, 100, Span(first=2, count=1, skip=3, length=1)),
    ],
)
def test_a_span_names_the_chunks_that_hold_a_range(offset: int, wanted: int | None, expected: Span) -> None:
    assert chunking.span(20, CHUNK, offset, wanted) == expected


def test_a_range_that_begins_past_the_end_is_an_error_that_tells_the_size() -> None:
    with pytest.raises(BadRangeError) as caught:
        chunking.span(20, CHUNK, 21, None)
    assert caught.value.details["size"] == 20


@pytest.mark.parametrize("max_payload", [MESSAGE_RESERVE + 1, 64 * 1024, 1024**2, 8 * 1024**2])
def test_a_chunk_leaves_room_for_headers(max_payload: int) -> None:
    chosen = chunking.chunk_size_for(max_payload)
    assert 1 <= chosen <= chunking.DEFAULT_CHUNK_SIZE
    assert chosen + MESSAGE_RESERVE <= max_payload


@pytest.mark.parametrize(("size", "expected"), [(0, 5), (8, 9), (9, 9), (100, None), (100, 10), (5, 8)])
def test_a_blob_is_cut_as_expected(size: int, expected: int | None) -> None:
    chunking.check_cut(size, 10, expected)


@pytest.mark.parametrize(("size", "expected"), [(100, 9), (100, 11), (10, 9), (11, 20)])
def test_an_index_into_other_chunks_means_other_bytes(size: int, expected: int) -> None:
    with pytest.raises(ConflictError):
        chunking.check_cut(size, 10, expected)
