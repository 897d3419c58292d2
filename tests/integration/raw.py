"""The wire protocol spoken by a plain nats-py client, well-behaved or not, as `docs/protocol.md` has it."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self
from uuid import uuid4

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from natsblob.app import worker
from natsblob.config import Settings
from natsblob.testing.payloads import cut
from natsblob.wire import Subjects

CHUNK = 8192
"""The chunk size of the services here: small, so that small blobs have many."""
TIMEOUT = 20.0


class Answer(NamedTuple):
    """One reply. `code` is that of `Nats-Service-Error-Code`, 0 where there is none."""

    code: int
    data: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, Any]:
        """The error of the body, which says the same as the headers."""
        error: dict[str, Any] = self.json["error"]
        assert error["code"] == self.code
        assert isinstance(error["retryable"], bool)
        assert self.headers["Nats-Service-Error"] == error["message"]
        return error


def answer(message: Msg) -> Answer:
    headers = {str(name): value for name, value in (message.headers or {}).items()}
    return Answer(int(headers.get("Nats-Service-Error-Code", "0")), message.data, headers)


@dataclass
class Raw:
    """A client of one service."""

    nc: Client
    prefix: str
    bucket: str
    ids: list[str] = field(default_factory=list)
    """Of the workers."""

    @property
    def service(self) -> str:
        """Its name in discovery."""
        return Subjects(self.prefix).service

    @property
    def js(self) -> JetStreamContext:
        return self.nc.jetstream(timeout=TIMEOUT)

    @property
    def stream(self) -> str:
        return f"OBJ_{self.bucket}"

    async def ask(
        self, endpoint: str, body: Any = b"", headers: dict[str, str] | None = None, timeout: float = TIMEOUT
    ) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        subject = f"{self.prefix}.{endpoint}"
        return answer(await self.nc.request(subject, data, timeout=timeout, headers=headers))

    async def put(self, data: bytes) -> str:
        """The digest under which `data` is stored now."""
        return str((await self.ask("put", data)).json["digest"])

    async def listen(self, subject: str) -> Subscription:
        """A subscription that the server knows, so that another connection may publish to it at once."""
        subscription = await self.nc.subscribe(subject)
        for _ in range(2):  # the library's first ping overtakes the subscription
            await self.nc.flush()
        return subscription

    async def frames(self, digest: str, first: int, count: int, **more: Any) -> list[Answer]:
        """The frames of one window, its end frame or error last."""
        got: list[Answer] = []
        inbox = self.nc.new_inbox()
        subscription = await self.nc.subscribe(inbox)
        body = {"digest": digest, "mode": "stream", "first": first, "count": count, **more}
        await self.nc.publish(f"{self.prefix}.get", json.dumps(body).encode(), reply=inbox)
        while not got or ("Status" not in got[-1].headers and not got[-1].code):
            got.append(answer(await subscription.next_msg(timeout=TIMEOUT)))
        await subscription.unsubscribe()
        return got

    async def window(self, digest: str, first: int, count: int, **more: Any) -> dict[int, bytes]:
        """The chunks of one window by their index."""
        *frames, end = await self.frames(digest, first, count, **more)
        assert end.headers.get("Status") == "204", end
        return {int(frame.headers["Blob-Chunk"]): frame.data for frame in frames}

    async def open(self, **body: Any) -> Upload:
        return Upload(self, (await self.ask("put.open", body)).json)

    async def upload(self, *chunks: bytes) -> Upload:
        """An upload with these chunks stored."""
        upload = await self.open()
        for index, chunk in enumerate(chunks):
            await upload.send(index, chunk)
        return upload

    async def still_answers(self) -> None:
        """The worker is there, and so is what it stores."""
        data = uuid4().bytes
        digest = await self.put(data)
        assert (await self.ask("get", digest.encode())).data == data

    async def staged(self) -> dict[str, int]:
        """Chunk subjects of the bucket and how many messages each has, without decisions."""
        info = await self.js.stream_info(self.stream, subjects_filter=f"$O.{self.bucket}.C.*")
        return dict(info.state.subjects or {})

    async def names(self) -> int:
        """How many metadata messages there are: blobs, links and delete markers."""
        info = await self.js.stream_info(self.stream, subjects_filter=f"$O.{self.bucket}.M.>")
        return len(info.state.subjects or {})

    async def figures(self) -> dict[str, float]:
        """The workers' own figures, added up."""
        total: dict[str, float] = {}
        for worker_id in self.ids:
            message = await self.nc.request(f"$SRV.STATS.{self.service}.{worker_id}", timeout=TIMEOUT)
            for name, value in json.loads(message.data)["endpoints"][0]["data"].items():
                total[name] = total.get(name, 0) + value
        return total


