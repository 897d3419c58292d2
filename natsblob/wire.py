"""The wire protocol, version 1: subjects, headers and messages. No I/O.

`docs/protocol.md` is the reference; this module is where worker and client take their words from.
JSON is UTF-8, unknown fields are ignored, a digest is 64 lower-case hex digits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec
from zlib_ng import zlib_ng

from natsblob.digest import Digest
from natsblob.errors import BadRequestError, BlobError, Detail, from_wire

PROTOCOL_VERSION: Final = 1
DEFAULT_PREFIX: Final = "blob"
SERVICE: Final = "natsblob"
"""How services are called in discovery (ADR-32), and what their names begin with."""
MAX_BATCH: Final = 1_000
"""Digests in one `has`, and entries in one page of `list`."""
LEAST_CHUNK: Final = 4096
"""Bytes of the smallest chunks that a client can have an upload cut to."""
MAX_MARKS: Final = 4096
_MAX_TEXT: Final = 500

NOT_DECODED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises if bytes are no JSON of the type that is asked for."""

T = TypeVar("T")
Headers: TypeAlias = dict[str, str]

# Headers. Those that begin with Blob- are natsblob's own.
DIGEST: Final = "Blob-Digest"
SIZE: Final = "Blob-Size"
OFFSET: Final = "Blob-Offset"
CHUNK: Final = "Blob-Chunk"
PART: Final = "Blob-Part"
SUM: Final = "Blob-Sum"
STATUS: Final = "Status"
MESSAGE_ID: Final = "Nats-Msg-Id"
ERROR_CODE: Final = "Nats-Service-Error-Code"
ERROR_TEXT: Final = "Nats-Service-Error"

# In the metadata by which workers describe themselves on $SRV.
RELAYS: Final = "relays"
STAGED: Final = "staged"
"""The worker stages what it relays, and knows buckets without a subject of their own for chunks."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A number of bytes or chunks: not negative, and exact in every JSON library."""

ChunkSize: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=64 * 1024 * 1024)]
"""Bytes of a chunk that is written. Clients hold whole ones, so that nobody may ask for any size."""
Window: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
"""A number of chunks on their way."""


class Info(msgspec.Struct, frozen=True):
    """What is known of a blob."""

    digest: Digest
    size: Count
    chunks: Count
    chunk_size: Count
    created: bool = False
    """True in the answer to the put that made the blob visible."""
    modified: datetime | None = None


class GetRequest(msgspec.Struct, frozen=True):
    digest: Digest
    offset: Count | None = None
    length: Count | None = None
    mode: Literal["whole", "stream"] = "whole"
    first: Count = 0
    count: Annotated[int, msgspec.Meta(ge=1, le=2**32)] = 1
    verify: bool = False
    chunk_size: Count | None = None
    """That of the chunks which `first` and `count` count, as the client was told it."""


class HasReply(msgspec.Struct, frozen=True):
    digest: Digest
    exists: bool
    size: int | None = None


class MissingReply(msgspec.Struct, frozen=True):
    missing: list[Digest]


class ListRequest(msgspec.Struct, frozen=True):
    after: Digest | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)] = MAX_BATCH
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{0,64}\Z")] = ""


class Page(msgspec.Struct, frozen=True):
    """Blobs in ascending order of digest; `after` continues, and is absent on the last page."""

    blobs: list[Info]
    after: Digest | None = None


class OpenRequest(msgspec.Struct, frozen=True):
    digest: Digest | None = None
    size: Count | None = None
    relayed: bool = False
    """Have a worker store the chunks, as for publishers that may not write into the stream."""
    upload: str | None = None
    """Go on with this upload, at whichever worker takes the request."""
    max_chunk: Annotated[int, msgspec.Meta(ge=1, le=2**53)] | None = None
    """Bytes of the largest chunk that the client can publish, by the `max_payload` of its server."""


