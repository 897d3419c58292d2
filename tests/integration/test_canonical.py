"""Chunks with any headers, in any order and of any size: refused, or readable by every client afterwards."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import AsyncIterator, Callable, Sequence

import nats
import pytest

from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.errors import NotAllowedError
from natsblob.testing.payloads import cut, pattern
from tests.integration.raw import CHUNK, Raw, Upload, Wire, pieces, service

DATA = pattern(3 * CHUNK + 100)
CHUNKS = pieces(DATA)
DIGEST = hashlib.sha256(DATA).hexdigest()

Block = Callable[[str, int, bytes], bytes]
"""The header block of a chunk, of its stage, index and bytes."""


def lines(stage: str, index: int, data: bytes) -> list[bytes]:
    return [
        b"Blob-Chunk: %d" % index,
        b"Blob-Sum: crc32=%08x" % zlib.crc32(data),
        b"Nats-Msg-Id: %s.%d" % (stage.encode(), index),
    ]


def block(*lines: bytes, first: bytes = b"NATS/1.0", end: bytes = b"\r\n\r\n") -> bytes:
    return b"\r\n".join((first, *lines)) + end


def good(stage: str, index: int, data: bytes) -> bytes:
    return block(*lines(stage, index, data))


def with_line(line: bytes, *, first: bool = False) -> Block:
    def made(stage: str, index: int, data: bytes) -> bytes:
        usual = lines(stage, index, data)
        return block(line, *usual) if first else block(*usual, line)

    return made


def without(number: int) -> Block:
    def made(stage: str, index: int, data: bytes) -> bytes:
        usual = lines(stage, index, data)
        return block(*usual[:number], *usual[number + 1 :])

    return made


def changed(old: bytes, new: bytes) -> Block:
    return lambda stage, index, data: good(stage, index, data).replace(old, new)


def status(line: bytes) -> Block:
    return lambda stage, index, data: block(*lines(stage, index, data), first=b"NATS/1.0 " + line)


def ended(end: bytes) -> Block:
    return lambda stage, index, data: block(*lines(stage, index, data), end=end)


FORGED = [
    b"Nats-Service-Error-Code: 404",
    b"Nats-Service-Error: gone",
    b"Status: 204",
    b"Description: EOB",
    b"Nats-Subject: elsewhere",
    b"Nats-Sequence: 1",
    b"Nats-Stream: OBJ_other",
    b"Nats-Time-Stamp: then",
    b"Nats-Num-Pending: 0",
    b"Nats-Last-Sequence: 0",
    b"Nats-Msg-Size: 1",
    b"Nats-UpTo-Sequence: 1",
    b"Nats-Rollup: sub",
    b"Nats-Expected-Stream: OBJ_other",
    b"Nats-Expected-Last-Sequence: 7",
    b"Nats-Marker-Reason: MaxAge",
    b"Blob-Chunk: 0",
    b"Blob-Chunk: 1",
    b"blob-chunk: 0",
    b"Blob-Digest: " + b"0" * 64,
    b"Blob-Part: 0/1",
    b"Natsblob-Malformed: 1",
    b"X: y",
    b"X: " + b"y" * 20_000,
    b"X: " + b"y" * 60_000,
    b"no colon",
    b"X: \xff",
]
BLOCKS: dict[str, Block] = {
    "as it has to be": good,
    "another order": lambda stage, index, data: block(*reversed(lines(stage, index, data))),
    "no index": without(0),
    "no sum": without(1),
    "no id": without(2),
    "leading zero": changed(b"Blob-Chunk: ", b"Blob-Chunk: 0"),
    "leading zero of the id": changed(b".", b".0"),
    "another id": changed(b"Nats-Msg-Id: ", b"Nats-Msg-Id: x"),
    "upper-case sum": lambda *of: good(*of).replace(b"crc32=", b"CRC32="),
    "no space": changed(b": ", b":"),
    "more space": changed(b": ", b":  "),
    "lower-case names": changed(b"Blob-", b"blob-"),
    "lower-case version": changed(b"NATS/1.0", b"nats/1.0"),
    "another version": changed(b"NATS/1.0", b"NATS/2.0"),
    "end of data": status(b"204 EOB"),
    "not found": status(b"404 Not Found"),
    "no responders": status(b"503"),
    "no end": ended(b""),
    "half an end": ended(b"\r\n"),
    "another end": ended(b"\r\nXY"),
    "too much of an end": ended(b"\r\n\r\n\r\n"),
    "line feeds": lambda *of: good(*of).replace(b"\r\n", b"\n"),
    "nothing": lambda *_: b"NATS/1.0\r\n\r\n",
    **{f"{line[:24].decode('latin1')} {len(line)}": with_line(line) for line in FORGED},
    **{f"first {line[:24].decode('latin1')} {len(line)}": with_line(line, first=True) for line in FORGED},
}


@pytest.fixture(params=["tap", "readback", "elsewhere"])
async def raw(server: EmbeddedServer, request: pytest.FixtureRequest) -> AsyncIterator[Raw]:
    """All ways to verify an upload: as it was watched, read back, and read back without a consumer."""
    check = "tap" if request.param == "tap" else "readback"
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "elsewhere":
            refuse_consumers(patch)
        async with service(server.url, commit_check=check) as client:
            yield client


def refuse_consumers(patch: pytest.MonkeyPatch) -> None:
    """Workers without the permission to create consumers."""
    call = JetStream.call

    async def without_consumers(self: JetStream, operation: str, *args: object, **named: object) -> object:
        if operation.startswith("CONSUMER."):
            raise NotAllowedError("permissions violation")
        return await call(self, operation, *args, **named)  # type: ignore[arg-type]

    patch.setattr(JetStream, "call", without_consumers)


async def stage(raw: Raw, url: str, chunks: Sequence[tuple[int, bytes, Block]]) -> Upload:
    upload = await raw.open()
    subject = str(upload.opened["chunk_subject"])
    name = subject.rpartition(".")[2]
    async with Wire(url) as wire:
        for index, data, made in chunks:
            upload.sizes[index] = len(data)
            await wire.publish(subject, "_INBOX.nobody", made(name, index, data), data)
    upload.seqs = dict(enumerate(range(1, len(chunks) + 1)))
    return upload


async def is_sound(raw: Raw, url: str, committed: int) -> None:
    """What was committed can be read, by whoever; and an honest put of the same content heals what is not."""
    if committed == 0:
        await is_readable(raw, url)
    else:
        assert await raw.names() == 0
        assert await raw.staged() == {}
    assert await raw.put(DATA[:CHUNK]) == hashlib.sha256(DATA[:CHUNK]).hexdigest()
    upload = await raw.upload(*CHUNKS)
    assert (await upload.commit()).code == 0
    await is_readable(raw, url)


async def is_readable(raw: Raw, url: str) -> None:
    assert (await raw.ask("get", DIGEST.encode())).data == DATA
    assert b"".join((await raw.window(DIGEST, 0, 4)).values()) == DATA
    async with await nats.connect(url) as theirs:
        store = await theirs.jetstream().object_store(raw.bucket)
        assert (await store.get(DIGEST)).data == DATA


@pytest.mark.parametrize("made", BLOCKS.values(), ids=BLOCKS.keys())
async def test_any_headers(raw: Raw, server: EmbeddedServer, made: Block) -> None:
    chunks = [(index, data, made if index == 1 else good) for index, data in enumerate(CHUNKS)]
    upload = await stage(raw, server.url, chunks)
    await is_sound(raw, server.url, (await upload.commit()).code)


@pytest.mark.parametrize("made", [good, without(2)], ids=["once", "any number of times"])
@pytest.mark.parametrize(
    "order", [(1, 0, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2), (3, 2, 1, 0), (0, 0, 1, 2, 3), (0, 1, 2, 3, 1)]
)
async def test_any_order(raw: Raw, server: EmbeddedServer, order: tuple[int, ...], made: Block) -> None:
    upload = await stage(raw, server.url, [(index, CHUNKS[index], made) for index in order])
    committed = (await upload.commit()).code
    assert committed == 0
    await is_sound(raw, server.url, committed)


@pytest.mark.parametrize(
    "size", [20, 100, CHUNK // 4, CHUNK // 2, CHUNK - 1, CHUNK + 1, 2 * CHUNK, len(DATA)]
)
async def test_any_size(raw: Raw, server: EmbeddedServer, size: int) -> None:
    upload = await stage(raw, server.url, [(index, data, good) for index, data in enumerate(cut(DATA, size))])
    committed = (await upload.commit()).code
    assert committed == (400 if size < CHUNK // 8 else 0)
    await is_sound(raw, server.url, committed)


async def test_no_consumer_is_left(raw: Raw) -> None:
    upload = await raw.upload(*CHUNKS)
    assert (await upload.commit()).code == 0
    for _ in range(2):
        await raw.nc.flush()
    assert (await raw.js.stream_info(raw.stream)).state.consumer_count == 0
