"""What servers say of their copies of the bucket: cheap, and no proof (ADR 0009)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from natsblob.broker.connection import Connection
from natsblob.maintenance.doctor.ask import gather
from natsblob.maintenance.doctor.check import Check, Status
from natsblob.maintenance.doctor.monitor import MonitorError, page

_PAGE_BYTES: Final = 16 * 1024 * 1024
_SECOND_LOOK: Final = 1.0
"""Seconds after which a copy that was behind has to have what the others had."""


class Figures(msgspec.Struct, frozen=True):
    """How one server counts its copy of a stream."""

    messages: int = 0
    num_deleted: int = 0
    last_seq: int = 0


class _Stream(msgspec.Struct):
    name: str
    state: Figures


class _Account(msgspec.Struct):
    stream_detail: list[_Stream] = []


class _Jsz(msgspec.Struct):
    server_id: str = ""
    account_details: list[_Account] = []

    def figures(self, stream: str) -> Figures | None:
        """Of the one stream with this name, or `None` if this server has none, or several accounts do."""
        found = [
            one.state
            for account in self.account_details
            for one in account.stream_detail
            if one.name == stream
        ]
        return found[0] if len(found) == 1 else None


class _Pinged(msgspec.Struct):
    class Server(msgspec.Struct):
        name: str = ""

    server: Server
    data: _Jsz


async def check_copies(connection: Connection, monitors: Sequence[str], stream: str) -> Check | None:
    """Whether the servers count the same; `None` if fewer than two of them can be asked."""
    first = await _look(connection, monitors, stream)
    if len(first) < 2:
        return None
    suspects = set(differing(first, first))
    if not suspects:
        return judged(first, [])
    await asyncio.sleep(_SECOND_LOOK)
    second = await _look(connection, monitors, stream)
    return judged(second, [name for name in differing(first, second) if name in suspects])


def differing(before: Mapping[str, Figures], now: Mapping[str, Figures]) -> list[str]:
    """The servers that do not have by now what others had before, or count it differently."""
    last = max((figures.last_seq for figures in before.values()), default=0)
    behind = [name for name, figures in now.items() if figures.last_seq < last]
    counts: dict[tuple[int, int, int], list[str]] = {}
    newest = max((figures.last_seq for figures in now.values()), default=0)
    for name, figures in now.items():
        if figures.last_seq == newest:
            counts.setdefault((figures.messages, figures.num_deleted, figures.last_seq), []).append(name)
    if len(counts) > 1:
        fullest = max(counts)
        behind += [name for count, names in counts.items() if count != fullest for name in names]
    return sorted(set(behind))


def judged(seen: Mapping[str, Figures], different: Sequence[str]) -> Check:
    said = ", ".join(f"{name} {figures.messages}" for name, figures in sorted(seen.items()))
    if different:
        return Check(
            name="copies",
            status=Status.WARN,  # while blobs are being deleted, servers that are in order may differ too
            found=f"messages: {said}; {', '.join(different)} differs",
            means="A copy is behind or damaged. Nothing wrong is served; blobs may not be found through it.",
            todo="Wait a minute if that server was just started. Then natsblob verify --replicas tells more, "
            "and natsblob repair gives it a fresh copy.",
        )
    return Check(
        name="copies",
        status=Status.OK,
        found=f"messages: {said}",
        means="The servers count the same. That they can read them only natsblob verify --replicas shows.",
    )


async def _look(connection: Connection, monitors: Sequence[str], stream: str) -> dict[str, Figures]:
    """The figures of each server that has the stream, by its name or its monitoring address."""
    pages: dict[str, tuple[str, _Jsz]] = {}
    body = msgspec.json.encode({"streams": True, "accounts": True})
    for answer in await gather(connection, "$SYS.REQ.SERVER.PING.JSZ", body):
        with suppress(msgspec.MsgspecError):
            pinged = msgspec.json.decode(answer.data, type=_Pinged)
            pages[pinged.data.server_id] = (pinged.server.name, pinged.data)
    for url, read in zip(monitors, await asyncio.gather(*map(_read, monitors)), strict=True):
        if read is not None:
            pages.setdefault(read.server_id, (url, read))
    return {name: figures for name, page in pages.values() if (figures := page.figures(stream)) is not None}


async def _read(url: str) -> _Jsz | None:
    with suppress(MonitorError):  # the check of how servers write to disk tells of it
        return await page(url, "jsz?streams=true", _Jsz, most=_PAGE_BYTES)
    return None
