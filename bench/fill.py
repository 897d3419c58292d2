"""Fill a bucket with small blobs, as fast as is honest: the messages that the service would have stored.

    python -m bench.fill URL BUCKET FIRST COUNT SIZE

Each blob is a chunk and its metadata, published as the engine does, but many at a time.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from secrets import token_hex
from typing import Final

from natsblob import wire
from natsblob.broker.connection import Access, Connection, connect
from natsblob.broker.jetstream import EXPECTED_LAST, decode_ack
from natsblob.broker.loop import loop_factory
from natsblob.broker.message import Message
from natsblob.chunking import DEFAULT_CHUNK_SIZE
from natsblob.digest import Digest
from natsblob.objectstore.info import (
    MARKS_KEY,
    Layout,
    ObjectInfo,
    Options,
    encode_info,
    encode_marks,
    new_nuid,
)
from natsblob.wire import Headers, marks_of

BATCH: Final = 512
"""Blobs whose chunks, and then whose metadata, are unanswered at a time."""
_LANES: Final = 2
_PATIENCE: Final = 60.0
_STAMP: Final = 16

Publication = tuple[str, bytes, Headers]


def content(number: int, size: int) -> bytes:
    """The bytes of blob `number`, different from those of any other."""
    return b"%0*d" % (_STAMP, number) + b"\xa5" * (size - _STAMP)


async def fill(connection: Connection, bucket: str, numbers: Sequence[int], size: int) -> None:
    """Store these blobs, and return once all of them are acknowledged."""
    layout = Layout(bucket)
    nuids = [new_nuid() for _ in numbers]
    blobs = [content(number, size) for number in numbers]
    digests = list(map(Digest.of, blobs))
    seqs = await _stored(
        connection,
        [
            (layout.chunks(nuid), data, wire.chunk_headers(nuid, 0, data))
            for nuid, data in zip(nuids, blobs, strict=True)
        ],
    )
    infos = [
        ObjectInfo(
            name=digest.hex,
            bucket=bucket,
            nuid=nuid,
            size=size,
            chunks=1,
            digest=digest.adr20(),
            metadata={MARKS_KEY: encode_marks(marks_of([seq]))},
            options=Options(max_chunk_size=DEFAULT_CHUNK_SIZE),
        )
        for nuid, digest, seq in zip(nuids, digests, seqs, strict=True)
    ]
    await _stored(
        connection,
        [
            (layout.meta(info.name), encode_info(info), {wire.MESSAGE_ID: token_hex(16), EXPECTED_LAST: "0"})
            for info in infos
        ],
    )


async def _stored(connection: Connection, publications: Sequence[Publication]) -> list[int]:
    """Where in the stream each of them is."""
    seqs: dict[int, int] = {}
    complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(message: Message) -> None:
        try:
            seqs[int(message.subject.rpartition(".")[2])] = decode_ack(message).seq
        except Exception as error:  # noqa: BLE001 - whatever it is, the run cannot go on
            if not complete.done():
                complete.set_exception(error)
        if len(seqs) == len(publications) and not complete.done():
            complete.set_result(None)

    with connection.inbox(take) as reply:
        for index, (subject, data, headers) in enumerate(publications):
            await connection.publish(subject, data, reply=f"{reply}.{index}", headers=headers)
        async with asyncio.timeout(_PATIENCE):
            await complete
    return [seqs[index] for index in range(len(publications))]


async def main(url: str, bucket: str, first: int, count: int, size: int) -> None:
    starts = list(range(first, first + count, BATCH))
    async with await connect(Access(servers=(url,), name="fill")) as connection, asyncio.TaskGroup() as lanes:

        async def lane() -> None:
            while starts:
                start = starts.pop()
                await fill(connection, bucket, range(start, min(start + BATCH, first + count)), size)

        for _ in range(_LANES):
            lanes.create_task(lane())


if __name__ == "__main__":
    url, bucket, *numbers = sys.argv[1:]
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(url, bucket, *map(int, numbers)))
