"""Object metadata as ADR-20 has it, the subjects it lies on, and what natsblob adds to it."""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from natsblob.broker.jetstream import Stored
from natsblob.digest import Digest
from natsblob.errors import BadRequestError
from natsblob.wire import MAX_MARKS, NOT_DECODED, Count, Marks

MARKS_KEY: Final = "natsblob.marks"
"""In `metadata`: the stream sequence of every n-th chunk, so that a reader can begin in the middle."""
WRITTEN_KEY: Final = "natsblob.written"
"""In `metadata`: the nuid, if a worker wrote the chunks itself, or has read them as they are stored."""

_NEEDED: Final = {"name", "bucket", "nuid", "size", "chunks", "digest", "options", "deleted"}
"""Fields without which, or with a wrong type of which, an object cannot be read."""
_TOKEN: Final = re.compile(r"[!-)+-\-/-=?-~]{1,255}", re.ASCII)
_ADDRESS: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PLAIN: Final = re.compile(r"(?![*>]$)[^\x00-\x20\x7f\ufffd]+")
_STAGE: Final = re.compile(r"[0-9A-Za-z]{22}", re.ASCII)
_NUID: Final = re.compile(rb'"nuid"\s*:\s*"([!-)+-\-/-=?-~]{1,255}?)"')
_BUCKET: Final = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


class Link(msgspec.Struct, frozen=True, omit_defaults=True):
    bucket: str
    name: str | None = None


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    link: Link | None = None
    max_chunk_size: Count = 0


class ObjectInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """The metadata of one object. A link has no content; a deleted object is a marker."""

    name: str
    bucket: str
    nuid: str
    size: Count = msgspec.field(default=0)
    chunks: Count = 0
    digest: str = ""
    mtime: str = ""
    description: str = ""
    metadata: dict[str, str] | None = None
    headers: dict[str, Any] | None = None
    options: Options | None = None
    deleted: bool = False

    @property
    def link(self) -> Link | None:
        return self.options.link if self.options else None

    @property
    def chunk_size(self) -> int:
        """Bytes in each chunk but the last. Other clients need not say; most objects have one chunk."""
        if self.options and self.options.max_chunk_size:
            return self.options.max_chunk_size
        return 128 * 1024 if self.chunks > 1 else max(self.size, 1)

    @property
    def is_written(self) -> bool:
        """Whether a worker vouches for these bytes from the start (ADR 0013), and not for others."""
        return (self.metadata or {}).get(WRITTEN_KEY) == self.nuid

    @property
    def weight(self) -> int:
        """Bytes, about, of what clients may add as they like."""
        own = sum(len(key) + len(value) for key, value in (self.metadata or {}).items())
        return own + len(self.description) + len(str(self.headers or ""))

    @property
    def marks(self) -> Marks | None:
        return decode_marks((self.metadata or {}).get(MARKS_KEY, ""))


@dataclass(frozen=True, slots=True)
class Entry:
    """An object's metadata and where it stands in the stream."""

    info: ObjectInfo
    seq: int
    modified: datetime
    is_readable: bool = True
    """Whether the metadata could be read. If not, `info` has the name, and the nuid if one can be found."""
    sums: ObjectInfo | None = None
    """Of an adopted object: where the sums of its chunks lie."""

    @property
    def is_content(self) -> bool:
        """Whether there are bytes of its own: it is neither a delete marker nor a link."""
        return self.is_readable and not self.info.deleted and self.info.link is None

    @property
    def is_blob(self) -> bool:
        """Whether it has bytes of its own, and says that they are those of the digest that is its name."""
        if not self.is_content:
            return False
        claimed = digest_of(self.info)
        return claimed is not None and claimed.hex == self.info.name

    @property
    def has_sums(self) -> bool:
        """Whether each chunk can be checked by itself, as far as the metadata tells."""
        return self.info.marks is not None or self.sums is not None or self.info.chunks == 0

    @classmethod
    def decode(cls, stored: Stored) -> Entry:
        """The object that a message describes, under the name that its subject gives it."""
        name = name_of_token(stored.subject.rpartition(".")[2])
        try:
            info = decode_info(stored.data)
        except NOT_DECODED:
            info = ObjectInfo(name or "", "", nuid_in(stored.data))
            return cls(info, stored.seq, stored.time, is_readable=False)
        if name is not None and name != info.name:
            info = msgspec.structs.replace(info, name=name)
        return cls(info, stored.seq, stored.time)


