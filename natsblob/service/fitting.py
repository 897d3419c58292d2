"""Answers that are cut to what one message holds. What is cut off can be asked for, or comes next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from natsblob import wire
from natsblob.service.messages import Reply
from natsblob.service.replies import Replies
from natsblob.wire import Page, UploadStatus

_DIGEST: Final = 67
"""Bytes of a digest in a JSON array, with quotes and comma."""
_FRAME: Final = 64
"""Bytes of JSON around an array."""


def batch(room: int) -> int:
    """How many digests one message of `room` bytes holds."""
    return max(1, (room - _FRAME) // _DIGEST)


def page(whole: Page, room: int) -> bytes:
    """The page, or as much of its beginning as fits, to be continued behind that."""
    blobs, encoded = whole.blobs, wire.encode(whole)
    while len(encoded) > room and len(blobs) > 1:
        # All entries are of about one length, so this ends soon.
        blobs = blobs[: max(1, min(len(blobs) - 1, len(blobs) * room // len(encoded)))]
        encoded = wire.encode(Page(blobs, blobs[-1].digest))
    return encoded


def status(whole: UploadStatus, room: int) -> bytes:
    """The status, or as many of its ranges as fit: a chunk that is not told of may be published again."""
    stored, encoded = whole.stored, wire.encode(whole)
    while len(encoded) > room and stored:
        stored = stored[: min(len(stored) - 1, len(stored) * room // len(encoded))]
        encoded = wire.encode(UploadStatus(whole.upload, stored))
    return encoded


def frames(whole: Reply, replies: Replies) -> Iterator[Reply]:
    """A chunk as one frame, or in parts if that is larger than a message may be."""
    if replies.fits(whole):
        yield whole
        return
    size = max(1, replies.room)
    for offset in range(0, len(whole.data), size):
        headers = {**whole.headers, wire.PART: f"{offset}/{len(whole.data)}"}
        yield Reply(whole.data[offset : offset + size], headers)
