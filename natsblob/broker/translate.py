"""The one place where what NATS and JetStream say becomes an error of natsblob's own tree."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from nats import errors as nats_errors

from natsblob.errors import (
    BadRequestError,
    BlobError,
    BusyError,
    ConflictError,
    DeadlineError,
    InsufficientStorageError,
    InternalError,
    NoRespondersError,
    NotAllowedError,
    SetupError,
    TooLargeError,
    UnavailableError,
)


class LostRaceError(ConflictError):
    """Another publisher wrote the subject first: the expected last sequence was wrong."""


class StreamMissingError(SetupError):
    """The stream does not exist."""


class PlacementError(SetupError):
    """There are not enough servers, or not those that were asked for, to hold the stream."""


class ThrottledError(BusyError):
    """The stream asks publishers to slow down."""


_RACES: Final = {10071}
_IN_PROCESS: Final = {10158, 10164}
"""Of a message with this id, or on this subject, it is not decided yet whether it will be stored. That is no
lost race: it may be an earlier attempt of the very same message, or never come to be."""
_THROTTLES: Final = {429, 10167, 10210}
_FULL: Final = {10002, 10023, 10028, 10047, 10120, 10121}
_UNAVAILABLE: Final = {10004, 10008, 10009, 10014, 10077, 10163, 10201}
_SETUP: Final = {10035, 10052, 10079}
_PLACEMENT: Final = {10005, 10074}
_DISABLED: Final = "JetStream is not enabled for this account; enable it in the server's configuration"
_SAID: Final[Mapping[int, tuple[type[BlobError], str]]] = {
    10027: (SetupError, "this account may have no more streams; delete one, or raise its max_streams"),
    10039: (SetupError, _DISABLED),
    10054: (
        SetupError,
        "max_msg_size of the stream is smaller than a chunk: restart the workers, or raise it",
    ),
    10058: (ConflictError, "a stream of this name exists already, with another configuration"),
    10059: (StreamMissingError, "the bucket does not exist; create it with `natsblob bucket create`"),
    10076: (SetupError, _DISABLED),
    10109: (ConflictError, "the bucket is sealed"),
    10113: (
        SetupError,
        "this account wants a limit on each bucket: create it with `natsblob bucket create --max-bytes SIZE`",
    ),
    10122: (
        SetupError,
        "the account's max_stream_bytes is less: ask for less with `natsblob bucket create --max-bytes SIZE`",
    ),
}
"""Codes that say all there is to say."""
_REFUSALS: Final = ("permissions violation", "authorization violation", "authentication")
_FULL_WORDS: Final = ("maximum bytes", "maximum messages", "no space", "insufficient", "exceeded")


def jetstream_error(code: int, err_code: int, description: str) -> BlobError:
    """The error for a JetStream API error or a refused publish.

    Codes are those of nats-server's `errors.json`; 10077 (store failed) covers both a full bucket
    and a passing fault, which only its description tells apart.
    """
    if err_code in _RACES:
        return LostRaceError(description)
    if err_code in _IN_PROCESS:
        return UnavailableError("the servers have not agreed on an earlier message yet; a repeat is safe")
    if err_code in _THROTTLES or code == 429:
        return ThrottledError("the stream asks publishers to slow down", retry_after_ms=100)
    if err_code in _FULL or (err_code == 10077 and any(word in description for word in _FULL_WORDS)):
        return InsufficientStorageError(f"the bucket has no room: {description}")
    if err_code in _SAID:
        kind, message = _SAID[err_code]
        return kind(message)
    if err_code in _PLACEMENT:
        return PlacementError(description)
    if err_code in _SETUP:
        return SetupError(f"the server cannot do this: {description}")
    if err_code in _UNAVAILABLE or code in (503, 408):
        return UnavailableError(f"the storage is not available for now: {description}")
    return InternalError(f"JetStream answered {err_code or code}: {description}")


def no_responders(subject: str) -> BlobError:
    return NoRespondersError(f"nobody answers on {subject}")


def nats_error(error: Exception) -> BlobError:
    """The error for whatever the client library or the socket raised."""
    match error:
        case BlobError():
            return error
        case nats_errors.NoRespondersError():
            return NoRespondersError("nobody answers on this subject")
        case nats_errors.SecureConnWantedError():
            return NotAllowedError("TLS is asked for and the server offers none; no credentials were sent")
        case (
            nats_errors.AuthorizationError()
            | nats_errors.InvalidUserCredentialsError()
            | nats_errors.SecureConnRequiredError()
            | ssl.SSLError()
        ):
            return NotAllowedError(f"the server refuses this connection: {error}")
        case nats_errors.MaxPayloadError():
            return TooLargeError("the message is larger than the server's max_payload")
        case nats_errors.BadSubjectError() | nats_errors.BadHeaderError():
            return BadRequestError("the subject or a header is malformed")
        case nats_errors.TimeoutError() | TimeoutError():
            return DeadlineError("no answer in time")
        case nats_errors.Error() if any(words in str(error).lower() for words in _REFUSALS):
            return NotAllowedError(_of_refusal(str(error).removeprefix("nats: ").strip("'")))
        case OSError():
            return UnavailableError(_of_socket(error))
        case nats_errors.Error() | EOFError():
            return UnavailableError(f"the connection to NATS is not usable: {error}")
        case _:
            return InternalError(f"unexpected {type(error).__name__}")


def _of_refusal(said: str) -> str:
    if "permissions violation" not in said.lower():
        return f"the server refuses these credentials: {said}"
    advice = ""
    if 'permissions violation for subscription to "_inbox' in said.lower():
        advice = ". Set NATSBLOB_INBOX_PREFIX to what this user may subscribe to"
    return f"these credentials may not do that: {said}{advice}"


def _of_socket(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, socket.gaierror):
        return f"the host is not known: {error.strerror}"
    return f"the connection to NATS is not usable: {error.strerror or error}"


@contextmanager
def translated() -> Iterator[None]:
    """Raises `BlobError` for whatever the client library raises inside; the cause stays chained."""
    try:
        yield
    except (TimeoutError, nats_errors.Error, OSError, EOFError) as error:
        raise nats_error(error) from error
