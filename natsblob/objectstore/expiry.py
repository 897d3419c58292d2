"""What a bucket that keeps messages for a limited time asks of its objects (ADR 0012)."""

from __future__ import annotations

from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.info import Entry, ObjectInfo


async def is_lasting(bucket: Bucket, entry: Entry) -> bool:
    """Whether an object stays for half of the time for which the bucket keeps messages, or for ever.

    By its first chunk, which goes first, and by the server's clock.
    """
    max_age = await bucket.max_age()
    if max_age is None:
        return True
    since = entry.modified
    if entry.info.chunks:
        marks = entry.info.marks
        first = await bucket.jetstream.at(bucket.layout.stream, marks.seqs[0]) if marks else None
        if first is None or first.subject != bucket.layout.chunks(entry.info.nuid):
            return False
        since = first.time
    return await bucket.jetstream.now(bucket.layout.stream) - since < max_age / 2


async def has_expired(bucket: Bucket, info: ObjectInfo) -> bool:
    """Whether the first chunk of an object is older than the bucket keeps messages."""
    if await bucket.max_age() is None:
        return False
    marks = info.marks
    return not marks or not marks.seqs or marks.seqs[0] < (await bucket.info()).state.first_seq
