"""Exit codes, and the one table that says which error becomes which, and what to tell about it."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from natsblob.broker.translate import StreamMissingError
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
    UnprovenError,
    UploadExpiredError,
    UploadPendingError,
)


class Exit(IntEnum):
    """What scripts can rely on."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    MISMATCH = 4
    """Bytes are not those of their digest: on the way in, or as they are stored."""
    NOBODY = 5
    """No server, no worker, or no majority to answer."""
    NOT_ALLOWED = 6
    TIMEOUT = 7
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    """As a shell reports a program that SIGPIPE ended."""


class UsageError(BlobError):
    """The arguments or the settings make no sense; nothing was tried."""

    code = 400
    name = "usage"


class FileError(BlobError):
    """A local file cannot be read or written."""

    name = "file"


class Meaning(NamedTuple):
    exit: Exit
    advice: str
    """What is safe and what to do next; empty if the message says all."""


_MEANINGS: Final[tuple[tuple[type[BlobError], Meaning], ...]] = (
    # The first row that fits counts: subclasses stand before their bases.
    (UsageError, Meaning(Exit.USAGE, "")),
    (FileError, Meaning(Exit.FAILURE, "")),
    (BadRequestError, Meaning(Exit.USAGE, "Nothing was changed.")),
    (
        BlobNotFoundError,
        Meaning(Exit.NOT_FOUND, "Check the digest and --prefix; `natsblob ls` shows what is stored."),
    ),
    (
        StreamMissingError,
        Meaning(Exit.NOT_FOUND, "Check --bucket and --context: another account has other buckets."),
    ),
    (
        DigestMismatchError,
        Meaning(Exit.MISMATCH, "Nothing was stored. If the source changed while it was read, put it again."),
    ),
    (
        BlobCorruptError,
        Meaning(
            Exit.MISMATCH,
            "Do not use what was read. Other blobs are not affected; put the original again to heal it.",
        ),
    ),
    (
        NoRespondersError,
        Meaning(Exit.NOBODY, "Nothing was changed. `natsblob doctor` finds out who is missing."),
    ),
    (
        UnavailableError,
        Meaning(
            Exit.NOBODY,
            "Repeating is safe; `natsblob doctor` looks further.",
        ),
    ),
    (
        NotAllowedError,
        Meaning(Exit.NOT_ALLOWED, "Nothing was changed. Other credentials: --creds FILE or --context NAME."),
    ),
    (
        DeadlineError,
        Meaning(Exit.TIMEOUT, "The outcome is unknown, and repeating is safe; --timeout gives it more time."),
    ),
    (BusyError, Meaning(Exit.FAILURE, "Nothing was changed. Try again later, or start more workers.")),
    (TooLargeError, Meaning(Exit.FAILURE, "Nothing was stored. The limit is max_blob of the workers.")),
    (BadRangeError, Meaning(Exit.FAILURE, "`natsblob stat` shows the size.")),
    (
        InsufficientStorageError,
        Meaning(
            Exit.FAILURE,
            "Nothing was stored, and what is stored is safe. Delete blobs, or raise the limit of the bucket.",
        ),
    ),
    (ConflictError, Meaning(Exit.FAILURE, "Nothing was changed.")),
    (UploadExpiredError, Meaning(Exit.FAILURE, "Nothing was stored. Put it again.")),
    (UploadPendingError, Meaning(Exit.FAILURE, "Try again when the upload is complete.")),
    (SetupError, Meaning(Exit.FAILURE, "")),
    (UnprovenError, Meaning(Exit.FAILURE, "Read the whole blob: that is verified by its digest.")),
    (InternalError, Meaning(Exit.FAILURE, "What is stored is safe. The log of the workers has more.")),
    (BlobError, Meaning(Exit.FAILURE, "")),
)


def meaning_of(error: BlobError) -> Meaning:
    """The exit code for an error, and what to tell beside its message."""
    return next(meaning for kind, meaning in _MEANINGS if isinstance(error, kind))
