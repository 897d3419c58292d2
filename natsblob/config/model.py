"""The model: every setting with its type, its range, its default, and its meaning if the name lacks it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import quote_from_bytes, unquote_to_bytes
from uuid import UUID

import msgspec
from msgspec import Meta

from natsblob.chunking import DEFAULT_CHUNK_SIZE
from natsblob.wire import DEFAULT_PREFIX

MIB: Final = 1024**2
MASK: Final = "***"

AUTH: Final = ("creds", "nkey", "user", "password", "token")
"""Ways to be let in. A source that names one replaces whatever weaker sources say."""
STORAGE: Final = ("server", *AUTH)
"""What the second connection of a worker may have of its own, as `storage_server` and so on."""

# `kind` says how a value is written (see values.py), `description` what is allowed if a range does not.
Subject: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z", description="dot-separated letters, digits, - and _"
    ),
]
Word: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+\Z", description="letters, digits, - and _")]
Text: TypeAlias = Annotated[str, Meta(min_length=1, description="text")]
FilePath: TypeAlias = Annotated[Path, Meta(description="a path", extra={"kind": "path"})]
Servers: TypeAlias = Annotated[
    tuple[str, ...],
    Meta(
        min_length=1,
        description="addresses such as nats://host:4222, with commas between",
        extra={"kind": "servers"},
    ),
]
ReplyPrefixes: TypeAlias = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.\Z")], ...],
    Meta(
        min_length=1,
        description="beginnings of subjects, each with a dot at its end and no $ at its start",
        extra={"kind": "list"},
    ),
]
_DURATION: Final = {"kind": "duration"}
_SIZE: Final = {"kind": "size"}


class Address(msgspec.Struct, frozen=True):
    """Where to listen: a host and a port, 0 for any free one."""

    host: str
    port: Annotated[int, Meta(ge=0, le=65535)]

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. Durations are seconds, sizes bytes, paths absolute."""

    # The connection of clients, and of workers if nothing else is said.
    server: Servers = ("nats://127.0.0.1:4222",)
    context: Text | None = None
    """A NATS context to take the connection from."""
    creds: FilePath | None = None
    nkey: FilePath | None = None
    """A file with the seed of an NKEY."""
    user: Text | None = None
    password: Text | None = None
    token: Text | None = None
    tls_ca: FilePath | None = None
    tls_cert: FilePath | None = None
    tls_key: FilePath | None = None
    tls_first: bool = False
    """TLS begins before the server's greeting."""
    inbox_prefix: Subject = "_INBOX"
    js_domain: Word | None = None
    timeout: Annotated[float, Meta(ge=0.1, le=86_400, extra=_DURATION)] = 60.0
    """How long a client waits for an answer, or for progress of a transfer, before it gives up."""

    # The second connection of a worker, to the storage: what is not set is as above.
    storage_server: Servers | None = None
    storage_creds: FilePath | None = None
    storage_nkey: FilePath | None = None
    storage_user: Text | None = None
    storage_password: Text | None = None
    storage_token: Text | None = None

    # The service.
    prefix: Subject = DEFAULT_PREFIX
    queue: Subject = "natsblob"
    """The queue group that shares the requests."""
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Worker processes on this machine."""
    max_requests: Annotated[int, Meta(ge=1, le=100_000)] = 256
    """Requests in flight in a worker; one more is answered with `busy`."""
    max_bytes: Annotated[int, Meta(ge=MIB, le=2**40, extra=_SIZE)] = 64 * MIB
    """Bytes in flight in a worker."""
    request_timeout: Annotated[float, Meta(ge=0.1, le=3_600, extra=_DURATION)] = 30.0
    """A worker's deadline for one request."""
    reply_prefixes: ReplyPrefixes = ("_INBOX.", "_R_.")
    """A worker publishes answers to subjects that begin with one of these, and nowhere else."""
    metrics: Annotated[Address, Meta(description="HOST:PORT", extra={"kind": "address"})] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    # The bucket and what lies in it.
    backend: Literal["jetstream", "disk", "memory"] = "jetstream"
    disk: FilePath | None = None
    """The directory of the disk backend; naming one chooses that backend."""
    disk_volume: Annotated[UUID, Meta(description="the UUID of a volume")] | None = None
    """The volume that has to be in that directory."""
    create_disk: bool = False
    """A directory that is missing or empty becomes a volume, rather than an error."""
    bucket: Word = "blobs"
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    """Copies in a bucket that is created; an existing one is changed by `natsblob bucket set`."""
    storage: Literal["file", "memory"] = "file"
    """Where the stream of a bucket that is created lies."""
    chunk_size: Annotated[int, Meta(ge=1024, le=64 * MIB, extra=_SIZE)] = DEFAULT_CHUNK_SIZE
    """At most this much in one chunk; less if the server's `max_payload` is smaller."""
    window_bytes: Annotated[int, Meta(ge=64 * 1024, le=48 * MIB, extra=_SIZE)] = 8 * MIB
    """Unacknowledged bytes of one upload, and bytes of one window of a streamed read."""
    max_blob: Annotated[int, Meta(ge=1, le=2**53, extra=_SIZE)] = 2**40
    upload_expiry: Annotated[float, Meta(ge=1, le=30 * 86_400, extra=_DURATION)] = 3_600.0
    """Chunks of an upload that got no further for this long are collected."""
    collect_interval: Annotated[float, Meta(ge=1, le=30 * 86_400, extra=_DURATION)] = 600.0
    commit_check: Literal["tap", "readback"] = "tap"
    """How a direct upload is verified: by hashing it as it passes, or by always reading it back."""

    # The embedded server.
    embedded: bool = False
    store_dir: FilePath | None = None
    """Where the embedded server keeps its data; the loader fills in a folder in the user's home."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 4222
    """Of the embedded server, on the loopback; 0 for any free one."""

    def for_storage(self) -> Settings:
        """These settings with the connection that goes to the storage."""
        changes = {name: value for name in STORAGE if (value := getattr(self, f"storage_{name}")) is not None}
        if not changes.keys().isdisjoint(AUTH):
            changes = {**dict.fromkeys(AUTH), **changes}
        return msgspec.structs.replace(self, **changes)

    def on_embedded(self, url: str) -> Settings:
        """These settings with the connection to the embedded server, which asks for no credentials."""
        unset = (
            *AUTH,
            "tls_ca",
            "tls_cert",
            "tls_key",
            "js_domain",
            *(f"storage_{name}" for name in STORAGE),
        )
        return msgspec.structs.replace(self, server=(url,), tls_first=False, **dict.fromkeys(unset))

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, masked(name, getattr(self, name))) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


def masked(name: str, value: Any) -> Any:
    """The value of a setting with the secrets in it replaced: fit for logs and terminals."""
    if value is None:
        return None
    if name.removeprefix("storage_") in ("password", "token"):
        return MASK
    if name.removeprefix("storage_") == "server":
        if isinstance(value, list | tuple):
            return tuple(_without_userinfo(str(url)) for url in value)
        return _without_userinfo(str(value))
    return value


def _without_userinfo(url: str) -> str:
    """The address with whatever stands before its @ masked: a token, or a user and a password."""
    head, at, host = url.rpartition("@")
    scheme = f"{head.partition('://')[0]}://" if "://" in head else ""
    return f"{scheme}{MASK}@{host}" if at else url


def encode(settings: Settings) -> bytes:
    """The settings as JSON, secrets included: for a pipe to a child, never for a log or an argument."""
    return msgspec.json.encode(settings, enc_hook=_quoted)


def decode(data: bytes) -> Settings:
    """What `encode` wrote."""
    return msgspec.json.decode(data, type=Settings, dec_hook=_unquoted)


def _quoted(value: Any) -> str:
    """A path as text, whatever bytes it has: names of files need not be UTF-8."""
    return quote_from_bytes(os.fsencode(value))


def _unquoted(kind: type, value: Any) -> Any:
    return path_hook(kind, os.fsdecode(unquote_to_bytes(value)) if isinstance(value, str) else value)


def path_hook(kind: type, value: Any) -> Any:
    """Lets msgspec read paths."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"{kind.__name__} cannot be made of {type(value).__name__}")
