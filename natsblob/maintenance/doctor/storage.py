"""What can be seen of JetStream and the bucket with the credentials of a worker's storage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from natsblob.broker.jetstream import Account, ClusterState, JetStream, StreamInfo
from natsblob.broker.translate import StreamMissingError
from natsblob.errors import BlobError, UnavailableError
from natsblob.maintenance.doctor.ask import NOTHING, Reach, ask, hears
from natsblob.maintenance.doctor.check import Check, Status
from natsblob.maintenance.doctor.stream import check_stream
from natsblob.objectstore.bucket import Bucket
from natsblob.wire import Headers

_SHARE_FULL: Final = 0.9
_FIRST_FAULTY: Final = (2, 14, 0)
_LAST_FAULTY: Final = (2, 15, 1)
"""Versions of nats-server on which one header stops a replicated stream (docs/operations.md)."""
_UNANSWERED: Final = (Reach.REFUSED, Reach.SILENT)


@dataclass(frozen=True, slots=True, eq=False)
class _Need:
    """A subject that a worker publishes to, and a message there that changes nothing."""

    subject: str
    purpose: str
    body: bytes = b""
    headers: Headers = field(default_factory=dict)
    without: str = ""
    """What workers do without it; empty if they cannot do without."""


async def check_storage(jetstream: JetStream, bucket: Bucket, api: str) -> AsyncIterator[Check]:
    """JetStream, the permissions of a worker, the bucket and its replicas, as far as they can be seen.

    `api` is the prefix of JetStream's API.
    """
    needs = _needs(bucket, api)
    reaches = dict(
        zip(needs, await asyncio.gather(*(_reach(jetstream, need) for need in needs)), strict=True)
    )
    reach = reaches[needs[0]]
    if reach in _UNANSWERED:
        yield Check(
            name="jetstream",
            status=Status.WARN,
            found="these credentials may not use it, or it does not answer",
            means="A client needs none of it: only workers do. The bucket cannot be examined from here.",
            todo="To examine the bucket, run this as an administrator, or with all settings of a worker.",
        )
        return
    try:
        yield _check_account(await jetstream.account())
    except UnavailableError as error:
        yield Check(
            name="jetstream",
            status=Status.FAIL,
            found=error.message,
            means="Nothing can be read or written for now; what is stored is safe.",
            todo="See that a majority of the servers runs; an election takes up to ten seconds.",
        )
        return
    except BlobError as error:
        yield Check(
            name="jetstream",
            status=Status.FAIL,
            found=error.message,
            means="There is nowhere to put blobs.",
            todo="Enable JetStream: `jetstream {}` on the servers, `jetstream: enabled` in the account.",
        )
        return
    yield _check_permissions(
        reaches, bucket, await hears(jetstream.connection, bucket.layout.chunks(NOTHING))
    )
    try:
        info = await bucket.info()
    except StreamMissingError:
        yield Check(
            name="bucket",
            status=Status.FAIL,
            found=f"there is no bucket {bucket.name}",
            means="Workers cannot start, unless their credentials allow them to create it.",
            todo=f"natsblob bucket create --bucket {bucket.name} --replicas 3 (or 1, on a single server)",
        )
    except BlobError as error:
        yield Check(
            name="bucket",
            status=Status.FAIL,
            found=error.message,
            means="Nothing can be read or written for now; what is stored is safe.",
            todo="See that a majority of the servers that hold the bucket runs: nats stream report.",
        )
    else:
        yield check_bucket(bucket, info)
        for check in check_stream(bucket.layout, info):
            yield check
        yield check_publishers(bucket, info, jetstream.connection.server_version)
        yield check_replicas(info)
        if await bucket.removals.are_halted():
            yield _damaged(bucket)


def _damaged(bucket: Bucket) -> Check:
    return Check(
        name="damage",
        status=Status.FAIL,
        found=f"the only copy of bucket {bucket.name} has messages that cannot be read",
        means="What can be read is safe as long as nothing is removed, so workers remove nothing.",
        todo="natsblob verify, then move what is there to another bucket: 'Bit rot' in docs/operations.md.",
    )


def _needs(bucket: Bucket, api: str) -> list[_Need]:
    layout = bucket.layout
    stream, chunk, meta = layout.stream, layout.chunks(NOTHING), layout.meta(NOTHING)
    elsewhere = {"Nats-Expected-Stream": "-"}  # has the stream refuse it: nothing is stored
    last = b'{"last_by_subj":"%s"}' % meta.encode()
    return [
        _Need(f"{api}.INFO", "ask for limits"),
        _Need(f"{api}.STREAM.INFO.{stream}", "read the bucket's configuration"),
        _Need(f"{api}.STREAM.MSG.GET.{stream}", "confirm that a blob is missing", last),
        _Need(f"{api}.DIRECT.GET.{stream}", "read chunks", last),
        _Need(f"{api}.DIRECT.GET.{stream}.{meta}", "find blobs"),
        _Need(f"{api}.STREAM.PURGE.{stream}", "drop chunks", b'{"filter":"%s"}' % chunk.encode()),
        _Need(chunk, "store chunks", headers=elsewhere),
        _Need(meta, "make blobs visible", headers=elsewhere),
        *(
            _Need(f"{api}.{subject}", "list what is stored", b"?", without="nothing is collected")
            for subject in (
                f"CONSUMER.CREATE.{stream}",
                f"CONSUMER.MSG.NEXT.{stream}.{NOTHING}",
                f"CONSUMER.DELETE.{stream}.{NOTHING}",
            )
        ),
        _Need(
            f"{api}.STREAM.MSG.DELETE.{stream}",
            "remove single messages",
            b"?",
            without="what has a subject that no purge can name stays",
        ),
    ]


async def _reach(jetstream: JetStream, need: _Need) -> Reach:
    return (await ask(jetstream.connection, need.subject, need.body, need.headers)).reach


def _check_account(account: Account) -> Check:
    limit = account.limits.get("max_storage", -1)
    limited = isinstance(limit, int) and limit > 0
    room = f"{_rounded(account.storage)} used" + (
        f" of {_rounded(limit)}" if limited else ", no account limit"
    )
    found = f"API level {account.api.level}, {room}"
    if limited and account.storage > limit * _SHARE_FULL:
        return Check(
            name="jetstream",
            status=Status.WARN,
            found=found,
            means="Nearly full. Then puts are refused; what is stored stays safe and readable.",
            todo="Raise the account's limit, or delete blobs.",
        )
    return Check(name="jetstream", status=Status.OK, found=found, means="The account may store blobs.")


def _check_permissions(reaches: dict[_Need, Reach], bucket: Bucket, hears_chunks: bool) -> Check:
    refused = [need for need, reach in reaches.items() if reach in _UNANSWERED]
    lacking = [f"{need.subject} (to {need.purpose})" for need in refused if not need.without]
    lesser = [
        f"{need.subject} (to {need.purpose}; without it {need.without})" for need in refused if need.without
    ]
    if not hears_chunks:
        lesser.append(
            f"subscribe to {bucket.layout.chunks('*')} (to hash chunks as they pass; without it each "
            "direct upload is read back)"
        )
    if lacking or lesser:
        return Check(
            name="permissions",
            status=Status.FAIL if lacking else Status.WARN,
            found=f"not allowed, or not answered: {'; '.join((*lacking, *lesser))}",
            means="A worker whose storage has these credentials cannot do its work."
            if lacking
            else "Workers with these credentials serve blobs, and leave that undone. What is stored is safe.",
            todo="If workers use these credentials, allow it: deploy/accounts/accounts.conf shows how.",
        )
    return Check(
        name="permissions",
        status=Status.OK,
        found=f"all {len(reaches)} subjects that a worker's storage needs",
        means="A worker can find, read, store, drop and collect with these credentials.",
    )


def check_bucket(bucket: Bucket, info: StreamInfo) -> Check:
    """Whether the bucket's stream is configured as a service needs it."""
    config, state = info.config, info.state
    found = f"{bucket.name}: {_rounded(state.bytes)} in {state.messages} messages"
    for applies, status, means, todo in _bucket_findings(bucket, config, state.bytes):
        if applies:
            return Check(name="bucket", status=status, found=found, means=means, todo=todo)
    return Check(
        name="bucket",
        status=Status.OK,
        found=found,
        means="Everything in its configuration is as a service needs it.",
    )


