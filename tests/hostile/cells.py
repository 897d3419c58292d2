"""What a publisher does to one upload: which message, which header block, which order."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal, NamedTuple

from natsblob.testing.payloads import cut, pattern

CHUNK: Final = 1024
COUNT: Final = 5
"""Chunks in each upload: a first, a last, and some between."""
SIZE: Final = COUNT * CHUNK - 100

Mode = Literal["tap", "readback", "elsewhere", "relayed"]
MODES: Final[tuple[Mode, ...]] = ("tap", "readback", "elsewhere", "relayed")
"""How the upload is verified: as its worker watched it, by reading it back, by a worker that never saw it, or
because the worker wrote it."""


class Message(NamedTuple):
    """One message on the chunk subject."""

    block: bytes
    data: bytes


class Place(NamedTuple):
    """Of a chunk in an upload."""

    stage: str
    number: int
    data: bytes


Block = Callable[[Place], bytes]
"""The header block of a chunk."""


def lines(place: Place) -> list[bytes]:
    """The three headers that a chunk has to have."""
    return [
        b"Blob-Chunk: %d" % place.number,
        b"Blob-Sum: crc32=%08x" % zlib.crc32(place.data),
        b"Nats-Msg-Id: %s.%d" % (place.stage.encode(), place.number),
    ]


def block(lines: Sequence[bytes], first: bytes = b"NATS/1.0") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


def right(place: Place) -> bytes:
    return block(lines(place))


def _more(*more: bytes, before: bool = False) -> Block:
    """The right headers and these, behind or before them."""
    return lambda place: block([*more, *lines(place)] if before else [*lines(place), *more])


def _status(line: bytes) -> Block:
    return lambda place: block(lines(place), line)


def _instead(number: int, *other: bytes) -> Block:
    """The header of this number replaced by others, with `%(stage)s`, `%(index)d` and `%(sum)08x` in them."""

    def make(place: Place) -> bytes:
        words = {
            b"stage": place.stage.encode(),
            b"index": place.number,
            b"next": place.number + 1,
            b"sum": zlib.crc32(place.data),
        }
        found = lines(place)
        found[number : number + 1] = [line % words for line in other]
        return block(found)

    return make


_ADDED: Final = [
    b"Nats-Service-Error-Code: 404",
    b"Nats-Service-Error-Code: 503",
    b"Nats-Service-Error-Code: 0",
    b"Nats-Service-Error-Code:",
    b"Nats-Service-Error-Code: x",
    b"Nats-Service-Error: gone",
    b"Status: 404",
    b"Status: 204",
    b"Status: 503",
    b"Description: EOB",
    b"Nats-Subject: $O.x.C.y",
    b"Nats-Sequence: 1",
    b"Nats-Stream: OTHER",
    b"Nats-Time-Stamp: x",
    b"Nats-Num-Pending: 0",
    b"Nats-Last-Sequence: 7",
    b"Nats-UpTo-Sequence: 7",
    b"Nats-Msg-Size: 5",
    b"Nats-Marker-Reason: Purge",
    b"Nats-Pending-Messages: 1",
    b"Nats-Consumer-Stalled: x",
    b"Nats-Last-Consumer: 99",
    b"Nats-Last-Stream: 99",
    b"Nats-Response-Type: x",
    b"KV-Operation: DEL",
    b"Blob-Digest: " + b"0" * 64,
    b"Blob-Size: 7",
    b"Blob-Offset: 7",
    b"Blob-Part: 0/9",
    b"Blob-Part: 512/1024",
    b"Blob-Unknown: x",
    b"Blob-Chunk: 0",
    b"Blob-Chunk: 3",
    b"Blob-Sum: crc32=00000000",
    b"Nats-Msg-Id: other",
    b"blob-chunk: 4",
    b"BLOB-SUM: crc32=00000000",
    b"Nats-Rollup: sub",
    b"Nats-Rollup: all",
    b"Nats-TTL: 1s",
    b"Nats-TTL: never",
    b"Nats-Expected-Stream: OTHER",
    b"Nats-Expected-Last-Sequence: 7777777",
    b"Nats-Expected-Last-Subject-Sequence: 7777777",
    b"Nats-Expected-Last-Subject-Sequence: 0",
    b"Nats-Batch-Id: b",
    b"Nats-Schedule: @every 1s",
    b"Nats-Incr: +1",
    b"Nats-Required-Api-Level: 99",
    b"Nats-Trace-Dest: a.b",
    b"Nats-Trace-Only: true",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"Content-Type: text/plain",
    b"X:",
    b": nameless",
    b"no colon",
    b"X-Y: \x00\x07\x1b",
    b"X-Y: a\nBlob-Chunk: 2",
    b"X-Y: a\rBlob-Chunk: 2",
    b"X-Y: \xff\xfe",
    b"N\xc3\xa4me: x",
    b"A b: c",
    b" Blob-Chunk: 1",
    b"\tBlob-Chunk: 1",
    b"X-Long: " + b"x" * 3_500,
    b"X-Long: " + b"x" * 15_000,
    b"X-Long: " + b"x" * 66_000,
    b"X-Long: " + b"x" * 900_000,
    b"\r\n".join(b"X-%d: y" % number for number in range(300)),
]
_FIRST_LINES: Final = [
    b"NATS/1.0 404 Message Not Found",
    b"NATS/1.0 204 EOB",
    b"NATS/1.0 503",
    b"NATS/1.0 100 Idle Heartbeat",
    b"NATS/1.0 408 Request Timeout",
    b"NATS/1.0 200",
    b"NATS/1.0 x",
    b"NATS/1.0 ",
    b"NATS/1.1",
    b"nats/1.0",
    b"HTTP/1.1 200 OK",
    b"",
]
_REPLACED: Final = [
    (0, []),
    (0, [b"Blob-Chunk: 0%(index)d"]),
    (0, [b"Blob-Chunk: +%(index)d"]),
    (0, [b"Blob-Chunk:%(index)d"]),
    (0, [b"Blob-Chunk:  %(index)d"]),
    (0, [b"Blob-Chunk: %(index)d "]),
    (0, [b"Blob-Chunk: %(index)d.0"]),
    (0, [b"Blob-Chunk: %(index)d_0"]),
    (0, [b"Blob-Chunk: 0x%(index)d"]),
    (0, [b"Blob-Chunk: -1"]),
    (0, [b"Blob-Chunk: \xd9\xa0"]),
    (0, [b"Blob-Chunk: " + b"9" * 40]),
    (0, [b"Blob-Chunk: " + b"9" * 5_000]),
    (0, [b"Blob-Chunk: %(next)d"]),
    (0, [b"Blob-Chunk: %(index)d", b"Blob-Chunk: %(index)d"]),
    (0, [b"Blob-Chunk: %(next)d", b"Blob-Chunk: %(index)d"]),
    (0, [b"blob-chunk: %(index)d"]),
    (1, []),
    (1, [b"Blob-Sum: crc32=%(sum)08X"]),
    (1, [b"Blob-Sum: crc32=%(sum)x0"]),
    (1, [b"Blob-Sum: CRC32=%(sum)08x"]),
    (1, [b"Blob-Sum: crc32=0x%(sum)08x"]),
    (1, [b"Blob-Sum: crc32="]),
    (1, [b"Blob-Sum: crc32=00000000"]),
    (1, [b"Blob-Sum: md5=00000000"]),
    (1, [b"Blob-Sum: crc32=%(sum)08x", b"Blob-Sum: crc32=%(sum)08x"]),
    (1, [b"Blob-Sum: crc32=%(sum)08x, crc32=00000000"]),
    (2, []),
    (2, [b"Nats-Msg-Id: %(stage)s.%(next)d"]),
    (2, [b"Nats-Msg-Id: %(stage)s"]),
    (2, [b"Nats-Msg-Id: "]),
    (2, [b"Nats-Msg-Id: %(stage)s.%(index)d", b"Nats-Msg-Id: x"]),
    (2, [b"Nats-Msg-Id: %(stage)s.%(index)d" + b"x" * 5_000]),
]


def _name(lines: Sequence[bytes]) -> str:
    return " | ".join(line[:48].decode("latin-1") for line in lines) or "none"


def _blocks() -> Iterator[tuple[str, Block]]:
    yield "right", right
    for line in _ADDED:
        yield f"+ {_name([line])} ({len(line)})", _more(line)
    for line in _ADDED[:12]:
        yield f"+ {_name([line])}, first", _more(line, before=True)
    for line in _FIRST_LINES:
        yield f"first line {line.decode()!r}", _status(line)
    for number, other in _REPLACED:
        yield f"header {number} as {_name(other)}", _instead(number, *other)
    yield "no headers", lambda _: b""
    yield "no end", lambda place: right(place)[:-2]
    yield "no end at all", lambda place: right(place)[:-4]
    yield "line feeds only", lambda place: right(place).replace(b"\r\n", b"\n")
    yield "another order", lambda place: block(lines(place)[::-1])
    yield "more behind the end", lambda place: right(place) + b"Blob-Chunk: 9\r\n\r\n"
    yield "a blank line between", lambda place: right(place).replace(b"\r\nBlob-Sum", b"\r\n\r\nBlob-Sum")


BLOCKS: Final = dict(_blocks())

Change = Callable[[Place], Message]
"""A chunk that is no chunk of the store's size, or has other bytes than it should."""
CONTENTS: Final[dict[str, Change]] = {
    "empty": lambda place: Message(right(place._replace(data=b"")), b""),
    "a byte less": lambda place: Message(right(place._replace(data=place.data[:-1])), place.data[:-1]),
    "a byte more": lambda place: Message(right(place._replace(data=place.data + b"x")), place.data + b"x"),
    "twice as long": lambda place: Message(right(place._replace(data=place.data * 2)), place.data * 2),
    "other bytes, own sum": lambda place: Message(
        right(place._replace(data=place.data[::-1])), place.data[::-1]
    ),
    "other bytes, right sum": lambda place: Message(right(place), place.data[::-1]),
    "one byte": lambda place: Message(right(place._replace(data=b"x")), b"x"),
    "800 KB": lambda place: Message(right(place._replace(data=bytes(800_000))), bytes(800_000)),
}
POSITIONS: Final[dict[str, Callable[[int], bool]]] = {
    "first": lambda index: index == 0,
    "middle": lambda index: index == COUNT // 2,
    "last": lambda index: index == COUNT - 1,
    "all": lambda index: True,
}

