"""Command verify: is every blob still what its digest says, on every server that holds it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from natsblob.cli.exits import Exit, UsageError
from natsblob.cli.options import UNSET, Common, keep_quiet
from natsblob.cli.terminal import Stdout, progress, say
from natsblob.config.quantity import parse_size
from natsblob.digest import Digest
from natsblob.errors import DeadlineError, NoRespondersError, NotAllowedError, SetupError

if TYPE_CHECKING:
    from natsblob.broker.consumers import Copies
    from natsblob.client import Client
    from natsblob.config import Settings
    from natsblob.maintenance.replicas import Comparison, Node
    from natsblob.objectstore.objects import Objects
    from natsblob.wire import Caps

_FIRST_ANSWER: Final = 3.0
"""Seconds for a service to say what it keeps its blobs in."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A bucket as JetStream has it: its objects, and its copies one by one."""

    objects: Objects
    copies: Copies
    patience: float


@asynccontextmanager
async def examined(common: Common) -> AsyncIterator[Stored | Client]:
    """What the service under the prefix serves: a bucket, or itself if it keeps blobs elsewhere.

    If nobody answers, or the bucket that is named is another one, it is the bucket that counts.
    """
    from natsblob.broker.connection import Access
    from natsblob.client import connect

    loaded = common.load()
    keep_quiet(loaded)
    settings = loaded.settings
    bucket = settings.bucket
    access = Access.of(settings, "natsblob cli")
    async with connect(access, prefix=settings.prefix, timeout=settings.timeout) as blobs:
        caps = await _caps(blobs)
        if caps is not None and ("bucket" not in loaded.sources or caps.bucket == bucket):
            if caps.backend != "jetstream":
                yield blobs
                return
            bucket = caps.bucket
    async with _opened(settings, bucket) as one:
        yield one


async def _caps(blobs: Client) -> Caps | None:
    """What the service says of itself, if one answers those who ask with these credentials."""
    with suppress(NoRespondersError, NotAllowedError, DeadlineError):
        return await blobs.caps(timeout=_FIRST_ANSWER)
    return None


@asynccontextmanager
async def stored(common: Common) -> AsyncIterator[Stored]:
    """What is to be examined, copy by copy."""
    async with examined(common) as one:
        if not isinstance(one, Stored):
            raise SetupError(
                f"the service under this prefix keeps its blobs on {(await one.caps()).backend}, where "
                "there are no replicas; without --replicas `natsblob verify` reads what it serves"
            )
        yield one


@asynccontextmanager
async def _opened(settings: Settings, name: str) -> AsyncIterator[Stored]:
    """The bucket, with the credentials that the options name: those of workers may be too weak."""
    from natsblob.broker.connection import Access, connect
    from natsblob.broker.consumers import Copies
    from natsblob.broker.jetstream import JetStream
    from natsblob.objectstore.bucket import Bucket
    from natsblob.objectstore.objects import Objects

    async with await connect(Access.of(settings, "natsblob cli")) as connection:
        jetstream = JetStream(connection, domain=settings.js_domain, patience=settings.timeout)
        bucket = Bucket(jetstream, name, settings.prefix)
        copies = Copies(connection, bucket.layout.stream, domain=settings.js_domain)
        yield Stored(Objects(bucket), copies, settings.timeout)


async def verify(
    *,
    replicas: bool = False,
    after: Annotated[str | None, Parameter(metavar="DIGEST")] = None,
    rate: Annotated[str, Parameter(metavar="SIZE")] = "0",
    metrics: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    common: Common = UNSET,
) -> Exit:
    """Read every blob, and see that its bytes are those of its digest.

    What the service under --prefix serves is read: its bucket directly, anything else through the service.
    If there is no service, it is --bucket. It changes nothing, and the bucket stays in use. Exit code 4
    if bytes are not what they should be.

    Parameters
    ----------
    replicas
        Read the copy of each server, and compare them: this finds a blob that is bad on one server only,
        and so is served by the others for now. Exit code 4 if they differ, 5 if one could not be
        read.
    after
        Begin behind this digest, to go on where an earlier run ended.
    rate
        Read no more than this in a second, such as 50MiB. [default: no limit]
    metrics
        With --replicas: write what was found to this file as Prometheus metrics, for a textfile collector.
    """
    try:
        limit, start = parse_size(rate), Digest.parse(after) if after else None
    except ValueError as error:
        raise UsageError(f"{error}; write 50MiB") from error
    if replicas and (start or limit):
        raise UsageError("--replicas compares everything at once: give neither --after nor --rate with it")
    if metrics and not replicas:
        raise UsageError("--metrics says what each copy is like: give --replicas with it")
    if replicas:
        async with stored(common) as copied:
            return await _compare(copied, metrics, common)
    async with examined(common) as one:
        return await _read(one, start, limit, common)