class Opened(msgspec.Struct, frozen=True):
    """Where the chunks of an upload go."""

    upload: str
    """Names the upload in status, commit and abort. Whoever knows it may commit: keep it secret."""
    chunk_subject: str
    commit_subject: str
    chunk_size: ChunkSize
    window: Window
    """Chunks that may be unanswered at a time."""
    expires: datetime
    relayed: bool = False
    """Whether a worker takes the chunks, and not the stream."""

    def __post_init__(self) -> None:
        """A client publishes there with its own permissions, which may reach further than the service's."""
        for subject in (self.chunk_subject, self.commit_subject):
            if subject.startswith("$") and not subject.startswith("$O."):
                raise ValueError("no subject for chunks")


class StatusRequest(msgspec.Struct, frozen=True):
    upload: str


class UploadStatus(msgspec.Struct, frozen=True):
    """Which chunks of an upload are stored, as inclusive ranges `[first, last]` in ascending order."""

    upload: str
    stored: list[tuple[int, int]]


class Marks(msgspec.Struct, frozen=True):
    """Stream sequences of every `every`-th chunk, from the acks: a hint that spares a scan later."""

    every: Annotated[int, msgspec.Meta(ge=1, le=2**32)]
    seqs: Annotated[list[Count], msgspec.Meta(max_length=MAX_MARKS)]


