"""A bucket: its stream, how it is configured, and how that is created and changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, TypeAlias

from natsblob.broker.jetstream import Config, JetStream, StreamInfo
from natsblob.broker.translate import StreamMissingError
from natsblob.config.quantity import NANOSECONDS
from natsblob.errors import BlobError, ConflictError, NotAllowedError, SetupError
from natsblob.logs import get_logger
from natsblob.objectstore.agreement import differences
from natsblob.objectstore.generation import Signs
from natsblob.objectstore.info import Layout, check_bucket_name
from natsblob.objectstore.placement import explained
from natsblob.objectstore.removals import Removals
from natsblob.wire import Subjects

log = get_logger("natsblob.objectstore")

OLDEST_SERVER: Final = (2, 11, 0)
"""The first nats-server with batched direct reads."""
_REMEMBERED: Final = 30.0
"""Seconds for which the configuration is taken to be what it was."""

UploadMode: TypeAlias = Literal["direct", "relayed"]
"""Who writes the chunks of large puts into the stream: publishers themselves, or workers only (ADR 0015)."""
UPLOADS_KEY: Final = "natsblob.uploads"
"""In the metadata of the stream: its `UploadMode`."""
_SERVER_KEYS: Final = "_nats."
"""Begins the metadata that servers add to a stream, and make anew on each change."""


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """How a bucket is to be. `max_age` in seconds and `max_bytes` are without bound if 0."""

    name: str = "blobs"
    replicas: int = 1
    storage: Literal["file", "memory"] = "file"
    description: str = ""
    max_age: float = 0
    max_bytes: int = 0
    compression: bool = False
    cluster: str | None = None
    tags: tuple[str, ...] = ()
    rollups: bool = False
    """Whether a header of a message may replace others, as other Object Store clients need it to write.

    Whoever may publish into the stream can then empty the whole bucket by one header (ADR 0008), so that
    uploads are relayed, whatever `uploads` says.
    """
    uploads: UploadMode = "direct"


class Bucket:
    """One bucket on a JetStream, and the subjects under which a service with `prefix` uses it."""

    def __init__(self, jetstream: JetStream, name: str, prefix: str) -> None:
        self.jetstream = jetstream
        self.name = check_bucket_name(name)
        self.layout = Layout(name)
        self._old_ingest = Subjects(prefix).old_ingest(name, "*")
        self._config: Config = {}
        self._known_until = 0.0
        self._signs: Signs | None = None
        self.removals = Removals(jetstream, self.layout, self.is_replicated)
        self.generation = 0
        """Grows when the stream is found to be another one than before: what is remembered of it is void."""
        self.on_renewal: list[Callable[[], None]] = []
        """Called when that happens."""

    async def info(self) -> StreamInfo:
        """The bucket's stream; `StreamMissingError` if there is none."""
        before = self._signs
        info = await self.jetstream.stream(self.layout.stream)
        signs = Signs.of(info)
        if before is not None and not before.can_become(signs):
            self.renew()
        if self._signs is before or signs.last_seq > (self._signs.last_seq if self._signs else 0):
            self._signs = signs
        return info

    def renew(self) -> None:
        """Take what was remembered of the stream for void: it was made anew, or restored."""
        log.warning("bucket.other", advice="`natsblob ls` and `natsblob doctor` show what is there now")
        self.generation += 1
        self._known_until = 0.0
        self.removals.forget()
        for forget in self.on_renewal:
            forget()

    async def is_replicated(self) -> bool:
        """Whether there are copies beside the leader's."""
        return int((await self._known()).get("num_replicas", 1)) > 1

    async def agree(self) -> None:
        """Return once most copies agree on everything that was acknowledged before the call (ADR 0020).

        A leader that is cut off goes on answering for some ten seconds, and knows of nothing that another one
        has acknowledged. It purges nothing, though: that takes a majority, and stores nothing.
        """
        await self.jetstream.purge(self.layout.stream, self.layout.nothing)

    async def is_limited(self) -> bool:
        """Whether there is a limit of its own that it may reach."""
        known = await self._known()
        return any(int(known.get(limit, -1)) > 0 for limit in ("max_bytes", "max_msgs"))

    async def relayed_limit(self) -> int | None:
        """Its limit in bytes, if it has one and only workers write into it."""
        known = await self._known()
        limit = int(known.get("max_bytes", -1))
        return limit if limit > 0 and self.uploads(known) == "relayed" else None

    async def max_age(self) -> timedelta | None:
        """How long after it was written a message goes, if it does."""
        nanoseconds = int((await self._known()).get("max_age", 0))
        return timedelta(microseconds=nanoseconds // 1_000) if nanoseconds else None

    async def _known(self) -> Config:
        """The stream's configuration, as it was up to `_REMEMBERED` seconds ago."""
        now = asyncio.get_running_loop().time()
        if now >= self._known_until:
            self._config = (await self.info()).config
            self._known_until = now + _REMEMBERED
        return self._config

    async def create(self, config: BucketConfig) -> StreamInfo:
        """Create the bucket. If it exists already, it is left as it is and returned."""
        self._check_server()
        with suppress(NotAllowedError):  # a worker need not be allowed to ask; its bucket is there then
            await self.jetstream.account()
        try:
            return await self.info()
        except StreamMissingError:
            pass
        try:
            return await self._explained(self._stream_config(config), create=True)
        except ConflictError:  # somebody else created it meanwhile
            return await self.info()
        except NotAllowedError as error:
            raise NotAllowedError(
                f"there is no bucket {self.name}, and these credentials may not create it; with those of an "
                f"administrator: natsblob bucket create --bucket {self.name}"
            ) from error

    def differing(self, found: StreamInfo, config: BucketConfig) -> list[str]:
        """What a bucket that is there has otherwise than asked for, in words."""
        wanted = self._stream_config(config)
        said = differences(found.config, wanted)
        if (mode := self.uploads(found.config)) != self.uploads(wanted):
            said.append(f"uploads {mode}, not {self.uploads(wanted)}")
        return said

    async def change(
        self,
        *,
        replicas: int | None = None,
        uploads: UploadMode | None = None,
        rollups: bool | None = None,
    ) -> StreamInfo:
        """Change what is not `None`, while the bucket is in use.

        `ConflictError` if direct uploads are asked for and the bucket allows rollups.
        """
        config = dict((await self.info()).config)
        if replicas is not None:
            config["num_replicas"] = replicas
        if rollups is not None:
            config["allow_rollup_hdrs"] = rollups
        if uploads is not None:
            if uploads == "direct" and config.get("allow_rollup_hdrs"):
                raise ConflictError(
                    "the bucket allows rollups, by which a publisher of chunks could empty it, so that all "
                    "uploads are relayed; nothing was changed. Forbid rollups as well: --no-rollups"
                )
            config["metadata"] = _with_mode(config, uploads)
        return await self._explained(config, create=False)

    async def prepare(self, *, keep_old: bool) -> StreamInfo:
        """Have the bucket say who uploads, answer direct reads, and take nothing on the old ingest subject.

        `keep_old` leaves that subject for workers that know no other. What is stored stays as it is.
        """
        info = await self.info()
        wanted = {**info.config, "allow_direct": True}
        if self._mode_key(info.config) is None:
            takes = self.old_ingest(info.config) is not None or not info.config.get("allow_rollup_hdrs")
            wanted["metadata"] = _with_mode(info.config, "direct" if takes else "relayed")
        if not keep_old:
            old = self.old_ingest(info.config)
            kept = [subject for subject in info.config.get("subjects", []) if not self._is_ingest(subject)]
            wanted["subjects"] = [subject for subject in kept if subject != old]
            wanted["subject_transform"] = None if old is not None else info.config.get("subject_transform")
        has_changed = any(info.config.get(key) != value for key, value in wanted.items())
        return await self.jetstream.update(wanted) if has_changed else info

    def uploads(self, config: Config) -> UploadMode:
        """Who writes chunks into a stream with this configuration."""
        if config.get("allow_rollup_hdrs"):
            return "relayed"
        key = self._mode_key(config)
        if key is None:  # made by another client, or by the first version of natsblob
            return "relayed" if self.old_ingest(config) is None else "direct"
        return "direct" if key == "direct" else "relayed"

    def old_ingest(self, config: Config) -> str | None:
        """The subject, beside those of the bucket, on which the first version of natsblob took chunks."""
        transform = config.get("subject_transform") or {}
        if transform.get("dest") != self.layout.chunks("{{wildcard(1)}}"):
            return None
        return str(transform.get("src", ""))

    async def direct_subject(self, stage: str, *, anew: bool = False) -> str | None:
        """Where publishers put the chunks of an upload themselves; `None` if workers do that.

        The configuration is read `anew`, or may be up to `_REMEMBERED` seconds old. A bucket that is not
        adopted yet may be so any moment, and is always looked at.
        """
        if anew or self._is_old(self._config):
            self._known_until = 0.0
        config = await self._known()
        if self.uploads(config) == "relayed":
            return None
        if self._is_old(config) and self.old_ingest(config) == self._old_ingest:
            return f"{self._old_ingest.removesuffix('*')}{stage}"
        return self.chunk_subject(stage)

    def chunk_subject(self, stage: str) -> str:
        """Where the chunks of an upload lie, and where they are published."""
        return self.layout.chunks(stage)

    def _is_ingest(self, subject: str) -> bool:
        """Whether it is a subject of the first version, which may be left over without its transform."""
        return not subject.startswith("$") and subject.endswith(f".chunk.{self.name}.*")

    def _is_old(self, config: Config) -> bool:
        return self._mode_key(config) is None and self.old_ingest(config) is not None

    def _mode_key(self, config: Config) -> str | None:
        return (config.get("metadata") or {}).get(UPLOADS_KEY)

    def _check_server(self) -> None:
        version = self.jetstream.connection.server_version
        if version < OLDEST_SERVER:
            found, oldest = (".".join(map(str, v)) for v in (version, OLDEST_SERVER))
            raise SetupError(f"nats-server {found} is too old: natsblob needs {oldest} or newer")

    def _stream_config(self, config: BucketConfig) -> Config:
        placement = {"cluster": config.cluster or "", "tags": list(config.tags)}
        return {
            "name": self.layout.stream,
            "subjects": [self.layout.all_chunks, self.layout.all_meta],
            "metadata": {UPLOADS_KEY: "relayed" if config.rollups else config.uploads},
            "description": config.description,
            "retention": "limits",
            "discard": "new",
            "storage": config.storage,
            "num_replicas": config.replicas,
            "max_age": int(config.max_age * NANOSECONDS),
            "max_bytes": config.max_bytes or -1,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "max_consumers": -1,
            "compression": "s2" if config.compression else "none",
            "allow_direct": True,
            "allow_rollup_hdrs": config.rollups,
            "duplicate_window": int(min(120, config.max_age or 120) * NANOSECONDS),
            **({"placement": placement} if config.cluster or config.tags else {}),
        }

    async def _explained(self, config: Config, *, create: bool) -> StreamInfo:
        try:
            return await (self.jetstream.create(config) if create else self.jetstream.update(config))
        except BlobError as error:
            raise explained(error, config) from error


def _with_mode(config: Config, uploads: UploadMode) -> dict[str, str]:
    """The metadata of a stream with this mode in it, and without what servers add themselves."""
    metadata: dict[str, str] = config.get("metadata") or {}
    kept = {key: value for key, value in metadata.items() if not key.startswith(_SERVER_KEYS)}
    return {**kept, UPLOADS_KEY: uploads}