async def _read(one: Stored | Client, after: Digest | None, rate: int, common: Common) -> Exit:
    from natsblob.maintenance.verify import verify as verifying
    from natsblob.maintenance.verify import verify_served

    if isinstance(one, Stored):
        name, total = one.objects.bucket.name, (await one.objects.bucket.info()).state.bytes
        reading = verifying(one.objects, after=after, rate=rate)
    else:
        caps = await one.caps()
        name, total = caps.backend, None
        reading = verify_served(one, after=after, rate=rate)
    out = Stdout()
    counts: Counter[str] = Counter()
    size = 0
    with progress(f"verify {name}", wanted=not common.quiet) as report:
        async with aclosing(reading) as found:
            async for blob in found:
                counts[blob.outcome] += 1
                size += blob.size
                if report:
                    report(size, total)
                if common.json:
                    await out.record(blob)
                elif blob.outcome != "ok":
                    await out.line(f"{blob.outcome}  {blob.digest}")
                await out.flush()
    if not common.quiet:
        say(f"{counts['ok'] + counts['corrupt']} blobs read, {counts['corrupt']} corrupt")
    if counts["corrupt"]:
        whose = "; `natsblob verify --replicas` says who has them" if isinstance(one, Stored) else ""
        say(f"no wrong bytes were delivered{whose}. Put the originals again, or remove them")
    if counts["foreign"]:
        say(
            "objects of other clients that are named by a digest that is not theirs, and so no blobs: "
            f"{counts['foreign']}. A put of the content replaces them; "
            "`natsblob bucket adopt` keeps what is in them"
        )
    return Exit.MISMATCH if counts["corrupt"] or counts["foreign"] else Exit.OK


async def _compare(one: Stored, metrics: Path | None, common: Common) -> Exit:
    from natsblob.maintenance import exposition
    from natsblob.maintenance.replicas import Comparer

    found = await Comparer(one.objects, one.copies).compare()
    if metrics:
        await exposition.write(found, metrics)
    await show(found, common)
    if found.lost:
        say(f"{len(found.lost)} blobs are whole on no server: put the originals again, or remove them")
    if found.diverge:
        say("copies differ; what is whole somewhere is served, and no wrong bytes are: natsblob repair")
    if found.lost or found.diverge:
        return Exit.MISMATCH
    if not found.agree:
        say("not every copy could be read, so nothing is known of that one: start its server, and look again")
        return Exit.NOBODY
    return Exit.OK


async def show(found: Comparison, common: Common) -> None:
    """The comparison: a line for each server, and one for each damaged blob."""
    out = Stdout()
    if common.json:
        await out.record(found)
    else:
        for node in found.nodes:
            if not common.quiet or not node.is_good:
                await out.line(f"{node.name:<24} {_state(node)}")
        for blob in found.damage:
            good = ", ".join(blob.good) or "no server"
            await out.line(f"{blob.name}  bad on {', '.join(blob.bad)}; whole on {good}")
        if not common.quiet:
            await out.line(f"{found.blobs} blobs, {len(found.damage)} damaged somewhere")
    await out.flush()


def _state(node: Node) -> str:
    role = ", leader" if node.leader else ""
    if not node.read:
        return f"not read{role}"
    if node.is_good:
        return f"good, {node.messages} messages{role}"
    return f"DAMAGED, {node.lacking} messages and {node.damaged} blobs{role}"
