"""The command that measures a deployment by using it, as any client would."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import anyio
from cyclopts import Parameter

from natsblob.chunking import DEFAULT_CHUNK_SIZE
from natsblob.cli.exits import UsageError
from natsblob.cli.options import UNSET, Common, blobs_of
from natsblob.cli.terminal import Stdout, say
from natsblob.config.quantity import format_size, parse_duration, parse_size
from natsblob.errors import BlobError, BlobNotFoundError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from natsblob.client import Client
    from natsblob.digest import Digest

_CLEAN_UP_DEADLINE: Final = 60.0
_CLEANED_AT_ONCE: Final = 16
Number = TypeVar("Number", int, float)

_STAMP: Final = 16
"""Bytes that make each blob one that nobody has stored before."""
_PERCENTILES: Final = (50, 99, 99.9)


async def bench(
    *,
    size: Annotated[tuple[str, ...], Parameter(metavar="SIZE")] = ("4KiB", "1MiB", "64MiB"),
    at_once: Annotated[tuple[int, ...], Parameter(metavar="N")] = (1, 32),
    duration: Annotated[str, Parameter(metavar="TIME")] = "2s",
    most: Annotated[str, Parameter(metavar="SIZE")] = "1GiB",
    common: Common = UNSET,
) -> None:
    """Measure how fast this deployment puts, gets and finds blobs.

    It stores random blobs, reads them verified, asks for them, and deletes them again, also when it
    is interrupted. Rates and times are those of this client, at this moment, from this machine.

    Parameters
    ----------
    size
        The size of a blob, such as 64KiB; may be given several times.
    at_once
        How many requests are under way at a time; may be given several times.
    duration
        How long each kind of request is repeated. What has begun then is still finished.
    most
        The most that is stored at a time; more bytes at once than this are not tried.
    """
    limit = _read(most, parse_size)
    seconds = _read(duration, parse_duration)
    loads = [Load(_read(text, parse_size), lanes) for text in size for lanes in at_once]
    if any(load.size < _STAMP or load.at_once < 1 for load in loads):
        raise UsageError(f"--size is {_STAMP} bytes or more, and --at-once 1 or more")
    possible = [load for load in loads if load.size * load.at_once <= limit]
    if not possible:
        raise UsageError(f"--most {most} is too little for the sizes to be measured")
    measured: list[Figure] = []
    out = Stdout()
    async with blobs_of(common) as blobs:
        for load in possible:
            if not common.quiet:
                say(f"{format_size(load.size)}, {load.at_once} at once")
            async for figure in _figures(blobs, load, seconds, limit):
                measured.append(figure)
                if common.json:
                    await out.record(figure.fields())
                    await out.flush()
    if not common.json:
        await out.page(_table(measured))
        await out.flush()


def _read(text: str, parse: Callable[[str], Number]) -> Number:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Load:
    """Blobs of one size in bytes, so many of them under way at a time."""

    size: int
    at_once: int


@dataclass(frozen=True, slots=True)
class Figure:
    """How one verb fared under a load. Latencies in seconds, ascending."""

    load: Load
    verb: str
    seconds: float
    latencies: Sequence[float] = field(repr=False)

    @property
    def rate(self) -> float:
        """Operations per second."""
        return len(self.latencies) / self.seconds

    @property
    def throughput(self) -> float | None:
        """Bytes per second; `None` if no bytes of blobs are moved."""
        return None if self.verb == "has" else self.rate * self.load.size

    def fields(self) -> dict[str, object]:
        return {
            "verb": self.verb,
            "size": self.load.size,
            "at_once": self.load.at_once,
            "operations": len(self.latencies),
            "seconds": self.seconds,
            "per_second": self.rate,
            "bytes_per_second": self.throughput,
            "latency_seconds": {f"p{p:g}": percentile(self.latencies, p) for p in _PERCENTILES},
        }


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The least value that is not exceeded by `percent` of all of them (nearest rank)."""
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