def decode_info(data: bytes) -> ObjectInfo:
    """Metadata as any client writes it: with `null` for what is absent, and whole numbers as floats.

    Raises one of `NOT_DECODED` if what is needed to read the object is missing or of the wrong type.
    """
    try:
        info = msgspec.json.decode(data, type=ObjectInfo)
    except NOT_DECODED:
        info = _decode_any(msgspec.json.decode(data.decode(errors="replace"), type=dict[str, Any]))
    has_bytes = not info.deleted and info.link is None
    if not is_token(info.nuid) and (info.nuid or has_bytes):
        raise msgspec.ValidationError("the name of the chunks is not one token")
    return info


def _decode_any(body: dict[str, Any]) -> ObjectInfo:
    known = {key: value for key, value in body.items() if key in _NEEDED and value is not None}
    if isinstance(options := known.get("options"), dict):
        known["options"] = {key: value for key, value in options.items() if value is not None}
    if isinstance(metadata := body.get("metadata"), dict):
        known["metadata"] = {key: value for key, value in metadata.items() if isinstance(value, str)}
    return msgspec.convert({"name": "", "bucket": "", "nuid": "", **known}, ObjectInfo, strict=False)


def is_token(text: str) -> bool:
    """Whether this is one plain token of a subject: with a wildcard it would name the chunks of others."""
    return _TOKEN.fullmatch(text) is not None


def is_stage(token: str) -> bool:
    """Whether a worker can be asked to commit chunks under this name: its own nuids and stages are such."""
    return _STAGE.fullmatch(token) is not None


def is_address(name: str) -> bool:
    """Whether this is how the name of a blob looks."""
    return _ADDRESS.fullmatch(name) is not None


def is_plain_subject(subject: str) -> bool:
    """Whether each token of it, if there are any, can be asked for by its name alone."""
    return not subject or all(map(_PLAIN.fullmatch, subject.split(".")))


def nuid_in(data: bytes) -> str:
    """The name of chunks that unreadable metadata mentions, or "": they are not to be collected."""
    found = _NUID.search(data)
    return found[1].decode() if found else ""


def encode_info(info: ObjectInfo) -> bytes:
    """The metadata as JSON, with the fields that other clients insist on."""
    body = msgspec.to_builtins(info)
    body.setdefault("size", 0)
    body.setdefault("chunks", 0)
    body.setdefault("mtime", datetime.now(UTC).isoformat().replace("+00:00", "Z"))
    return msgspec.json.encode(body)


def check_bucket_name(name: str) -> str:
    if not _BUCKET.fullmatch(name):
        raise BadRequestError("a bucket's name is 1 to 128 letters, digits, - and _")
    return name


def new_nuid() -> str:
    """A name for the chunks of one object that nobody can guess."""
    return secrets.token_hex(11)