def marks_of(seqs: Sequence[int]) -> Marks:
    """The marks of chunks at these stream sequences, by index: as few as possible, at most `MAX_MARKS`.

    A single mark says that all chunks lie one behind the other.
    """
    if all(seq == seqs[0] + index for index, seq in enumerate(seqs)):
        return Marks(every=max(len(seqs), 1), seqs=list(seqs[:1]))
    every = 1 if len(seqs) <= 16 else max(16, -(-len(seqs) // MAX_MARKS))
    return Marks(every=every, seqs=list(seqs[::every]))


class CommitRequest(msgspec.Struct, frozen=True):
    upload: str
    size: Count
    chunks: Count
    digest: Digest | None = None
    marks: Marks | None = None


class AbortRequest(msgspec.Struct, frozen=True):
    upload: str


class Caps(msgspec.Struct, frozen=True):
    """What this service can do and carry; sizes in bytes."""

    version: int
    bucket: str
    backend: str
    replicas: int
    chunk_size: ChunkSize
    window: Window
    """Chunks in one streaming window, and unanswered chunks of an upload."""
    max_inline: int
    """The largest blob that fits one put request or one get reply."""
    max_blob: int
    max_batch: int
    features: list[str]


class ErrorInfo(msgspec.Struct, frozen=True):
    code: int
    name: str
    message: str
    retryable: bool
    details: dict[str, Detail] = {}


class ErrorReply(msgspec.Struct, frozen=True):
    error: ErrorInfo


def _encode_hook(value: Any) -> Any:
    if isinstance(value, Digest):
        return value.hex
    raise NotImplementedError(f"{type(value).__name__} does not go over the wire")


def _decode_hook(kind: type, value: Any) -> Any:
    if kind is Digest and isinstance(value, str):
        return Digest.parse(value)
    raise BadRequestError("a digest is a string of 64 lower-case hex digits")


_encoder = msgspec.json.Encoder(enc_hook=_encode_hook)


def encode(message: Any) -> bytes:
    """The message as JSON."""
    return _encoder.encode(message)


def decode(data: bytes, kind: type[T]) -> T:
    """The JSON message in `data`, validated; `BadRequestError` says which field is wrong."""
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_decode_hook)
    except NOT_DECODED as error:
        raise BadRequestError(f"malformed request: {error}") from error


def decode_digest(data: bytes) -> Digest:
    """A digest as the whole body of a request."""
    try:
        return Digest.parse(data.decode("ascii"))
    except UnicodeDecodeError as error:
        raise BadRequestError("a digest is exactly 64 lower-case hex digits") from error


def encode_error(error: BlobError) -> tuple[bytes, Headers]:
    """The body and the ADR-32 headers of an error reply."""
    text = _one_line(error.message)
    info = ErrorInfo(error.code, error.name, text, error.retryable, dict(error.details))
    return encode(ErrorReply(info)), {ERROR_CODE: str(error.code), ERROR_TEXT: text}


def decode_error(data: bytes, headers: Headers) -> BlobError | None:
    """The error that a reply carries, or `None` if it is not an error reply."""
    code = headers.get(ERROR_CODE)
    if code is None:
        return None
    try:
        info = msgspec.json.decode(data, type=ErrorReply).error
    except NOT_DECODED:
        number = int(code) if _CODE.fullmatch(code) else 500
        return from_wire(number, None, headers.get(ERROR_TEXT, "the service failed"), {})
    return from_wire(info.code, info.name, info.message, info.details)


def _one_line(text: str) -> str:
    """The text as fit for a header: it may quote what a client sent, of any length."""
    printable = "".join(char if char.isprintable() else " " for char in text[:_MAX_TEXT])
    return " ".join(printable.split()) or "unspecified"


def chunk_headers(message_id_prefix: str, index: int, data: bytes | memoryview) -> Headers:
    """The headers of chunk `index` on its way into the stream."""
    return headers_of(message_id_prefix, index, crc32(data))


def headers_of(message_id_prefix: str, index: int, crc: int) -> Headers:
    """The headers of chunk `index`, which has this CRC-32: these and no others."""
    return {
        CHUNK: str(index),
        SUM: sum_header(crc),
        MESSAGE_ID: f"{message_id_prefix}.{index}",
    }


def chunk_sum(data: bytes | memoryview) -> str:
    """The `Blob-Sum` of a chunk: guards against accidents, not against intent."""
    return sum_header(crc32(data))


def crc32(data: bytes | memoryview) -> int:
    """The number in the `Blob-Sum` of a chunk."""
    return zlib_ng.crc32(data)


def sum_header(crc: int) -> str:
    return f"crc32={crc:08x}"


def chunk_index(headers: Headers) -> int | None:
    """The index in `Blob-Chunk`, or `None` if it is absent or not a plain number."""
    text = headers.get(CHUNK, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 16 else None


def part_of(headers: Headers) -> tuple[int, int] | None:
    """Offset and length of the whole chunk in `Blob-Part`, or `None` if it is absent or malformed."""
    match = _PART.fullmatch(headers.get(PART, ""))
    return (int(match.group(1)), int(match.group(2))) if match else None


_PART = re.compile(r"([0-9]{1,16})/([0-9]{1,16})", re.ASCII)
_CODE = re.compile(r"[0-9]{3}", re.ASCII)
_UPLOAD = re.compile(r"[0-9A-Za-z]{22}", re.ASCII)
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)


def is_upload_id(text: str) -> bool:
    """Whether `text` has the form of an upload id, checked before it becomes part of a subject."""
    return _UPLOAD.fullmatch(text) is not None


class Subjects:
    """The subjects of one service, under its prefix."""

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise BadRequestError("a prefix is dot-separated letters, digits, - and _")
        self.prefix = prefix
        self.put = f"{prefix}.put"
        self.get = f"{prefix}.get"
        self.has = f"{prefix}.has"
        self.stat = f"{prefix}.stat"
        self.list = f"{prefix}.list"
        self.delete = f"{prefix}.delete"
        self.open = f"{prefix}.put.open"
        self.status = f"{prefix}.put.status"
        self.commit = f"{prefix}.put.commit"
        self.abort = f"{prefix}.put.abort"
        self.caps = f"{prefix}.caps"

    @property
    def service(self) -> str:
        """The name of the service in discovery, which knows no dots: another one for each prefix."""
        if self.prefix == DEFAULT_PREFIX:
            return SERVICE
        return f"{SERVICE}-{self.prefix.replace('_', '__').replace('.', '_-')}"

    def commit_at(self, worker: str) -> str:
        """Where the worker that opened an upload takes its commit."""
        return f"{self.commit}.{worker}"

    def relay(self, worker: str) -> str:
        """Beneath which a worker takes the chunks that it stores itself."""
        return f"{self.prefix}.relay.{worker}"

    def old_ingest(self, bucket: str, stage: str) -> str:
        """Where the first version published chunks, of which the bucket's stream took what it stores."""
        return f"{self.prefix}.chunk.{bucket}.{stage}"
