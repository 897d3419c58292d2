"""natsblob: a content-addressed blob service that lives on NATS."""

TYPE_CHECKING = False
"""What `typing` calls so. Nothing is imported before it is asked for: the command line begins in here too."""
if TYPE_CHECKING:
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

_PLACES = {
    "Access": "natsblob.broker.connection",
    "BlobReader": "natsblob.client",
    "BlobSource": "natsblob.client",
    "Caps": "natsblob.wire",
    "Client": "natsblob.client",
    "Digest": "natsblob.digest",
    "Info": "natsblob.wire",
    "Progress": "natsblob.client",
    "connect": "natsblob.client",
}
"""Where public names come from; all others are errors."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_PLACES.get(name, "natsblob.errors")), name)
    return value


def __dir__() -> list[str]:
    return __all__
