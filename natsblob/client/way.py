"""The way that the chunks of one upload take: into the stream, or through a worker, and then another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from natsblob.broker.publish import ACK_TIMEOUT, Place
from natsblob.client.service import Service
from natsblob.errors import (
    BlobError,
    DeadlineError,
    NoRespondersError,
    NotAllowedError,
    UploadExpiredError,
)
from natsblob.wire import LEAST_CHUNK, Caps, Opened, OpenRequest

UNHEARD: Final = 1.0
"""Seconds without any answer after which chunks for the stream go through a worker. To notice it takes a
moment more; within two seconds of the first chunk a worker is asked."""
_REOPEN: Final = 10.0
"""Seconds for a worker to take over an upload."""
_FROZEN: Final = 1.5 * ACK_TIMEOUT
"""Seconds without any answer after which whoever answered before is not waited for any more."""

_DIRECT: Final = "direct"
"""The feature of a service that has chunks published into the stream."""


class Way:
    """Where the chunks of an upload go. `opened` is the upload as the last worker described it."""

    def __init__(self, service: Service, caps: Caps, opened: Opened) -> None:
        self._service = service
        self._is_direct = _DIRECT in caps.features
        self._is_staged = caps.backend == "jetstream"
        self.opened = opened
        self._has_left_stream = False

    @property
    def place(self) -> Place:
        subject = self.opened.chunk_subject
        return Place(subject, subject.rpartition(".")[2], self.opened.window)

    async def elsewhere(self, trouble: BlobError, silent: float, answered: Callable[[], int]) -> Place | None:
        """See `Elsewhere`. `UploadExpiredError` if no worker goes on with the upload."""
        request = self._request(trouble, silent, answered())
        if request is None:
            return None
        subject = self._service.subjects.open
        try:
            opened = await self._service.ask(subject, request, Opened, timeout=_REOPEN)
        except BlobError as error:
            if error.retryable:
                return None
            raise
        if isinstance(trouble, NotAllowedError) and not opened.relayed:
            raise trouble
        if request.upload is None and answered():  # the stream took chunks meanwhile
            self._has_left_stream = False
            return None
        is_other = request.upload is not None and opened.upload != request.upload
        if is_other or opened.chunk_size != self.opened.chunk_size:
            raise _lost()
        self.opened = opened
        return self.place

    def _request(self, trouble: BlobError, silent: float, answered: int) -> OpenRequest | None:
        """What to ask a worker for. An upload of which something is stored goes on, others begin anew."""
        upload = self.opened.upload
        is_gone = isinstance(trouble, NoRespondersError)
        if self.opened.relayed or not self._is_direct:
            if is_gone and not (self._is_staged and self.opened.relayed):
                raise _lost()
            is_frozen = isinstance(trouble, DeadlineError) and silent > _FROZEN
            is_lost = is_gone or is_frozen or isinstance(trouble, UploadExpiredError)
            return self._again(upload) if is_lost else None
        if isinstance(trouble, NotAllowedError):
            self._service.is_relayed = True
        elif self._has_left_stream or silent < (UNHEARD if is_gone or not answered else _FROZEN):
            return None
        self._has_left_stream = True
        return self._again(upload if answered else None)

    def _again(self, upload: str | None) -> OpenRequest:
        return OpenRequest(upload=upload, relayed=True, max_chunk=max(self.opened.chunk_size, LEAST_CHUNK))


def _lost() -> UploadExpiredError:
    return UploadExpiredError("the worker that took this upload is gone; begin again")