@dataclass(frozen=True, slots=True)
class Layout:
    """The subjects and the stream of one bucket."""

    bucket: str

    @property
    def stream(self) -> str:
        return f"OBJ_{self.bucket}"

    def chunks(self, nuid: str) -> str:
        return f"$O.{self.bucket}.C.{nuid}"

    def decision(self, nuid: str) -> str:
        """Where it is recorded, once, whether the staged chunks of `nuid` are committed or dropped."""
        return f"$O.{self.bucket}.C.{nuid}.decision"

    def proof(self, name: str) -> str:
        """Where it is recorded whether the bytes of a blob are known to be its content (ADR 0013)."""
        return f"$O.{self.bucket}.C.{name}.proof"

    @property
    def damage(self) -> str:
        """Where it is recorded that the only copy has messages that cannot be read (ADR 0019).

        Two tokens below `C`: those who may publish chunks, to `$O.<bucket>.C.*`, cannot write it.
        """
        return f"$O.{self.bucket}.C.copy.damaged"

    @property
    def nothing(self) -> str:
        """Where nothing is ever stored: those who may publish chunks cannot write it either."""
        return f"$O.{self.bucket}.C.copy.nothing"

    def meta(self, name: str) -> str:
        return f"$O.{self.bucket}.M.{urlsafe_b64encode(name.encode()).decode()}"

    def owner_of(self, subject: str) -> tuple[str, str] | None:
        """Whose chunks, decision or other record a subject has: the nuid or name, and what is below it.

        `None` if no object can have messages there: its token is none that anybody can name.
        """
        start = f"$O.{self.bucket}.C."
        owner, _, below = subject.removeprefix(start).partition(".")
        is_plain = subject.startswith(start) and is_token(owner) and is_plain_subject(below)
        return (owner, below) if is_plain else None

    def is_stray(self, subject: str) -> bool:
        """Whether a message on this subject of the stream is of no use to any client.

        Its chunks' token, or its metadata's subject, is none that a client could ask for; or it lies where
        chunks were published once, and has not been moved from there to the bucket's own subjects.
        """
        if subject.startswith(f"$O.{self.bucket}.C."):
            return self.owner_of(subject) is None
        if subject.startswith(f"$O.{self.bucket}.M."):
            return not is_plain_subject(subject)
        return not subject.startswith("$") and f".chunk.{self.bucket}." in subject

    def below(self, owner: str) -> str:
        """All subjects below that of the chunks of an object: of its decision, and of other records."""
        return f"$O.{self.bucket}.C.{owner}.>"

    def nuid_of(self, subject: str) -> str | None:
        """The object whose chunks lie on a subject, or `None` if it is another kind of subject."""
        nuid = subject.removeprefix(f"$O.{self.bucket}.C.")
        return None if "." in nuid else nuid

    @property
    def all_chunks(self) -> str:
        return f"$O.{self.bucket}.C.>"

    @property
    def all_meta(self) -> str:
        return f"$O.{self.bucket}.M.>"

    def name_of(self, subject: str) -> str | None:
        """The object that a metadata subject belongs to, or `None` if it is none."""
        return name_of_token(subject.removeprefix(f"$O.{self.bucket}.M."))


def name_of_token(token: str) -> str | None:
    """The name in the last token of a metadata subject, padded or not, or `None` if there is none in it."""
    try:
        name = urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    except ValueError:
        return None
    return name if urlsafe_b64encode(name.encode()).decode().rstrip("=") == token.rstrip("=") else None


def encode_marks(marks: Marks) -> str:
    """`every:first,step,step,…`"""
    steps = [here - before for before, here in zip([0, *marks.seqs], marks.seqs, strict=False)]
    return f"{marks.every}:{','.join(map(str, steps))}"


def decode_marks(text: str) -> Marks | None:
    """What `encode_marks` wrote, or `None` for anything else: marks are a hint."""
    every, _, steps = text.partition(":")
    if steps.count(",") >= MAX_MARKS:
        return None
    try:
        seqs: list[int] = []
        for step in steps.split(","):
            seqs.append(int(step) + (seqs[-1] if seqs else 0))
        return msgspec.convert({"every": int(every), "seqs": seqs}, Marks)
    except (ValueError, msgspec.ValidationError):
        return None


def digest_of(info: ObjectInfo) -> Digest | None:
    """The digest that the metadata claims as ADR-20 says, or `None` if it claims none."""
    try:
        return Digest.from_adr20(info.digest)
    except BadRequestError:
        return None


def claim_of(info: ObjectInfo) -> Digest | None:
    """The SHA-256 that the metadata claims in any spelling: also in hex, or with another prefix."""
    text = info.digest
    if text[:8].lower() == "sha-256=":
        text = text[8:]
    with suppress(BadRequestError):
        return Digest.parse(text.lower())
    with suppress(BadRequestError):
        return Digest.from_adr20("SHA-256=" + text.replace("+", "-").replace("/", "_"))
    return None
