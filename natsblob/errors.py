"""Every error that natsblob raises or answers with: one class for each row of the wire table.

A `BlobError` carries what a caller needs to decide what to do next: the stable `name`, the numeric
`code` that travels in `Nats-Service-Error-Code`, whether the same request may succeed later
(`retryable`), and `details` that are safe to show to a client. Nothing internal goes in there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeAlias

Detail: TypeAlias = str | int | float | bool


class BlobError(Exception):
    """Base of the tree: `except BlobError` catches whatever natsblob can raise on purpose."""

    code: ClassVar[int] = 500
    name: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, /, **details: Detail) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, Detail] = details


class BadRequestError(BlobError):
    """The request is malformed; the same request will never succeed."""

    code = 400
    name = "bad_request"


class BlobNotFoundError(BlobError):
    """No such blob, confirmed beyond a replica that lags."""

    code = 404
    name = "blob_not_found"


class UploadExpiredError(BlobError):
    """The upload is unknown, aborted or too old. Begin again; nothing became visible."""

    code = 408
    name = "upload_expired"


class ConflictError(BlobError):
    """The state of the bucket or of the upload forbids this, and a repeat does not change it."""

    code = 409
    name = "conflict"


class TooLargeError(BlobError):
    """Over the configured blob limit, or over what one reply can carry."""

    code = 413
    name = "too_large"


class BadRangeError(BlobError):
    """The offset lies beyond the end of the blob."""

    code = 416
    name = "bad_range"


class DigestMismatchError(BlobError):
    """The bytes are not what the caller declared (digest, size or count). Nothing was stored."""

    code = 422
    name = "digest_mismatch"

    def __init__(
        self,
        message: str = "the bytes are not those of the declared digest; nothing is stored",
        /,
        **details: Detail,
    ) -> None:
        super().__init__(message, **details)


class UploadPendingError(BlobError):
    """A reference whose content is not complete yet."""

    code = 425
    name = "upload_pending"
    retryable = True


class BusyError(BlobError):
    """The worker is at its limit; `details["retry_after_ms"]` says when to come back."""

    code = 429
    name = "busy"
    retryable = True


class BlobCorruptError(BlobError):
    """Stored bytes failed verification on every copy that could be read. None were delivered."""

    code = 500
    name = "blob_corrupt"


class InternalError(BlobError):
    """A defect. `details["id"]` is the id under which the worker logged it."""


class UnavailableError(BlobError):
    """No quorum, no leader, or the storage cannot be reached for now."""

    code = 503
    name = "unavailable"
    retryable = True


class DeadlineError(BlobError):
    """The deadline passed. The outcome is unknown, and repeating the request is safe."""

    code = 504
    name = "timeout"
    retryable = True


class InsufficientStorageError(BlobError):
    """A quota is reached or a disk is full."""

    code = 507
    name = "insufficient_storage"


class NoRespondersError(UnavailableError):
    """Nobody answers on the subject: no worker runs, or it listens under another prefix.

    Seen by clients only; on the wire it is NATS's own 503 status message.
    """


class NotAllowedError(BlobError):
    """The server refuses these credentials, or they may not use this subject. Local only."""

    code = 403
    name = "not_allowed"


class SetupError(BlobError):
    """The deployment cannot do what is asked, whoever asks; the message says what to change.

    Raised at start-up and by administrative calls: JetStream missing, a cluster too small for the
    replicas asked for, a server that is too old, a bucket that does not exist. Local only.
    """

    name = "setup"


class UnprovenError(BlobError):
    """Nothing that is stored vouches for a part of this blob: only its whole can be verified. Local only."""

    name = "unproven"


_WIRE: tuple[type[BlobError], ...] = (
    BadRequestError,
    BlobNotFoundError,
    UploadExpiredError,
    ConflictError,
    TooLargeError,
    BadRangeError,
    DigestMismatchError,
    UploadPendingError,
    BusyError,
    InternalError,
    BlobCorruptError,
    UnavailableError,
    DeadlineError,
    InsufficientStorageError,
    NotAllowedError,
)
_BY_NAME: Mapping[str, type[BlobError]] = {kind.name: kind for kind in _WIRE}
# Of two with one code the first: a bare 500 says nothing of corruption.
_BY_CODE: Mapping[int, type[BlobError]] = {kind.code: kind for kind in reversed(_WIRE)}


def from_wire(code: int, name: str | None, message: str, details: Mapping[str, Detail]) -> BlobError:
    """The error that a reply describes: by name, else by code, else an `InternalError`."""
    kind = _BY_NAME.get(name or "") or _BY_CODE.get(code, InternalError)
    return kind(message, **details)
