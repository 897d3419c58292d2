"""A bucket: its stream, how it is configured, and how that is created and changed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from natsblob.broker.jetstream import Config, JetStream, StreamInfo
from natsblob.broker.translate import StreamMissingError
from natsblob.errors import BlobError, ConflictError, NotAllowedError, SetupError
from natsblob.objectstore.info import Layout, check_bucket_name
from natsblob.objectstore.placement import explained
from natsblob.wire import Subjects

OLDEST_SERVER: Final = (2, 11, 0)
"""The first nats-server with batched direct reads."""
_NANOSECONDS: Final = 1_000_000_000
_REMEMBERED: Final = 30.0
"""Seconds for which the configuration is taken to be what it was."""


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """How a bucket is to be. `max_age` in seconds and `max_bytes` are without bound where 0."""

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

    Whoever may publish chunks can then empty the whole bucket by one header (ADR 0008).
    """


class Bucket:
    """One bucket on a JetStream, and the subjects under which a service with `prefix` uses it."""

    def __init__(self, jetstream: JetStream, name: str, prefix: str) -> None:
        self.jetstream = jetstream
        self.name = check_bucket_name(name)
        self.layout = Layout(name)
        self._subjects = Subjects(prefix)
        self._config: Config = {}
        self._known_until = 0.0

    async def info(self) -> StreamInfo:
        """The bucket's stream; `StreamMissingError` where there is none."""
        return await self.jetstream.stream(self.layout.stream)

    async def is_replicated(self) -> bool:
        """Whether there are copies beside the leader's."""
        return int((await self._known()).get("num_replicas", 1)) > 1

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
        """Create the bucket. Where it exists already it is left as it is and answered."""
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

    async def set_replicas(self, replicas: int) -> StreamInfo:
        """Change how many servers hold the bucket, while it is in use."""
        config = (await self.info()).config
        return await self._explained({**config, "num_replicas": replicas}, create=False)

    async def set_ingest(self) -> StreamInfo:
        """Let the bucket take chunks from publishers, as a bucket that another client made does not."""
        info = await self.info()
        wanted = {**info.config, "allow_direct": True, **self._ingest(info.config)}
        return info if wanted == info.config else await self.jetstream.update(wanted)

    def takes_chunks(self, config: Config) -> bool:
        """Whether chunks that are published on the ingest subject land in this bucket."""
        return bool(self._ingest(config)["subject_transform"] == config.get("subject_transform"))

    def chunk_subject(self, stage: str) -> str:
        return self._subjects.chunk(self.name, stage)

    def _check_server(self) -> None:
        version = self.jetstream.connection.server_version
        if version < OLDEST_SERVER:
            found, oldest = (".".join(map(str, v)) for v in (version, OLDEST_SERVER))
            raise SetupError(f"nats-server {found} is too old: natsblob needs {oldest} or newer")

    def _ingest(self, config: Config) -> Config:
        wildcard = self._subjects.chunk_wildcard(self.name)
        subjects = list(config.get("subjects", []))
        return {
            "subjects": subjects if wildcard in subjects else [*subjects, wildcard],
            "subject_transform": {"src": wildcard, "dest": self.layout.chunks("{{wildcard(1)}}")},
        }

    def _stream_config(self, config: BucketConfig) -> Config:
        subjects = {"subjects": [self.layout.all_chunks, self.layout.all_meta]}
        placement = {"cluster": config.cluster or "", "tags": list(config.tags)}
        return {
            "name": self.layout.stream,
            "description": config.description,
            "retention": "limits",
            "discard": "new",
            "storage": config.storage,
            "num_replicas": config.replicas,
            "max_age": int(config.max_age * _NANOSECONDS),
            "max_bytes": config.max_bytes or -1,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "max_consumers": -1,
            "compression": "s2" if config.compression else "none",
            "allow_direct": True,
            "allow_rollup_hdrs": config.rollups,
            "duplicate_window": int(min(120, config.max_age or 120) * _NANOSECONDS),
            **({"placement": placement} if config.cluster or config.tags else {}),
            **self._ingest(subjects),
        }

    async def _explained(self, config: Config, *, create: bool) -> StreamInfo:
        try:
            return await (self.jetstream.create(config) if create else self.jetstream.update(config))
        except BlobError as error:
            raise explained(error, config) from error