def _bucket_findings(
    bucket: Bucket, config: dict[str, Any], size: int
) -> list[tuple[bool, Status, str, str]]:
    """What can be amiss, the worst first: whether it is, what it means, what to do."""
    stream = bucket.layout.stream
    room = config.get("max_bytes", -1)
    old = bucket.old_ingest(config)
    return [
        (
            config.get("storage") == "memory",
            Status.WARN,
            "It lies in memory: when all its servers stop, every blob is gone.",
            "Keep it so for tests and caches only.",
        ),
        (
            0 < room * _SHARE_FULL < size,
            Status.WARN,
            f"Nearly full: its limit is {_rounded(room)}. Then puts are refused; what is stored is safe.",
            f"Raise it: nats stream edit {stream} --max-bytes=BYTES; or delete blobs.",
        ),
        (
            bool(config.get("allow_rollup_hdrs")),
            Status.WARN,
            "It allows rollups: whoever may write into its stream can empty it. So uploads are relayed.",
            f"If no other clients write here: natsblob bucket set --bucket {bucket.name} --no-rollups.",
        ),
        (
            old is not None,
            Status.WARN,
            f"It still takes chunks on {old}, where whoever may use the service can write into its stream.",
            f"When all workers are of this version: natsblob bucket adopt --bucket {bucket.name}.",
        ),
    ]


