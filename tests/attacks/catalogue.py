"""The attacks: what is done once, and how often a second."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from tests.attacks.attacker import Attacker, written
from tests.hostile.cells import BLOCKS, Place, right

CHUNK: Final = 64 * 1024
"""The chunk size of the service that is attacked."""
BLOBS: Final = 1_500
"""Stored before it begins."""


@dataclass(frozen=True, slots=True)
class Attack:
    once: Callable[[Attacker], Coroutine[Any, Any, None]]
    rate: float
    """Times a second."""
    what: str


ATTACKS: Final[dict[str, Attack]] = {}
_numbers = count()


def known(number: int) -> bytes:
    """A blob that is stored before the attack."""
    return b"known %d" % number + b"." * 300


LARGE: Final = b"large" * 1_600_000
"""One of 8 MB that is stored as well."""


def _attack(rate: float, what: str) -> Callable[[Callable[[Attacker], Coroutine[Any, Any, None]]], None]:
    def add(once: Callable[[Attacker], Coroutine[Any, Any, None]]) -> None:
        ATTACKS[once.__name__] = Attack(once, rate, what)

    return add


async def _upload(
    evil: Attacker,
    pieces: list[bytes],
    block: Callable[[Place], bytes],
    *,
    elsewhere: bool = False,
    **commit: Any,
) -> None:
    """Open, publish, commit."""
    opened = await evil.open()
    if not opened:
        return
    stage = opened["chunk_subject"].rpartition(".")[2]
    seqs = [
        await evil.chunk(opened, index, data, block(Place(stage, index, data)))
        for index, data in enumerate(pieces)
    ]
    content = b"".join(pieces)
    body = {
        "upload": opened["upload"],
        "size": len(content),
        "chunks": len(pieces),
        "digest": hashlib.sha256(content).hexdigest(),
        "marks": {"every": len(pieces), "seqs": seqs[:1]},
        **commit,
    }
    await evil.request("blob.put.commit" if elsewhere else opened["commit_subject"], body)


@_attack(10, "uploads of 3 chunks, one with a header block from the hostile matrix, committed and read")
async def hostile_chunks(evil: Attacker) -> None:
    number = next(_numbers)
    block = list(BLOCKS.values())[number % len(BLOCKS)]
    pieces = [os.urandom(CHUNK), os.urandom(CHUNK), os.urandom(100)]
    await _upload(
        evil,
        pieces,
        lambda place: (block if place.number == number % 3 else right)(place),
        elsewhere=number % 2 > 0,
    )
    digest = hashlib.sha256(b"".join(pieces)).hexdigest()
    await evil.request(
        "blob.get", {"digest": digest, "mode": "stream", "first": 0, "count": 3, "verify": True}
    )


@_attack(2, "uploads of one chunk that fills max_payload with the shortest header, committed and relayed")
async def full_frames(evil: Attacker) -> None:
    block = b"NATS/1.0\r\nBlob-Chunk:0\r\n\r\n"
    data = os.urandom(2**20 - len(block))
    await _upload(evil, [data], lambda place: block)
    digest = hashlib.sha256(data).hexdigest()
    await evil.request(
        "blob.get", {"digest": digest, "mode": "stream", "first": 0, "count": 1, "verify": True}
    )


@_attack(400, "chunks of 1 KiB for stages that nobody opened")
async def floods(evil: Attacker) -> None:
    evil.publish(f"$O.{evil.bucket}.C.{evil.token()}", bytes(1024), b"NATS/1.0\r\nBlob-Chunk: 0\r\n\r\n")


@_attack(100, "chunks on tokens with control characters, wildcards, 3.9 KB, bytes that are not UTF-8")
async def weird_tokens(evil: Attacker) -> None:
    tokens = [
        b"\x01",
        b">",
        b"*",
        b"\xff\xfe",
        b"x" * 3_900,
        b"a" * 22,
        b"$",
        b"decision",
        "ü".encode(),
        b"%s",
    ]
    number = next(_numbers)
    token = tokens[number % len(tokens)] + b"%d" % (number if number % len(tokens) > 2 else 0)
    evil.publish(b"$O.%s.C.%s" % (evil.bucket.encode(), token), b"x", b"NATS/1.0\r\nBlob-Chunk: 0\r\n\r\n")


@_attack(3, "header blocks of 900 KB, on chunks and on requests in turns")
async def huge_headers(evil: Attacker) -> None:
    number = next(_numbers)
    block = b"NATS/1.0\r\nBlob-Chunk: 0\r\nX: " + b"x" * 900_000 + b"\r\n\r\n"
    if number % 2:
        await evil.request("blob.get", b"0" * 64, block)
        return
    data = os.urandom(100)
    await _upload(evil, [data], lambda place: right(place)[:-2] + b"X: " + b"x" * 900_000 + b"\r\n\r\n")
    await evil.request("blob.get", hashlib.sha256(data).hexdigest().encode())


@_attack(200, "uploads that are opened and left")
async def opens(evil: Attacker) -> None:
    await evil.open(size=10_000_000)


@_attack(100, "relayed uploads that are opened and left, a chunk in every second one")
async def idle_relays(evil: Attacker) -> None:
    opened = await evil.open(relayed=True)
    if opened and next(_numbers) % 2:
        data = os.urandom(CHUNK)
        stage = opened["chunk_subject"].rpartition(".")[2]
        evil.publish(opened["chunk_subject"], data, right(Place(stage, 0, data)), b"_INBOX.evil.none")


@_attack(20, "relayed uploads with chunks beyond the window, too large, and without sums")
async def bad_relays(evil: Attacker) -> None:
    opened = await evil.open(relayed=True)
    if not opened:
        return
    stage = opened["chunk_subject"].rpartition(".")[2]
    for index, size in ((10**6, CHUNK), (0, 600_000), (0, 0), (1, CHUNK)):
        data = bytes(size)
        block = BLOCKS["no headers" if index == 1 else "right"](Place(stage, index, data))
        evil.publish(opened["chunk_subject"], data, block, b"_INBOX.evil.none")


@_attack(10, "commits that declare 1 TiB after one chunk, at any worker")
async def huge_commits(evil: Attacker) -> None:
    await _upload(evil, [b"x" * CHUNK], right, elsewhere=True, size=2**40, chunks=2**40 // CHUNK, marks=None)


@_attack(0.3, "uploads of 1,000 chunks of one byte, committed for 1 TiB and asked for their status")
async def tiny_chunks(evil: Attacker) -> None:
    opened = await evil.open()
    if not opened:
        return
    for index in range(1_000):
        evil.publish(opened["chunk_subject"], b"x", b"NATS/1.0\r\nBlob-Chunk:%d\r\n\r\n" % index)
        if index % 500 == 0:
            await evil.link.flush()
    await evil.request("blob.put.status", {"upload": opened["upload"]})
    await evil.request("blob.put.commit", {"upload": opened["upload"], "size": 2**40, "chunks": 1_001})
    await evil.request("blob.put.commit", {"upload": opened["upload"], "size": 1_000, "chunks": 1_000})


@_attack(20, "two neighbouring chunks on two connections at once, committed")
async def races(evil: Attacker) -> None:
    opened = await evil.open()
    if not opened:
        return
    stage = opened["chunk_subject"].rpartition(".")[2]
    pieces = [os.urandom(CHUNK) for _ in range(3)]
    first = await evil.chunk(opened, 0, pieces[0], right(Place(stage, 0, pieces[0])))
    for index, link in ((1, evil.link), (2, evil.second)):
        block = right(Place(stage, index, pieces[index]))
        link.send(written(opened["chunk_subject"], pieces[index], block, b"_INBOX.evil.none"))
    content = b"".join(pieces)
    body = {
        "upload": opened["upload"],
        "size": len(content),
        "chunks": 3,
        "marks": {"every": 3, "seqs": [first]},
    }
    await evil.request(opened["commit_subject"], body)


@_attack(5, "pages of 1,000 blobs")
async def lists(evil: Attacker) -> None:
    await evil.request("blob.list", {"limit": 1_000, "prefix": "" if next(_numbers) % 2 else "a"})


@_attack(20, "batches of has with 1,000 digests")
async def batches(evil: Attacker) -> None:
    number = next(_numbers)
    digests = [hashlib.sha256(b"%d %d" % (number, index)).hexdigest() for index in range(1_000)]
    await evil.request("blob.has", digests)


@_attack(200, "gets, stats and deletes of what is not there")
async def absent(evil: Attacker) -> None:
    number = next(_numbers)
    verb = ("get", "stat", "delete", "has")[number % 4]
    await evil.request(f"blob.{verb}", hashlib.sha256(b"absent %d" % number).hexdigest().encode())


@_attack(200, "requests with reply subjects that a worker must not answer to")
async def replies(evil: Attacker) -> None:
    subjects = [
        b"$JS.API.STREAM.DELETE.OBJ_blobs",
        b"a.*.b",
        b">",
        b"blob.put",
        b"\x01",
        b"x" * 2_000,
        b"_INBOX.>",
        b"$SRV.PING",
    ]
    number = next(_numbers)
    body = hashlib.sha256(known(number % BLOBS)).hexdigest().encode()
    evil.publish("blob.get", body, b"", subjects[number % len(subjects)])


@_attack(200, "aborts of uploads that there are not")
async def aborts(evil: Attacker) -> None:
    await evil.request("blob.put.abort", {"upload": evil.token()})


@_attack(10, "puts of 900 KB that are not what they say")
async def lies(evil: Attacker) -> None:
    await evil.request(
        "blob.put", os.urandom(900_000), b"NATS/1.0\r\nBlob-Digest: " + b"0" * 64 + b"\r\n\r\n"
    )


@_attack(4, "windows of 8 MB, delegated and relayed, to a connection that does not read")
async def unread_windows(evil: Attacker) -> None:
    number = next(_numbers)
    transport = evil.second._transport
    if not transport.is_reading() or number == 0:
        evil.second.send(b"SUB _INBOX.deaf.> 9\r\n")
    transport.pause_reading()
    body = {"digest": hashlib.sha256(LARGE).hexdigest(), "mode": "stream", "first": 0}
    for verify in (False, True):
        request = json.dumps({**body, "count": 64, "verify": verify}).encode()
        evil.second.send(written("blob.get", request, b"", b"_INBOX.deaf.%d" % number))


@_attack(50, "one chunk for each of 50 uploads that never end, so that all taps are held")
async def held_taps(evil: Attacker) -> None:
    uploads: list[tuple[dict[str, Any], list[int]]] = evil.__dict__.setdefault("held", [])
    if len(uploads) < 50:
        opened = await evil.open()
        if opened:
            uploads.append((opened, [0]))
        return
    opened, sent = uploads[next(_numbers) % len(uploads)]
    data = os.urandom(CHUNK)
    stage = opened["chunk_subject"].rpartition(".")[2]
    evil.publish(opened["chunk_subject"], data, right(Place(stage, sent[0], data)), b"_INBOX.evil.none")
    sent[0] += 1


@_attack(50, "bodies that are no requests, on every endpoint")
async def garbage(evil: Attacker) -> None:
    bodies = [
        b"[" * 30_000,
        b"{" * 900_000,
        b"\xff" * 1_000,
        b'{"size":' + b"9" * 100_000 + b"}",
        b"null",
        b"[]",
    ]
    verbs = [
        "get",
        "has",
        "stat",
        "list",
        "delete",
        "put.open",
        "put.status",
        "put.commit",
        "put.abort",
        "caps",
    ]
    number = next(_numbers)
    await evil.request(f"blob.{verbs[number % len(verbs)]}", bodies[number % len(bodies)])


@_attack(20, "chunks that are sent again and again for one stage, with another content each")
async def many_for_one(evil: Attacker) -> None:
    opened = evil.__dict__.setdefault("one", None) or await evil.open()
    evil.__dict__["one"] = opened
    if not opened:
        return
    data = os.urandom(CHUNK)
    block = b"NATS/1.0\r\nBlob-Chunk: 0\r\nBlob-Sum: crc32=%08x\r\n\r\n" % zlib.crc32(data)
    evil.publish(opened["chunk_subject"], data, block, b"_INBOX.evil.none")
    if next(_numbers) % 20 == 0:
        await evil.request("blob.put.commit", {"upload": opened["upload"], "size": CHUNK, "chunks": 1})