@dataclass
class Upload:
    """An upload as its client sees it."""

    raw: Raw
    opened: dict[str, Any]
    sizes: dict[int, int] = field(default_factory=dict)
    seqs: dict[int, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return str(self.opened["upload"])

    async def send(
        self, index: int, chunk: bytes, headers: dict[str, str] | None = None, *, once: bool = True
    ) -> Answer:
        """Publish a chunk and wait for its answer; not `once` means without a message id."""
        self.sizes.setdefault(index, len(chunk))
        complete = {"Blob-Chunk": str(index), "Blob-Sum": f"crc32={zlib.crc32(chunk):08x}"}
        if once:
            stage = str(self.opened["chunk_subject"]).rpartition(".")[2]
            complete["Nats-Msg-Id"] = f"{stage}.{index}"
        complete.update(headers or {})
        message = await self.raw.nc.request(
            self.opened["chunk_subject"], chunk, timeout=TIMEOUT, headers=complete
        )
        ack = answer(message)
        if not ack.code and "seq" in ack.json:
            self.seqs[index] = ack.json["seq"]
        return ack

    def request(self, **changes: Any) -> dict[str, Any]:
        """The body of a commit, as an honest client would write it, with `changes`."""
        seqs = [self.seqs.get(index, 0) for index in sorted(self.sizes)]
        body = {
            "upload": self.id,
            "size": sum(self.sizes.values()),
            "chunks": len(self.sizes),
            "marks": {"every": 1, "seqs": seqs},
            **changes,
        }
        return {name: value for name, value in body.items() if value is not None}

    async def commit(self, *, elsewhere: bool = False, **changes: Any) -> Answer:
        """Commit at the worker that opened it, or `elsewhere`: at any."""
        subject = str(self.opened["commit_subject"]).removeprefix(f"{self.raw.prefix}.")
        return await self.raw.ask("put.commit" if elsewhere else subject, self.request(**changes))

    async def abort(self) -> Answer:
        return await self.raw.ask("put.abort", {"upload": self.id})

    async def stored(self) -> Answer:
        return await self.raw.ask("put.status", {"upload": self.id})


class Wire:
    """A socket to the server, for what no client library would send."""

    def __init__(self, url: str, **login: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._login = {"verbose": False, "headers": True, **login}

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(f"CONNECT {json.dumps(self._login)}\r\n".encode())
        return self

    async def publish(self, subject: str, reply: str, block: bytes, data: bytes = b"") -> None:
        """Publish with `block` as the headers; returns when the server has seen it."""
        line = f"HPUB {subject} {reply} {len(block)} {len(block) + len(data)}\r\n".encode()
        await self.send(line + block + data + b"\r\n")

    async def send(self, protocol: bytes) -> None:
        """Send these bytes; returns when the server has seen them."""
        self._writer.write(protocol + b"PING\r\n")
        async with asyncio.timeout(TIMEOUT):
            await self._reader.readuntil(b"PONG\r\n")

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(TIMEOUT):
                await self._writer.wait_closed()


def pieces(data: bytes) -> Sequence[bytes]:
    return list(cut(data, CHUNK))


@asynccontextmanager
async def service(url: str, *, workers: int = 1, **settings: Any) -> AsyncIterator[Raw]:
    """A service with a bucket and a prefix of its own, and a plain client of it."""
    name = uuid4().hex
    given: dict[str, Any] = {"storage": "memory", "chunk_size": CHUNK, "prefix": f"t{name}", "bucket": name}
    chosen = Settings(server=(url,), **{**given, **settings})
    async with AsyncExitStack() as stack:
        running = await asyncio.gather(*(stack.enter_async_context(worker(chosen)) for _ in range(workers)))
        nc = await stack.enter_async_context(await nats.connect(url))
        yield Raw(nc, chosen.prefix, chosen.bucket, [serving.id for serving in running])
        if chosen.backend == "jetstream":
            await nc.jetstream().delete_stream(f"OBJ_{chosen.bucket}")