def check_publishers(bucket: Bucket, info: StreamInfo, version: tuple[int, int, int]) -> Check:
    """Who writes into the stream, and what that means on this version of the server."""
    chunks = bucket.layout.chunks("*")
    if bucket.uploads(info.config) == "relayed":
        return Check(
            name="publishers",
            status=Status.OK,
            found="uploads are relayed",
            means="Only workers need to write into the stream, and nobody else should be allowed to.",
        )
    faulty = _FIRST_FAULTY <= version <= _LAST_FAULTY and int(info.config.get("num_replicas", 1)) > 1
    if not faulty:
        return Check(
            name="publishers",
            status=Status.OK,
            found="uploads are direct",
            means=f"Whoever may publish to {chunks} writes into the stream, and is trusted with the bucket.",
        )
    return Check(
        name="publishers",
        status=Status.WARN,
        found=f"uploads are direct, on nats-server {'.'.join(map(str, version))}",
        means=f"Whoever may publish to {chunks} can stop a replicated bucket for good by one message, which "
        "has an unmet Nats-Expected-Last-Msg-Id. What is stored stays readable.",
        todo="Fine if all of them are trusted with the bucket. Otherwise: natsblob bucket set --bucket "
        f"{bucket.name} --uploads relayed, and let workers alone publish to {bucket.layout.all_chunks}. "
        'docs/operations.md, "A stopped stream", has the way back.',
    )


def check_replicas(info: StreamInfo) -> Check:
    """How many copies there are, and whether each is current."""
    wanted = int(info.config.get("num_replicas", 1))
    cluster = info.cluster or ClusterState()
    behind = [replica.name for replica in cluster.replicas if replica.offline or not replica.current]
    copies = f"{wanted} of {wanted}" if not behind else f"{wanted - len(behind)} of {wanted}"
    found = f"{copies} current, leader {cluster.leader}" if cluster.leader else f"{copies} current"
    if not cluster.leader and cluster.name:
        return Check(
            name="replicas",
            status=Status.FAIL,
            found="no leader",
            means="Nothing can be put for now; what is stored is safe.",
            todo="See that a majority of its servers runs; an election takes up to ten seconds.",
        )
    if behind:
        spare = (wanted - 1) // 2 - len(behind)
        return Check(
            name="replicas",
            status=Status.WARN,
            found=f"{found}; behind or offline: {', '.join(behind)}",
            means=f"It works, and goes on working with {spare} fewer."
            if spare > 0
            else "It works, and stops when one more is lost, until one is back. Nothing is lost by that.",
            todo="Start that server, or wait until it has caught up; then look again.",
        )
    if wanted == 1:
        status = Status.WARN if cluster.name else Status.OK
        return Check(
            name="replicas",
            status=status,
            found="1 copy",
            means="While its server is down no blob can be read; without its disk they are lost.",
            todo="Have three: natsblob bucket set --replicas 3." if cluster.name else "",
        )
    if wanted % 2 == 0:
        return Check(
            name="replicas",
            status=Status.WARN,
            found=found,
            means=f"It withstands the loss of {(wanted - 1) // 2}, as {wanted - 1} would.",
            todo=f"Have {wanted + 1}: natsblob bucket set --replicas {wanted + 1}.",
        )
    lost = (wanted - 1) // 2
    return Check(
        name="replicas",
        status=Status.OK,
        found=found,
        means=f"No acknowledged blob is lost with {lost} of {wanted} servers, and work goes on.",
    )


def _rounded(size: int) -> str:
    """The size to read, not to compute with."""
    for unit, factor in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
