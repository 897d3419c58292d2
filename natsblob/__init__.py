"""natsblob: a content-addressed blob service that lives on NATS."""

from natsblob.broker.connection import Access
from natsblob.client import BlobReader, BlobSource, Client, Progress, connect
from natsblob.digest import Digest
from natsblob.errors import (
    BadRangeError,
    BadRequestError,
    BlobCorruptError,
    BlobError,
    BlobNotFoundError,
    BusyError,
    ConflictError,
    DeadlineError,
    DigestMismatchError,
    InsufficientStorageError,
    InternalError,
    NoRespondersError,
    NotAllowedError,
    SetupError,
    TooLargeError,
    UnavailableError,
    UploadExpiredError,
    UploadPendingError,
)
from natsblob.wire import Caps, Info

__all__ = [
    "Access",
    "BadRangeError",
    "BadRequestError",
    "BlobCorruptError",
    "BlobError",
    "BlobNotFoundError",
    "BlobReader",
    "BlobSource",
    "BusyError",
    "Caps",
    "Client",
    "ConflictError",
    "DeadlineError",
    "Digest",
    "DigestMismatchError",
    "Info",
    "InsufficientStorageError",
    "InternalError",
    "NoRespondersError",
    "NotAllowedError",
    "Progress",
    "SetupError",
    "TooLargeError",
    "UnavailableError",
    "UploadExpiredError",
    "UploadPendingError",
    "connect",
]