async def _figures(blobs: Client, load: Load, seconds: float, limit: int) -> AsyncIterator[Figure]:
    """Put, get and has, in this order; at the end all blobs that were put are deleted."""
    stored: list[Digest] = []
    body = os.urandom(min(load.size, 16 * DEFAULT_CHUNK_SIZE))
    room, turn = limit, 0

    def next_stored() -> Digest:
        nonlocal turn
        turn += 1
        return stored[turn % len(stored)]

    async def put() -> bool:
        nonlocal room
        room -= load.size
        under_way = asyncio.create_task(blobs.put(_content(body, load.size)))
        try:
            await asyncio.shield(under_way)
        finally:  # also when cancelled: what is stored has to be known, to be deleted
            stored.append((await under_way).digest)
        return room >= load.size

    async def get() -> bool:
        await _read_all(blobs, next_stored(), load.size)
        return True

    async def has() -> bool:
        if not await blobs.has(digest := next_stored()):
            raise BlobNotFoundError(f"{digest} was put a moment ago and is not there", digest=str(digest))
        return True

    try:
        for verb, operation in {"put": put, "get": get, "has": has}.items():
            yield await _driven(load, verb, seconds, operation)
    finally:
        await _clean_up(blobs, stored)


async def _driven(load: Load, verb: str, seconds: float, operation: Callable[[], Awaitable[bool]]) -> Figure:
    """Repeat the operation in each lane until the time is over, or until it says that it is the last."""
    latencies: list[float] = []
    started = perf_counter()

    async def lane() -> None:
        more = True
        while more:
            begun = perf_counter()
            more = await operation()
            ended = perf_counter()
            latencies.append(ended - begun)
            more = more and ended < started + seconds

    try:
        async with asyncio.TaskGroup() as lanes:
            for _ in range(load.at_once):
                lanes.create_task(lane())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return Figure(load, verb, perf_counter() - started, sorted(latencies))


def _content(body: bytes, size: int) -> bytes | AsyncIterator[bytes]:
    """Bytes that nobody has stored before: in memory if they are few, else as they are needed."""
    stamp = os.urandom(_STAMP)
    if size <= len(body):
        return stamp + body[_STAMP:size]
    return _stream(stamp, body, size)


async def _stream(stamp: bytes, body: bytes, size: int) -> AsyncIterator[bytes]:
    yield stamp + body[_STAMP:DEFAULT_CHUNK_SIZE]
    for start in range(DEFAULT_CHUNK_SIZE, size, DEFAULT_CHUNK_SIZE):
        at = start % len(body)
        yield body[at : at + min(DEFAULT_CHUNK_SIZE, size - start)]


async def _read_all(blobs: Client, digest: Digest, size: int) -> None:
    if size <= DEFAULT_CHUNK_SIZE:
        await blobs.get(digest)
        return
    async with blobs.open(digest) as reader:
        async for _ in reader:
            pass


async def _clean_up(blobs: Client, stored: list[Digest]) -> None:
    """Delete what was put, also under cancellation; say what could not be."""
    left = list(stored)

    async def lane() -> None:
        while left:
            digest = left.pop()
            try:
                await blobs.delete(digest)
            except BlobNotFoundError:
                continue
            except BlobError:
                left.append(digest)
                return

    with anyio.move_on_after(_CLEAN_UP_DEADLINE, shield=True):
        async with asyncio.TaskGroup() as lanes:
            for _ in range(_CLEANED_AT_ONCE):
                lanes.create_task(lane())
    if left:
        say(f"natsblob: {len(left)} blobs of this run could not be removed. To remove them:", style="yellow")
        say(f"  natsblob rm {' '.join(map(str, left))}")


def _table(figures: Sequence[Figure]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in ("size", "at once", "per second", "MiB/s", "p50", "p99", "p99.9"):
        table.add_column(heading, justify="right")
    for figure in figures:
        moved = figure.throughput
        table.add_row(
            figure.verb,
            format_size(figure.load.size),
            str(figure.load.at_once),
            f"{figure.rate:,.1f}",
            "" if moved is None else f"{moved / 1024**2:,.1f}",
            *(f"{percentile(figure.latencies, p) * 1000:,.1f} ms" for p in _PERCENTILES),
        )
    return table
