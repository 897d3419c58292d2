"""What can be seen of the servers: version, message size, and how they write to disk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from natsblob.broker.connection import Connection
from natsblob.chunking import LEAST_PAYLOAD, MESSAGE_RESERVE, chunk_size_for
from natsblob.config.quantity import NANOSECONDS, format_duration, format_size
from natsblob.maintenance.doctor.ask import ask, gather
from natsblob.maintenance.doctor.check import Check, Status
from natsblob.maintenance.doctor.monitor import MonitorError, page
from natsblob.objectstore.bucket import OLDEST_SERVER

_RECOMMENDED: Final = (2, 14, 0)
_MONITOR_BYTES: Final = 1024 * 1024


class _DiskConfig(msgspec.Struct):
    sync_interval: int = 0
    """Nanoseconds."""
    sync_always: bool = False


class _JetStreamState(msgspec.Struct):
    config: _DiskConfig | None = None


class Varz(msgspec.Struct):
    """The part of a server's `/varz` that matters here."""

    server_id: str = ""
    server_name: str = ""
    jetstream: _JetStreamState | None = None


class _PingedVarz(msgspec.Struct):
    data: Varz


class _Server(msgspec.Struct):
    name: str = ""


class _UserInfo(msgspec.Struct):
    server: _Server


def check_version(connection: Connection) -> Check:
    version = connection.server_version
    found = f"nats-server {_dotted(version)}"
    if version < OLDEST_SERVER:
        return Check(
            name="server",
            status=Status.FAIL,
            found=found,
            means="It has no batched direct reads: blobs cannot be read from it.",
            todo=f"Upgrade every server to {_dotted(_RECOMMENDED)} or newer; "
            f"{_dotted(OLDEST_SERVER)} is the oldest that works.",
        )
    if version < _RECOMMENDED:
        return Check(
            name="server",
            status=Status.WARN,
            found=found,
            means="It works. Older servers can lose streams to a corrupt snapshot.",
            todo=f"Plan an upgrade to {_dotted(_RECOMMENDED)} or newer, one server at a time.",
        )
    return Check(
        name="server", status=Status.OK, found=found, means="Everything that natsblob can use is there."
    )


def check_payload(connection: Connection, wanted: int) -> Check:
    """Whether chunks of `wanted` bytes fit the server's `max_payload`."""
    limit = connection.max_payload
    chunk = chunk_size_for(limit, wanted)
    found = f"max_payload {format_size(limit)}"
    if limit < LEAST_PAYLOAD:
        return Check(
            name="payload",
            status=Status.FAIL,
            found=found,
            means="Workers refuse to start: headers leave no room for chunks. What is stored is safe.",
            todo=f"Set max_payload: {format_size(wanted + MESSAGE_RESERVE)} or more on every server.",
        )
    if chunk < wanted:
        return Check(
            name="payload",
            status=Status.WARN,
            found=found,
            means=f"Chunks are {format_size(chunk)}, not {format_size(wanted)} as configured: slower.",
            todo=f"Set max_payload: {format_size(wanted + MESSAGE_RESERVE)} or more on every server.",
        )
    inline = format_size(limit - MESSAGE_RESERVE)
    return Check(
        name="payload",
        status=Status.OK,
        found=found,
        means=f"Blobs up to {inline} are one request; larger ones go in chunks of {format_size(chunk)}.",
    )


async def check_fsync(connection: Connection, monitors: Sequence[str], embedded_name: str) -> Check:
    """When servers write to disk, by whatever way that can be seen.

    `embedded_name` is the name that natsblob's own embedded server on this machine has.
    """
    silent: list[str] = []
    seen: list[Varz] = []
    for answer in await gather(connection, "$SYS.REQ.SERVER.PING.VARZ"):
        with suppress(msgspec.MsgspecError):
            seen.append(msgspec.json.decode(answer.data, type=_PingedVarz).data)
    for url, varz in zip(monitors, await asyncio.gather(*map(_monitored, monitors)), strict=True):
        if isinstance(varz, MonitorError):
            silent.append(f"{url}: {varz}")
        else:
            seen.append(varz)
    disks = {
        varz.server_name: varz.jetstream.config for varz in seen if varz.jetstream and varz.jetstream.config
    }
    if silent:
        return _fsync_unseen(f"no monitoring at {'; '.join(silent)}")
    if disks:
        return _fsync_seen(disks)
    if embedded_name and await _server_name(connection) == embedded_name:
        return _fsync_always("the embedded server writes every message to disk at once")
    return _fsync_unseen("cannot be seen with these credentials")


def _fsync_seen(disks: dict[str, _DiskConfig]) -> Check:
    late = {name: disk for name, disk in disks.items() if not disk.sync_always}
    if not late:
        return _fsync_always(f"sync_interval: always on {', '.join(sorted(disks))}")
    said = (
        f"{name} every {format_duration(disk.sync_interval / NANOSECONDS)}"
        for name, disk in sorted(late.items())
    )
    return Check(
        name="fsync",
        status=Status.WARN,
        found=", ".join(said),
        means="A power failure loses what was acknowledged since; of all replicas at once, for good.",
        todo="Set sync_interval: always in the jetstream block of every server, and restart them one by one.",
    )


def _fsync_always(found: str) -> Check:
    return Check(
        name="fsync", status=Status.OK, found=found, means="What is acknowledged survives a power failure."
    )


def _fsync_unseen(found: str) -> Check:
    return Check(
        name="fsync",
        status=Status.WARN,
        found=found,
        means="By default servers write to disk every two minutes: a power failure loses what came since.",
        todo="See that every server has sync_interval: always in its jetstream block; with --monitor "
        "http://HOST:8222 or with credentials of the system account this check can see it.",
    )


async def _server_name(connection: Connection) -> str:
    answer = await ask(connection, "$SYS.REQ.USER.INFO")
    with suppress(msgspec.MsgspecError):
        if answer.message:
            return msgspec.json.decode(answer.message.data, type=_UserInfo).server.name
    return ""


async def _monitored(url: str) -> Varz | MonitorError:
    try:
        varz = await page(url, "varz", Varz, most=_MONITOR_BYTES)
    except MonitorError as error:
        return error
    return varz if varz.server_id else MonitorError("something else than a nats-server answers there")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
