"""Answers cut to what one message holds."""

from __future__ import annotations

import msgspec
import pytest

from natsblob import wire
from natsblob.digest import Digest
from natsblob.service import fitting
from natsblob.wire import Info, MissingReply, Page, UploadStatus

DIGESTS = sorted((Digest.of(str(number).encode()) for number in range(1000)), key=str)
WHOLE = Page([Info(digest, 5, 1, 512 * 1024) for digest in DIGESTS], None)


@pytest.mark.parametrize("room", [300, 4096, 60 * 1024, 10**7])
@pytest.mark.parametrize("after", [None, DIGESTS[-1]])
def test_a_page_is_cut_and_continued(room: int, after: Digest | None) -> None:
    whole = Page(WHOLE.blobs, after)
    page = wire.decode(fitting.page(whole, room), Page)
    assert len(wire.encode(page)) <= room
    assert page.blobs == whole.blobs[: len(page.blobs)]
    assert page.blobs
    assert page.after == (after if len(page.blobs) == len(whole.blobs) else page.blobs[-1].digest)


def test_a_page_of_one_stays() -> None:
    one = Page(WHOLE.blobs[:1], None)
    assert wire.decode(fitting.page(one, 10), Page) == one


@pytest.mark.parametrize("room", [200, 4096, 60 * 1024])
def test_a_batch_fits_whatever_is_missing(room: int) -> None:
    most = fitting.batch(room)
    some = [DIGESTS[number % 1000] for number in range(most)]
    assert len(wire.encode(MissingReply(some))) <= room
    assert len(wire.encode(MissingReply([*some, *DIGESTS[:2]]))) > room


@pytest.mark.parametrize("room", [60, 4096, 60 * 1024, 10**7])
def test_a_status_is_cut(room: int) -> None:
    whole = UploadStatus("u" * 22, [(2 * number, 2 * number) for number in range(100_000)])
    encoded = fitting.status(whole, room)
    assert len(encoded) <= room
    cut = msgspec.json.decode(encoded, type=UploadStatus)
    assert cut.stored == whole.stored[: len(cut.stored)]
