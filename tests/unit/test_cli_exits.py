"""The exit codes that scripts rely on: one for each error, whatever was raised on the way to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from natsblob import errors
from natsblob.broker.translate import LostRaceError, StreamMissingError, ThrottledError
from natsblob.cli.exits import Exit, FileError, UsageError, meaning_of
from natsblob.errors import BlobError

EXITS = {
    UsageError: 2,
    FileError: 1,
    errors.BadRequestError: 2,
    errors.BlobNotFoundError: 3,
    StreamMissingError: 3,
    errors.DigestMismatchError: 4,
    errors.BlobCorruptError: 4,
    errors.NoRespondersError: 5,
    errors.UnavailableError: 5,
    errors.NotAllowedError: 6,
    errors.DeadlineError: 7,
    errors.BusyError: 1,
    ThrottledError: 1,
    errors.TooLargeError: 1,
    errors.BadRangeError: 1,
    errors.InsufficientStorageError: 1,
    errors.ConflictError: 1,
    LostRaceError: 1,
    errors.UploadExpiredError: 1,
    errors.UploadPendingError: 1,
    errors.SetupError: 1,
    errors.InternalError: 1,
    errors.UnprovenError: 1,
}


def tree(root: type[BlobError]) -> Iterator[type[BlobError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from tree(kind)


@pytest.mark.parametrize(("kind", "code"), EXITS.items())
def test_the_exit_code_of_an_error(kind: type[BlobError], code: int) -> None:
    assert meaning_of(kind("it went wrong")).exit == code


def test_no_error_of_the_public_tree_is_forgotten() -> None:
    public = {kind for kind in tree(BlobError) if kind.__module__ == "natsblob.errors"}
    assert public <= EXITS.keys()


def test_an_error_of_tomorrow_is_a_failure() -> None:
    class NewError(BlobError):
        pass

    assert meaning_of(NewError("new")).exit is Exit.FAILURE
