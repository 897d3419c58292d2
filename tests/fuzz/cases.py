"""Requests by seed: right ones, mutated ones and garbage, with header blocks and reply subjects to match."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from natsblob.testing.payloads import pattern
from tests.fuzz.garbage import (
    BAD_BLOCKS,
    CHUNK_HEADERS,
    FIELDS,
    GARBAGE,
    GOOD_BLOCKS,
    MORE_FIELDS,
    NUMBERS,
    TOKENS,
)
from tests.fuzz.link import published
from tests.fuzz.oracle import BAD, ENDPOINTS, Expected, World, anything, doubtful, expected, only

LONGEST_REPLY: Final = 1024
RESERVE: Final = 4096
"""Bytes for headers that `max_payload` is larger by than `max_inline`."""
_WEIGHTS: Final = {"put": 14, "get": 24, "has": 12, "stat": 9, "list": 1, "delete": 7, "caps": 4}
_WEIGHTS_OF_UPLOADS: Final = {"put.open": 6, "put.status": 6, "put.commit": 9, "put.abort": 4}
_NOBODYS: Final = hashlib.sha256(b"nobody stores this").hexdigest()
"""What wrong digests are made from: a mutation may make it right again, and it may be a delete."""


@dataclass(frozen=True, slots=True)
class Case:
    """One request as it goes over the wire. `token` names its answer; there is none where it is `None`."""

    endpoint: str
    sent: bytes
    token: str | None
    awaited: Expected | None
    """`None` where a stream answers, and not a worker."""


class Cases:
    """All that one client of the service sends."""

    def __init__(self, seed: int, world: World, prefix: str, bucket: str, name: str) -> None:
        self._random = Random(seed)
        self._world = world
        self._prefix = prefix
        self._bucket = bucket
        self._name = name
        self._count = 0
        weights = {**_WEIGHTS, **_WEIGHTS_OF_UPLOADS}
        self._endpoints = [name for name in ENDPOINTS for _ in range(weights[name])]
        self._known, self._pool = list(world.known), list(world.pool)
        self._stages = [f"junk{seed}x{number}" for number in range(8)]
        self._uploads = [pattern(11, f"{seed}:{number}").hex() for number in range(16)]
        self.unanswered: list[str] = []
        """Digests of blobs in puts that must have no effect."""

    def next(self) -> Case:
        """The next request."""
        random = self._random
        self._count += 1
        if random.random() < 0.03:
            return self._chunk()
        endpoint = random.choice(self._endpoints)
        body = self._body(endpoint)
        block, verdict, digest_header = self._block(endpoint, body)
        if len(block) + len(body) > self._world.caps["max_inline"] + RESERVE:  # the server would hang up
            block, verdict, digest_header = b"", True, None
        awaited = expected(self._world, endpoint, body, digest_header)
        if verdict is False:
            awaited = only(BAD)
        elif verdict is None:
            awaited = anything(awaited)
        if endpoint != "put" and doubtful(body):
            awaited = anything(awaited, framed=endpoint == "get")
        subject = f"{self._prefix}.{endpoint}"
        if random.random() < 0.05:
            if endpoint == "put":
                body = b"without effect " + random.randbytes(16)
                self.unanswered.append(hashlib.sha256(body).hexdigest())
            reply = random.choice(self._forbidden())
            return Case(endpoint, published(subject, reply, body, block), None, awaited)
        reply, token = self._reply()
        return Case(endpoint, published(subject, reply, body, block), token, awaited)

    def _chunk(self) -> Case:
        """A chunk for an upload that nobody opened: the stream answers, whatever is in it."""
        random = self._random
        lines = random.sample(CHUNK_HEADERS, random.randrange(4))
        block = b"NATS/1.0\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" if lines else b""
        if random.random() < 0.2:
            # Not a block of one byte: nats-server ends when a consumer shows it without the body.
            block = random.choice([block for block in BAD_BLOCKS if len(block) > 1])
        stage = random.choice(TOKENS) if random.random() < 0.3 else random.choice(self._stages).encode()
        subject = f"$O.{self._bucket}.C.".encode() + stage
        token = f"{self._name}.{self._count}"
        sent = published(subject, f"_INBOX.{token}".encode(), random.randbytes(random.randrange(40)), block)
        return Case("chunk", sent, token, None)

    def _reply(self) -> tuple[bytes, str]:
        random = self._random
        token = f"{self._name}.{self._count}"
        match random.randrange(50):
            case 0:
                reply = f"_INBOX.{token}.".encode()
                return reply + b"r" * (LONGEST_REPLY - len(reply)), token
            case 1:
                return f"_INBOX.{token}.\u00fc.\U0001f600.$JS!'\"".encode(), token
            case 2:
                return f"_INBOX.{token}{'.a' * random.randrange(1, 20)}".encode(), token
        return f"_INBOX.{token}".encode(), token

    def _forbidden(self) -> list[bytes]:
        stream = f"OBJ_{self._bucket}"
        return [
            b"",
            f"$JS.API.STREAM.DELETE.{stream}".encode(),
            f"$JS.API.STREAM.PURGE.{stream}".encode(),
            f"$JS.API.STREAM.MSG.DELETE.{stream}".encode(),
            f"$O.{self._bucket}.M.x".encode(),
            f"{self._prefix}.delete".encode(),
            f"$O.{self._bucket}.C.x".encode(),
            b"$SYS.REQ.SERVER.PING",
            b"_INBOX",
            b"_INBOX.",
            b"_INBOXX.a",
            b"_inbox.a",
            b"_R_",
            b"_INBOX.*",
            b"_INBOX.a.>",
            b"_INBOX.a*",
            b"_INBOX..a",
            b"_INBOX.a.",
            b"_INBOX.\x01",
            b"_INBOX.a\x0bb",
            b"_INBOX.a\x0c",
            b"_INBOX.\x1c.\x1f",
            b"_INBOX.\xc2\x85",
            b"_INBOX.\xff\xfe",
            b"_INBOX." + b"x" * LONGEST_REPLY,
            b"_INBOX." + "\U0001f600".encode() * 800,
        ]

    def _block(self, endpoint: str, body: bytes) -> tuple[bytes, bool | None, str | None]:
        """A header block, whether it is in order (`None`: who knows), and the digest that it declares."""
        random = self._random
        chance = random.random()
        if chance < 0.65:
            return b"", True, None
        if chance < 0.72:
            return random.choice(BAD_BLOCKS), False, None
        if chance < 0.80 or endpoint != "put":
            block = random.choice(GOOD_BLOCKS)
            if chance < 0.95:
                return block, True, None
            return b"NATS/1.0" + self._mutated(block[8:]), None, None
        digest = random.choice([hashlib.sha256(body).hexdigest()] * 3 + [self._a_digest(), self._no_digest()])
        if not digest.isprintable() or digest != digest.strip():
            return b"", True, None
        block = f"NATS/1.0\r\nBlob-Digest: {digest}\r\n\r\n".encode()
        return (block, True, digest) if chance < 0.97 else (self._mutated(block), None, digest)

    def _body(self, endpoint: str) -> bytes:
        random = self._random
        if endpoint == "put":
            return self._content()
        chance = random.random()
        if chance < 0.06:
            return random.choice(GARBAGE)
        if chance < 0.09:
            return random.randbytes(random.randrange(200))
        if chance < 0.092:
            return random.randbytes(1 << random.randrange(8, 20))
        body = self._right(endpoint)
        if chance < 0.3:
            return self._mutated(body)
        return body

    def _content(self) -> bytes:
        random = self._random
        chance = random.random()
        if chance < 0.9:
            return self._world.pool[random.choice(self._pool)]
        if chance < 0.97:
            return self._world.known[random.choice(self._known[:-1])]
        if chance < 0.973:
            return random.choice(GARBAGE)
        if chance < 0.975:
            size = int(self._world.caps["max_inline"]) - random.randrange(3)
            return pattern(1024, str(random.randrange(4))) * (size // 1024) + b"e" * (size % 1024)
        return self._world.known[self._known[0]][: random.randrange(30)]

    def _right(self, endpoint: str) -> bytes:
        """A body as a good client would send it, more or less."""
        random = self._random
        digest = self._a_digest(deleting=endpoint == "delete")
        match endpoint:
            case "get" if random.random() < 0.6:
                return self._json(self._get_request(digest))
            case "has" if random.random() < 0.4:
                count = random.choice([0, 1, 2, 5, 20, 1000 if random.random() < 0.02 else 3])
                return self._json([self._a_digest() for _ in range(count)])
            case "get" | "has" | "stat" | "delete":
                return digest.encode()
            case "list":
                request = {"limit": random.choice([1, 5, 50]), "prefix": digest[: random.randrange(4)]}
                return self._json(self._some({**request, "after": digest}))
            case "caps":
                return b""
            case "put.open":
                return self._json(self._some({"digest": digest, "size": self._number()}))
            case "put.status" | "put.abort":
                return self._json({"upload": self._upload()})
            case _:
                marks = {
                    "every": self._number(),
                    "seqs": [self._number() for _ in range(random.randrange(3))],
                }
                size, chunks = random.choice([(0, 0), *[(self._number(), random.randrange(9))] * 5])
                request = {"upload": self._upload(), "size": size, "chunks": chunks}
                return self._json({**request, **self._some({"digest": digest, "marks": marks})})

    def _get_request(self, digest: str) -> dict[str, Any]:
        random = self._random
        if random.random() < 0.5:
            return {"digest": digest, **self._some({"offset": self._number(), "length": self._number()})}
        request = {
            "digest": digest,
            "mode": "stream",
            "first": random.choice([0, 0, 1, 2, 5, self._number()]),
        }
        more = {"count": random.choice([1, 2, 8, self._world.caps["window"], self._number()]), "verify": True}
        return {**request, **self._some(more)}

    def _some(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if self._random.random() < 0.6}

    def _upload(self) -> str:
        random = self._random
        match random.randrange(12):
            case 0:
                return self._no_digest()
            case 1:
                return random.choice(
                    ["", "*", ">", "a.b", "A" * 21, "A" * 23, "-" * 22, "\u0660" * 22, "A" * 3000]
                )
        return random.choice(self._uploads)

    def _number(self) -> int:
        random = self._random
        return random.choice(NUMBERS) if random.random() < 0.4 else random.randrange(100_000)

    def _a_digest(self, *, deleting: bool = False) -> str:
        random = self._random
        match random.randrange(10):
            case 0 | 1 | 2 | 3 if not deleting:
                return random.choice(self._known)
            case 4 | 5 | 6 | 7 | 8:
                return random.choice(self._pool)
            case 9 if random.random() < 0.3:
                return self._no_digest()
        return hashlib.sha256(random.randbytes(4)).hexdigest()

    def _no_digest(self) -> str:
        digest = _NOBODYS
        shapes = [digest.upper(), digest[:-1], f"{digest}0", f"{digest}\n", f" {digest}", "g" * 64, "", "0"]
        shapes += [
            "\u0660" * 64,
            f"sha256:{digest}",
            "../" * 21 + "x",
            "\x00" * 64,
            "0" * 5000,
            "\uff10" * 64,
        ]
        return self._random.choice(shapes)

    def _json(self, value: Any) -> bytes:
        """As JSON, and every now and then with a field too many, of the wrong type, or twice."""
        random = self._random
        if isinstance(value, dict) and random.random() < 0.25:
            value[random.choice(FIELDS + MORE_FIELDS)] = self._value(2)
        text = json.dumps(value, ensure_ascii=random.random() < 0.5)
        if isinstance(value, dict) and random.random() < 0.05:
            again = json.dumps({random.choice(FIELDS): self._value(1)})
            text = f"{text[:-1]}{', ' if len(text) > 2 else ''}{again[1:]}"
        if random.random() < 0.05:
            text = f" \n\t{text}\r\n "
        return text.encode("utf-8", "surrogatepass")

    def _value(self, depth: int) -> Any:
        random = self._random
        kinds: list[Callable[[], Any]] = [
            lambda: None,
            lambda: random.random() < 0.5,
            self._number,
            lambda: random.choice([0.0, 1.0, 1.5, -0.0, 1e308, 1e-9, float("nan"), float("inf")]),
            lambda: random.choice(["", "stream", "whole", "x", "\x00", "\u2028", "\U0001f600", "a" * 3000]),
            self._a_digest,
            self._no_digest,
            lambda: [self._value(depth - 1) for _ in range(random.randrange(3))] if depth else [],
            lambda: {random.choice(FIELDS): self._value(depth - 1)} if depth else {},
        ]
        return random.choice(kinds)()

    def _mutated(self, data: bytes) -> bytes:
        """With some bytes changed, taken out, put in or repeated."""
        random = self._random
        changed = bytearray(data)
        for _ in range(random.choice([1, 1, 1, 2, 5])):
            at = random.randrange(len(changed) + 1)
            match random.randrange(5):
                case 0 if at < len(changed):
                    changed[at] ^= 1 << random.randrange(8)
                case 1:
                    del changed[at : at + random.randrange(1, 9)]
                case 2:
                    changed[at:at] = random.randbytes(random.randrange(1, 9))
                case 3:
                    changed[at:at] = changed[at : at + random.randrange(1, 40)]
                case _:
                    changed[at:at] = random.choice(b'{}[]":,\\\x00\n\r 0-.eE').to_bytes(1, "big")
        return bytes(changed)
