"""Room that is left for deleting and for what is being committed, in a bucket that only workers write into.

Decisions, metadata and delete markers are small, and a bucket that chunks fill to the last byte has no room
for them (ADR 0017). If publishers write chunks themselves, nobody can keep that room.
"""

from __future__ import annotations

import asyncio
from typing import Final

from natsblob.errors import InsufficientStorageError
from natsblob.objectstore.bucket import Bucket

MOST: Final = 1024 * 1024
"""Bytes of the reserve; of a small bucket a sixteenth."""
_FRESH_FOR: Final = 1.0
"""Seconds for which the bucket's size is taken to be what it was, with what this worker has added."""
_FRESH_FOR_REFUSAL: Final = 0.1
_OVERHEAD: Final = 1536
"""Bytes that a message takes beside its payload, with metadata if it is the only one, at most about."""


class Reserve:
    """What one worker knows of the room in a bucket. Workers share the bucket: each looks every second."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._left = 0
        self._seen_at = -_FRESH_FOR

    async def take(self, size: int) -> None:
        """To be called before so many bytes of a blob are stored.

        `InsufficientStorageError` if they would touch the reserve.
        """
        limit = await self._bucket.relayed_limit()
        if limit is None:
            return
        size += _OVERHEAD
        reserve = min(MOST, limit // 16)
        await self._look(limit, _FRESH_FOR)
        if self._left - size < reserve:
            await self._look(limit, _FRESH_FOR_REFUSAL)
        if self._left - size < reserve:
            raise InsufficientStorageError(
                "the bucket has no room: what is left is kept for deleting. Nothing was stored; "
                "delete blobs or raise the limit"
            )
        self._left -= size

    async def _look(self, limit: int, fresh_for: float) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._seen_at >= fresh_for:
            self._left, self._seen_at = limit - (await self._bucket.info()).state.bytes, now
