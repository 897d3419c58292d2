"""Commands for the bucket: info, create, set and adopt. They speak to JetStream, not to the workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import App, Parameter, validators

from natsblob.cli.exits import Exit, UsageError
from natsblob.cli.options import SERVICE, UNSET, Common, keep_quiet
from natsblob.cli.terminal import Stdout, bytes_of, progress, say
from natsblob.config.quantity import NANOSECONDS, format_duration, parse_duration, parse_size
from natsblob.errors import ConflictError, DeadlineError

if TYPE_CHECKING:
    from natsblob.broker.jetstream import StreamInfo
    from natsblob.maintenance.adopt import Adoption
    from natsblob.objectstore.bucket import Bucket

_MOST: Final = 2**63 - 1
"""JetStream counts bytes and nanoseconds in 64 bits."""
_SHORTEST_AGE: Final = 0.1
_LOOK_AGAIN: Final = 0.25
_LEFT_ALONE: Final = {
    "corrupt": "corrupt objects were left as they are: put the originals again, or delete them",
    "unreadable": "unreadable objects were left as they are: put the originals again, or delete them",
    "refused": "refused objects were left as they are, and are not served by digest",
}
"""What became of an object that is not served by digest, and what to tell about such objects."""
Replicas = Annotated[int, Parameter(metavar="N", validator=validators.Number(gte=1, lte=5))]

bucket = App(
    name="bucket",
    help="Look at, create and change the bucket.",
    help_epilogue="",
    help_format="markdown",
    group=SERVICE,
    group_commands="Commands",
    sort_key=3,
)


@asynccontextmanager
async def _bucket(common: Common) -> AsyncIterator[Bucket]:
    """The bucket that the options name, with their credentials: those of workers may be too weak."""
    from natsblob.broker.connection import Access, connect
    from natsblob.broker.jetstream import JetStream
    from natsblob.objectstore.bucket import Bucket

    loaded = common.load()
    keep_quiet(loaded)
    settings = loaded.settings
    async with await connect(Access.of(settings, "natsblob cli")) as connection:
        jetstream = JetStream(connection, domain=settings.js_domain, patience=settings.timeout)
        yield Bucket(jetstream, settings.bucket, settings.prefix)


@bucket.command(sort_key=1)
async def info(*, common: Common = UNSET) -> None:
    """Show how the bucket is set up, how full it is, and its replicas."""
    async with _bucket(common) as one:
        await _show(one, await one.info(), common)


@bucket.command(sort_key=2)
async def create(
    *,
    replicas: Replicas = 1,
    storage: Literal["file", "memory"] = "file",
    max_bytes: Annotated[str, Parameter(metavar="SIZE")] = "0",
    max_age: Annotated[str, Parameter(metavar="TIME")] = "0",
    compression: bool = False,
    description: Annotated[str, Parameter(metavar="TEXT")] = "",
    cluster: Annotated[str | None, Parameter(metavar="NAME")] = None,
    tag: Annotated[tuple[str, ...], Parameter(metavar="NAME")] = (),
    uploads: Literal["direct", "relayed"] | None = None,
    rollups: Annotated[bool, Parameter(negative=())] = False,
    common: Common = UNSET,
) -> None:
    """Create the bucket.

    One that exists already and is the same is shown; one that differs is left as it is, and that is told.

    Parameters
    ----------
    replicas
        Servers that hold a copy of everything: 1 to 5, and 3 for what must not get lost.
    storage
        Where it lies. In memory it is gone when its servers stop.
    max_bytes
        The most that it may hold, such as 500GiB; then puts are refused. [default: no limit]
    max_age
        Blobs vanish when they are older than this, such as 30d. [default: never]
    compression
        Have the servers compress it on disk.
    description
        What it is for.
    cluster
        Only on servers of this cluster.
    tag
        Only on servers with this tag; may be given several times.
    uploads
        Who writes the chunks of large puts into the stream: publishers that are trusted with the whole
        bucket, or workers only, through which they are relayed. [default: direct, without --rollups]
    rollups
        Let other Object Store clients write here too. Whoever may write into the stream can then also
        empty it, by a header; all uploads are relayed.
    """
    from natsblob.objectstore.bucket import BucketConfig

    size, age = _limits(max_bytes, max_age)
    if rollups and uploads == "direct":
        raise UsageError("--rollups has all uploads relayed: leave out --uploads direct, or --rollups")
    async with _bucket(common) as one:
        config = BucketConfig(
            name=one.name,
            replicas=replicas,
            storage=storage,
            description=description,
            max_age=age,
            max_bytes=size,
            compression=compression,
            cluster=cluster,
            tags=tag,
            rollups=rollups,
            uploads=uploads or "direct",
        )
        found = await one.create(config)
        if differing := one.differing(found, config):
            raise ConflictError(
                f"the bucket {one.name} is there already, and is not as asked for: {'; '.join(differing)}. "
                "`natsblob bucket set` changes it, as far as a bucket can be changed"
            )
        await _show(one, found, common)


def _limits(max_bytes: str, max_age: str) -> tuple[int, float]:
    try:
        size, age = parse_size(max_bytes), parse_duration(max_age)
    except ValueError as error:
        raise UsageError(f"{error}; write 500GiB or 30d") from error
    if size > _MOST or age * NANOSECONDS > _MOST or 0 < age < _SHORTEST_AGE:
        raise UsageError("--max-bytes is less than 8 EiB, --max-age between 100ms and 292 years")
    return size, age


@bucket.command(name="set", sort_key=3)
async def set_(
    *,
    replicas: Replicas | None = None,
    uploads: Literal["direct", "relayed"] | None = None,
    rollups: Annotated[bool | None, Parameter(negative="--no-rollups")] = None,
    common: Common = UNSET,
) -> None:
    """Change how many servers hold the bucket, or who writes into it.

    It may be in use meanwhile. Returns when all copies are current. Workers heed a change of uploads and
    rollups within 30 seconds.

    Parameters
    ----------
    replicas
        Servers that hold a copy of everything: 1 to 5.
    uploads
        Who writes the chunks of large puts into the stream: publishers that are trusted with the whole
        bucket, or workers only.
    rollups
        Whether other Object Store clients may write here too; then all uploads are relayed.
    """
    if (replicas, uploads, rollups) == (None, None, None):
        raise UsageError(
            "say what to change: --replicas N, --uploads direct|relayed, --rollups, --no-rollups"
        )
    async with _bucket(common) as one:
        changed = await one.change(replicas=replicas, uploads=uploads, rollups=rollups)
        if replicas is not None:
            changed = await _all_current(one, replicas, changed, common)
        await _show(one, changed, common)


async def _all_current(one: Bucket, replicas: int, changed: StreamInfo, common: Common) -> StreamInfo:
    """Wait until the bucket has so many copies, and all are current."""
    patience = common.load().settings.timeout
    if not common.quiet and not _settled(changed, replicas):
        say("natsblob: waiting until all copies are current; the bucket stays in use")
    try:
        async with asyncio.timeout(patience):
            while not _settled(changed, replicas):
                await asyncio.sleep(_LOOK_AGAIN)
                changed = await one.info()
    except TimeoutError:
        await _show(one, changed, common)
        raise DeadlineError(
            f"the bucket is changed to {replicas} replicas, and they are not all current after "
            f"{format_duration(patience)}; the servers go on, and `natsblob bucket info` shows how far"
        ) from None
    return changed


def _settled(info: StreamInfo, replicas: int) -> bool:
    """Whether the leader has as many current followers as it should, and no more."""
    if info.cluster is None or not info.cluster.name:
        return True
    followers = info.cluster.replicas
    return bool(info.cluster.leader) and len(followers) == replicas - 1 and all(f.current for f in followers)


@bucket.command(sort_key=4)
async def adopt(*, force: Annotated[bool, Parameter(negative=())] = False, common: Common = UNSET) -> Exit:
    """Serve by digest what other clients stored by name.

    Every such object is read and checked, and gets a link from its digest to it; the object itself stays
    as it is. One whose chunks cannot be read singly, because they have different lengths for example, is
    copied into a blob. It may be interrupted and repeated, and run while the bucket is in use. Exit code 4
    if an object could not be read, or has bytes that are not what it claims; 1 if one was refused, or if
    the old subject below was left. All others are served then, too.

    A bucket of the first version takes chunks on a subject beneath the prefix of its service; that ends
    here. While workers of that version are about, they are named and the subject is left to them: adopt
    again when they are gone.

    Parameters
    ----------
    force
        Take the old subject away in any case. Uploads through older workers fail then; nothing that
        was acknowledged is lost.
    """
    from natsblob.maintenance.adopt import adopt as adopting
    from natsblob.maintenance.move import move
    from natsblob.objectstore.objects import Objects

    out = Stdout()
    outcomes: Counter[str] = Counter()
    async with _bucket(common) as one:
        old_subject = one.old_ingest((await one.info()).config)
        older = await move(one, force=force)
        found = await one.info()
        mode, total = one.uploads(found.config), found.state.bytes
        with progress(f"adopt {one.name}", wanted=not common.quiet) as report:
            read = 0

            def on_bytes(count: int) -> None:
                nonlocal read
                read += count
                if report:
                    report(read, total)

            async with aclosing(adopting(Objects(one), on_bytes)) as adoptions:
                async for adoption in adoptions:
                    outcomes[adoption.outcome] += 1
                    if common.json:
                        await out.record(adoption)
                    elif not common.quiet or adoption.outcome in _LEFT_ALONE:
                        await out.line(_line(adoption))
            await out.flush()
    if not common.quiet:
        counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        say(f"{counted or 'nothing to adopt'}; uploads are {mode}")
        if old_subject is not None and one.old_ingest(found.config) is None:
            say(f"the bucket takes no more chunks on {old_subject}")
    if older and not force:
        say(
            f"workers of an older version serve the bucket ({', '.join(older)}), so that it still takes "
            "chunks on their subject, which nothing else needs: stop them, then `natsblob bucket adopt` again"
        )
    for outcome, advice in _LEFT_ALONE.items():
        if outcomes[outcome]:
            say(advice)
    if outcomes["corrupt"] or outcomes["unreadable"]:
        return Exit.MISMATCH
    return Exit.FAILURE if outcomes["refused"] or (older and not force) else Exit.OK


def _line(adoption: Adoption) -> str:
    """An adoption on one line, whatever others call their objects."""
    name = adoption.name if adoption.name.isprintable() else repr(adoption.name)
    reason = f"  ({adoption.reason})" if adoption.reason else ""
    return f"{adoption.outcome:<10} {adoption.digest or '-'!s:<64} {name}{reason}"


async def _show(one: Bucket, info: StreamInfo, common: Common) -> None:
    out = Stdout()
    if common.json:
        await out.record(_fields(one, info))
    else:
        for name, value in _fields(one, info).items():
            await out.line(f"{name:<13}{_written(name, value)}")
    await out.flush()


def _fields(one: Bucket, info: StreamInfo) -> dict[str, object]:
    config, state, cluster = info.config, info.state, info.cluster
    return {
        "bucket": one.name,
        "description": config.get("description", ""),
        "stream": one.layout.stream,
        "bytes": state.bytes,
        "messages": state.messages,
        "max_bytes": max(0, config.get("max_bytes", 0)),
        "max_age": config.get("max_age", 0) / NANOSECONDS,
        "storage": config.get("storage", ""),
        "compression": config.get("compression", "none") != "none",
        "replicas": config.get("num_replicas", 1),
        "leader": cluster.leader if cluster and cluster.name else "",
        "followers": {
            follower.name: "offline" if follower.offline else "current" if follower.current else "behind"
            for follower in (cluster.replicas if cluster else [])
        },
        "uploads": one.uploads(config),
        "rollups": bool(config.get("allow_rollup_hdrs", False)),
        "sealed": bool(config.get("sealed", False)),
    }


def _written(name: str, value: object) -> str:
    match name, value:
        case "bytes", int():
            return f"{value} ({bytes_of(value)})" if value >= 1024 else str(value)
        case "max_bytes", int():
            return bytes_of(value) if value else "no limit"
        case "max_age", float():
            return format_duration(value) if value else "no limit"
        case "followers", dict():
            return ", ".join(f"{follower} {state}" for follower, state in value.items()) or "-"
        case _, bool():
            return "yes" if value else "no"
    return str(value) or "-"
