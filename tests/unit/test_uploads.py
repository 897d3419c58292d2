"""Names of uploads, of their stages, and ranges of chunks."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natsblob.errors import UploadExpiredError
from natsblob.service.uploads import StagedUploads, new_upload, ranges, smallest, stage_of
from natsblob.wire import is_upload_id


def test_a_stage_is_derived_from_its_upload_and_does_not_tell_it() -> None:
    uploads = {new_upload() for _ in range(100)}
    stages = {stage_of(upload) for upload in uploads}
    assert len(uploads) == len(stages) == 100
    assert uploads.isdisjoint(stages)
    assert all(is_upload_id(name) for name in uploads | stages)
    assert {stage_of(upload) for upload in uploads} == stages


@pytest.mark.parametrize("name", ["", "a", "a" * 21, "a" * 23, "a" * 21 + ".", "*" * 22, "a" * 21 + "\n"])
def test_what_names_no_upload(name: str) -> None:
    with pytest.raises(UploadExpiredError):
        stage_of(name)


@given(st.sets(st.integers(0, 200)))
def test_ranges_are_the_indexes_in_as_few_runs_as_possible(indexes: set[int]) -> None:
    found = ranges(sorted(indexes))
    assert {index for first, last in found for index in range(first, last + 1)} == indexes
    assert all(before[1] + 1 < after[0] for before, after in pairwise(found))


@pytest.mark.parametrize(
    ("own", "most", "chosen"),
    [(1024, None, 1024), (1024, 10, 1024), (2**19, 2**16, 2**16), (2**19, 1, 4096), (2**19, 2**30, 2**19)],
)
def test_chunks_are_of_a_size_that_both_can_publish(own: int, most: int | None, chosen: int) -> None:
    assert smallest(own, most) == chosen


class Backend:
    """A store into which anybody may publish, the taps on it, and a worker that relays."""

    async def direct_subject(self, stage: str, *, anew: bool = False) -> str:
        return f"chunks.{stage}"

    async def watch(self, stage: str, subject: str) -> None:
        """Nothing comes past."""

    def begin(self, stage: str, *, is_whole: bool, chunk_size: int) -> tuple[str, int]:
        return f"relay.{stage}", 2048


@pytest.mark.parametrize("relayed", [False, True])
async def test_what_may_be_unanswered_does_not_grow_with_the_chunks(*, relayed: bool) -> None:
    """A server's max_payload may be raised while a worker runs."""
    size = 4096
    backend = cast("Any", Backend())
    uploads = StagedUploads(
        backend,
        backend,
        backend,
        commit_subject="commit",
        chunk_size=lambda: size,
        window=2048,
        expiry=timedelta(hours=1),
    )
    assert (await uploads.open(relayed=relayed)).window == 2048
    size = 512 * 1024
    opened = await uploads.open(relayed=relayed)
    assert (opened.chunk_size, opened.window) == (size, 16)