EXTRAS: Final[dict[str, Change]] = {
    "the same, without id": lambda place: Message(block(lines(place)[:2]), place.data),
    "the same, other id": lambda place: Message(block([*lines(place)[:2], b"Nats-Msg-Id: y"]), place.data),
    "other bytes": lambda place: Message(
        block(lines(place._replace(data=place.data[::-1]))[:2]), place.data[::-1]
    ),
    "other bytes, error": lambda place: Message(
        block([*lines(place)[:2], b"Nats-Service-Error-Code: 404"]), place.data[::-1]
    ),
    "an index beyond": lambda place: Message(block(lines(place._replace(number=COUNT))[:2]), place.data),
    "a far index": lambda place: Message(block(lines(place._replace(number=10**9))[:2]), place.data),
    "no headers": lambda place: Message(b"", place.data),
    "nothing": lambda place: Message(b"", b""),
    "an end frame": lambda place: Message(b"NATS/1.0 204 EOB\r\n\r\n", b""),
    "an error reply": lambda place: Message(
        b"NATS/1.0\r\nNats-Service-Error-Code: 404\r\nNats-Service-Error: no\r\n\r\n",
        b'{"error":{"code":404,"name":"blob_not_found","message":"no","retryable":false}}',
    ),
    "large headers": lambda place: Message(block([b"X: " + b"x" * 60_000]), b"x"),
    "large": lambda place: Message(b"", bytes(700_000)),
    # Not one byte: nats-server ends when a consumer delivers the headers of that alone (docs/operations.md).
    "junk": lambda place: Message(b"\x00\x00", b"\x00"),
}
MOMENTS: Final = ("before", "between", "after", "after the commit")
ORDERS: Final[dict[str, Sequence[int]]] = {
    "backwards": [4, 3, 2, 1, 0],
    "the first two": [1, 0, 2, 3, 4],
    "two in the middle": [0, 1, 3, 2, 4],
    "the last two": [0, 1, 2, 4, 3],
    "the last one first": [4, 0, 1, 2, 3],
    "the first one last": [1, 2, 3, 4, 0],
    "one missing": [0, 1, 3, 4],
    "the last one missing": [0, 1, 2, 3],
    "one alone": [0],
    "twice": [0, 1, 2, 3, 4, 0, 1, 2, 3, 4],
}
SIZES: Final = [1, 7, CHUNK // 2, CHUNK - 1, CHUNK + 1, 2 * CHUNK]
"""Chunks of another size than the store's, all of one."""


@dataclass(frozen=True)
class Cell:
    """One upload. `messages` are in the order of publishing, `late` come after the commit."""

    kind: str
    what: str
    where: str
    mode: Mode
    number: int

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.what} / {self.where} / {self.mode}"

    @property
    def data(self) -> bytes:
        return pattern(SIZE, f"hostile {self.number}")

    @property
    def is_right(self) -> bool:
        """Whether there is nothing to refuse."""
        return self.what == "right"

    @property
    def is_late(self) -> bool:
        return self.where == "after the commit"

    @property
    def chunks(self) -> int:
        """As the commit says."""
        return -(-SIZE // int(self.what)) if self.kind == "chunk size" else COUNT

    def messages(self, stage: str) -> list[tuple[int, Message]]:
        """What to publish before the commit: the index that it counts for, and the message."""
        size = int(self.what) if self.kind == "chunk size" else CHUNK
        places = [Place(stage, index, chunk) for index, chunk in enumerate(cut(self.data, size))]
        plain = [(place.number, Message(right(place), place.data)) for place in places]
        if self.kind == "order":
            return [plain[index] for index in ORDERS[self.what]]
        if self.kind == "header":
            make = BLOCKS[self.what]
            chosen = POSITIONS[self.where]
            return [
                (place.number, Message(make(place) if chosen(place.number) else right(place), place.data))
                for place in places
            ]
        if self.kind == "content":
            return [
                (place.number, CONTENTS[self.what](place)) if POSITIONS[self.where](place.number) else one
                for place, one in zip(places, plain, strict=True)
            ]
        if self.kind == "extra" and not self.is_late:
            at = {"before": 0, "between": COUNT // 2, "after": COUNT}[self.where]
            plain.insert(at, (-1, EXTRAS[self.what](places[min(at, COUNT - 1)])))
        return plain

    def late(self, stage: str) -> Message | None:
        if not self.is_late:
            return None
        return EXTRAS[self.what](Place(stage, 1, self.data[CHUNK : 2 * CHUNK]))


def all_cells() -> list[Cell]:
    """Everything, for one number of replicas."""
    kinds = [
        *(("header", what, where) for what, where in product(BLOCKS, POSITIONS)),
        *(("content", what, where) for what, where in product(CONTENTS, POSITIONS)),
        *(("extra", what, where) for what, where in product(EXTRAS, MOMENTS)),
        *(("order", what, "all") for what in ORDERS),
        *(("chunk size", str(size), "all") for size in SIZES),
    ]
    return [
        Cell(kind, what, where, mode, number)
        for number, ((kind, what, where), mode) in enumerate(product(kinds, MODES))
    ]
