"""Uploads of large blobs: opened, filled chunk by chunk, committed by any worker or aborted.

The client knows its upload by a secret; the *stage*, under which the chunks lie and which readers of
the stored chunks can see, is derived from it. So who can read a blob cannot abort or commit its upload.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from natsblob import wire
from natsblob.errors import BadRequestError, DigestMismatchError, UploadExpiredError
from natsblob.service.forward import Forwarder
from natsblob.service.tap import Taps
from natsblob.store.base import Staging
from natsblob.wire import CommitRequest, Info, Opened, UploadStatus


class Uploads(Protocol):
    """What a worker does for the uploads of its clients."""

    async def takes_direct(self) -> bool:
        """Whether publishers may put the chunks of an upload past this worker."""
        ...

    async def open(
        self, upload: str | None = None, *, relayed: bool = False, most: int | None = None
    ) -> Opened:
        """Begin an upload, or go on with one; with `relayed` the chunks come to this worker in any case.

        The client publishes chunks of `most` bytes at most.
        `UploadExpiredError` if an upload is named that this worker cannot go on with.
        """
        ...

    async def status(self, upload: str) -> UploadStatus:
        """Which chunks are stored; `UploadExpiredError` if the upload is not known."""
        ...

    async def commit(self, request: CommitRequest) -> Info:
        """Make the upload a blob. Repeating it is harmless."""
        ...

    async def abort(self, upload: str) -> None:
        """Drop the upload. Repeating it is harmless."""
        ...


def new_upload() -> str:
    """A secret of 22 hex digits."""
    return secrets.token_hex(11)


def stage_of(upload: str) -> str:
    """Where the chunks of an upload lie; `UploadExpiredError` if no upload is named so."""
    if not wire.is_upload_id(upload):
        raise UploadExpiredError("no such upload; begin again")
    return hashlib.sha256(upload.encode()).hexdigest()[:22]


def smallest(chunk_size: int, most: int | None) -> int:
    """The size of chunks that both this service and the client can publish."""
    return chunk_size if most is None else min(chunk_size, max(most, wire.LEAST_CHUNK))


def ranges(indexes: list[int]) -> list[tuple[int, int]]:
    """Ascending indexes as inclusive ranges."""
    found: list[tuple[int, int]] = []
    for index in indexes:
        if found and index == found[-1][1] + 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found


class StagedUploads:
    """Uploads whose chunks are staged in the store: by their publishers directly, or by workers.

    A worker that published the chunks itself, or watched them pass, knows their digest when it is asked to
    commit. Another worker reads them back, and so does this one if it missed something.
    """

    def __init__(
        self,
        store: Staging,
        taps: Taps,
        forwarder: Forwarder,
        *,
        commit_subject: str,
        chunk_size: Callable[[], int],
        window: int,
        expiry: timedelta,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._taps = taps
        self._forwarder = forwarder
        self._commit_subject = commit_subject
        self._chunk_size = chunk_size
        self._window = window
        self._window_bytes = window * chunk_size()
        self._expiry = expiry
        self._now = now

    async def takes_direct(self) -> bool:
        return await self._store.direct_subject(stage_of(new_upload())) is not None

    async def open(
        self, upload: str | None = None, *, relayed: bool = False, most: int | None = None
    ) -> Opened:
        chunk_size = smallest(self._chunk_size(), most)
        is_new = upload is None
        upload = upload or new_upload()
        stage = stage_of(upload)
        if not is_new and await self._store.is_settled(stage):
            raise UploadExpiredError("the upload is committed or dropped already; no more chunks are taken")
        # Chunks grow if the server's max_payload is raised; what is unanswered at a time does not.
        window = max(1, min(self._window, self._window_bytes // chunk_size))
        subject = None if relayed else await self._store.direct_subject(stage, anew=not is_new)
        if subject is None:
            relay, granted = self._forwarder.begin(stage, is_whole=is_new, chunk_size=chunk_size)
            return self._opened(upload, relay, chunk_size, min(window, granted), relayed=True)
        if is_new:
            await self._taps.watch(stage, subject)
        return self._opened(upload, subject, chunk_size, window, relayed=False)

    async def status(self, upload: str) -> UploadStatus:
        return UploadStatus(upload, ranges(await self._store.staged(stage_of(upload))))

    async def commit(self, request: CommitRequest) -> Info:
        stage = stage_of(request.upload)
        async with self._forwarder.held_back(stage):
            seen = await self._forwarder.seen(stage, request.chunks)
            seen = seen or await self._taps.seen(stage, request.chunks)
            try:
                info = await self._store.commit(stage, request, seen)
            except (BadRequestError, DigestMismatchError, UploadExpiredError):  # its chunks are dropped
                await self._forget(stage)
                raise
            await self._forget(stage)
        return info

    async def abort(self, upload: str) -> None:
        stage = stage_of(upload)
        await self._forget(stage)
        await self._store.abort(stage)

    async def _forget(self, stage: str) -> None:
        self._forwarder.forget(stage)
        await self._taps.forget(stage)

    def _opened(self, upload: str, subject: str, chunk_size: int, window: int, *, relayed: bool) -> Opened:
        return Opened(
            upload=upload,
            chunk_subject=subject,
            commit_subject=self._commit_subject,
            chunk_size=chunk_size,
            window=window,
            expires=self._now() + self._expiry,
            relayed=relayed,
        )
