"""Uploads from open to commit or abort, right ones and wrong ones, and what they may be answered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final

from natsblob.testing.payloads import cut, pattern
from tests.fuzz.link import Answer, published
from tests.fuzz.oracle import World, judged_error
from tests.hostile.cells import BLOCKS, Place, right

ROOM: Final = 20_000
"""Bytes of a header block that fit a message here."""

KINDS: Final[dict[str, set[str]]] = {
    # what is done to the upload: what the commit may say
    "honest": {"ok"},
    "twice": {"ok"},
    "without-marks": {"ok"},
    "shuffled": {"ok"},
    "wrong-marks": {"ok"},
    "wrong-sum": {"bad_request"},
    "no-index": {"bad_request"},
    "index-beyond": {"bad_request"},
    "two-contents": {"bad_request"},
    "short-chunk": {"bad_request", "digest_mismatch"},
    "missing": {"digest_mismatch"},
    "wrong-size": {"digest_mismatch"},
    "wrong-digest": {"digest_mismatch"},
    "aborted": {"upload_expired"},
    "stranger": {"upload_expired"},
    "odd-block": {"ok", "bad_request", "digest_mismatch", "upload_expired"},
}
"""With any header block on one of the chunks: refused, or committed, and then it can be read."""
RELAYED: Final = {"bad_request", "digest_mismatch", "upload_expired"}
"""A worker refuses at once what is wrong with a chunk; the commit then finds that it is missing."""

Ask = Callable[[Callable[[bytes], bytes]], Awaitable[Answer]]
"""Sends what is made for a reply subject, and answers what came back."""


class Uploader:
    """One upload after the other, each of its kind."""

    def __init__(self, ask: Ask, world: World, prefix: str, seed: int) -> None:
        self._ask = ask
        self._world = world
        self._prefix = prefix
        self._random = Random(seed)
        self._count = 0
        self._seed = seed
        self.stored: dict[str, bytes] = {}

    async def one(self) -> list[str]:
        """An upload to its end; what was wrong with the answers."""
        kind = self._random.choice(list(KINDS))
        self._count += 1
        relayed = self._random.random() < 0.4
        allowed = KINDS[kind] | (RELAYED if relayed and "ok" not in KINDS[kind] else set())
        if relayed and kind == "two-contents":
            allowed |= {"ok"}  # the second one is refused at once
        size = self._random.randrange(2 if kind in ("short-chunk", "missing") else 1, 5)
        data = pattern(size * self._world.caps["chunk_size"] - 7, f"{self._seed}:{self._count}")
        digest = hashlib.sha256(data).hexdigest()
        wanted = {"digest": digest, "size": len(data), "relayed": relayed}
        opened = json.loads((await self._request("put.open", wanted)).data)
        seqs = await self._chunks(opened, kind, list(cut(data, self._world.caps["chunk_size"])))
        status = await self._request("put.status", {"upload": opened["upload"]})
        if kind == "aborted":
            await self._request("put.abort", {"upload": opened["upload"]})
        request = self._commit(opened["upload"], kind, len(data), digest, seqs)
        at = self._random.choice([opened["commit_subject"], f"{self._prefix}.put.commit"])
        answers = [await self._to(at, request)]
        if kind == "twice":
            answers += await asyncio.gather(*(self._to(at, request) for _ in range(3)))
        found = [self._judged(answer, digest) for answer in answers]
        wrong = [f"upload {kind}: {problem}" for _, problem in found if problem]
        wrong += [f"upload {kind}: {name}, {answers[0].data!r}" for name, _ in found if name not in allowed]
        if status.is_error and "ok" in KINDS[kind] and kind != "odd-block":
            wrong.append(f"upload {kind}: no status, {status.data!r}")
        if found[0][0] == "ok":
            self.stored[digest] = data
            read = await self._to(f"{self._prefix}.get", digest.encode())
            if read.data != data:
                wrong.append(f"upload {kind}: committed, and read as {read.data[:300]!r}")
        if KINDS[kind] == {"ok"}:
            late = await self._request("put.abort", {"upload": opened["upload"]})
            if judged_error(self._world, late)[0] != "conflict" and kind != "shuffled":
                wrong.append(f"upload {kind}: aborted after the commit, {late.data!r}")
        return wrong

    async def _chunks(self, opened: dict[str, Any], kind: str, chunks: list[bytes]) -> list[int]:
        order = list(range(len(chunks)))
        if kind == "shuffled":
            self._random.shuffle(order)
        if kind == "missing":
            order.remove(self._random.choice(order))
        odd = self._random.choice(order)

        async def send(index: int) -> int:
            data = chunks[index][:-1] if kind == "short-chunk" and index == 0 else chunks[index]
            headers = self._headers(kind, opened, index, data, len(chunks))
            if kind == "odd-block" and index == odd:
                headers = self._odd_block(opened, index, data)
            ack = await self._to(opened["chunk_subject"], data, headers)
            return int(json.loads(ack.data).get("seq") or 0)

        # A worker that relays waits for chunks that are to come before; so they are all on their way.
        seqs = dict(zip(order, await asyncio.gather(*map(send, order)), strict=True))
        if kind == "two-contents":
            other = b"other" * 9
            again = b"NATS/1.0\r\nBlob-Chunk: 0\r\nBlob-Sum: crc32=%08x\r\n\r\n" % zlib.crc32(other)
            await self._to(opened["chunk_subject"], other, again)
        return [seqs[index] for index in sorted(seqs)]

    def _odd_block(self, opened: dict[str, Any], index: int, data: bytes) -> bytes:
        place = Place(opened["chunk_subject"].rpartition(".")[2], index, data)
        answered = {
            name: make for name, make in BLOCKS.items() if "Nats-Trace" not in name and "no end" not in name
        }
        block = self._random.choice(list(answered.values()))(place)
        return block if len(block) < ROOM else right(place)

    def _headers(self, kind: str, opened: dict[str, Any], index: int, data: bytes, count: int) -> bytes:
        shown = index + count if kind == "index-beyond" else index
        lines = [] if kind == "no-index" else [f"Blob-Chunk: {shown}"]
        lines.append(f"Blob-Sum: crc32={zlib.crc32(data) ^ (kind == 'wrong-sum'):08x}")
        lines.append(f"Nats-Msg-Id: {opened['chunk_subject'].rpartition('.')[2]}.{index}")
        return ("NATS/1.0\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()

    def _commit(self, upload: str, kind: str, size: int, digest: str, seqs: list[int]) -> bytes:
        chunks = -(-size // self._world.caps["chunk_size"])
        marks: dict[str, Any] | None = {"every": 1, "seqs": seqs}
        if kind == "without-marks":
            marks = None
        elif kind == "wrong-marks":
            marks = {"every": self._random.randrange(1, 9), "seqs": [seq + 1 for seq in seqs]}
        request = {
            "upload": "Z" * 22 if kind == "stranger" else upload,
            "size": size + 1 if kind == "wrong-size" else size,
            "chunks": chunks,
            "digest": "0" * 64 if kind == "wrong-digest" else digest,
            "marks": marks,
        }
        return json.dumps(request).encode()

    def _judged(self, answer: Answer, digest: str) -> tuple[str, str]:
        """How it ended, and what is wrong with the answer as such."""
        name, problem = judged_error(self._world, answer) if answer.is_error else ("ok", "")
        if name == "ok" and json.loads(answer.data)["digest"] != digest:
            problem = "another digest"
        return name, problem

    async def _request(self, endpoint: str, body: dict[str, Any]) -> Answer:
        return await self._to(f"{self._prefix}.{endpoint}", json.dumps(body).encode())

    async def _to(self, subject: str, body: bytes, block: bytes = b"") -> Answer:
        return await self._ask(lambda reply: published(subject, reply, body, block))
