"""A caller of the simulation: does random things with a few blobs and writes down what it hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeVar

import msgspec

from natsblob import wire
from natsblob.broker.connection import Connection
from natsblob.broker.publish import Place, PublishWindow
from natsblob.client.client import Client
from natsblob.digest import Digest
from natsblob.errors import (
    BlobError,
    BlobNotFoundError,
    DeadlineError,
    NoRespondersError,
    UploadExpiredError,
)
from natsblob.wire import STATUS, CommitRequest, Headers, Opened, marks_of
from tests.simulation.faults import Faults
from tests.simulation.history import CLIENT, HOSTILE, REQUEST_TIMEOUT, Call, History, Verb
from tests.simulation.stream import ViolationError
from tests.simulation.worker import CHUNK, Worker

T = TypeVar("T")

_HOUR: Final = 3600.0
_VERBS: Final = {"put": 3, "stage": 3, "get": 2, "has": 1, "hold": 1, "delete": 2, "collect": 2}
"""What callers do, and how often."""
_GONE: Final = (NoRespondersError, UploadExpiredError)
"""What a caller hears that sends chunks to a worker which does not know them, or is gone."""
_ODD: Final[list[dict[str, str]]] = [
    {"Nats-Service-Error-Code": "404"},
    {"Nats-Service-Error-Code": "503", "Nats-Service-Error": "no"},
    {STATUS: "204"},
    {STATUS: "404"},
    {"Nats-Subject": "$O.other.C.x", "Nats-Sequence": "1"},
    {"Nats-Msg-Size": "7"},
    {"Blob-Part": "0/9"},
    {"X-Any": "thing"},
    {wire.CHUNK: "1"},
    {wire.CHUNK: "01"},
    {wire.SUM: "crc32=00000000"},
    {wire.MESSAGE_ID: "another"},
]
"""Headers of a chunk beside those that it is to have, or instead of them."""
_COMMITS: Final = 4
"""Times that a caller asks for a commit until it has heard what became of it."""


@dataclass(frozen=True, slots=True)
class Blob:
    number: int
    data: bytes
    digest: Digest


class Caller:
    """One client with a connection of its own, which talks to all workers."""

    def __init__(
        self,
        name: str,
        random: Random,
        faults: Faults,
        connection: Connection,
        workers: list[Worker],
        blobs: list[Blob],
        history: History,
        *,
        deletes: bool,
        accomplice: Connection | None = None,
    ) -> None:
        self.name = name
        self._random = random
        self._faults = faults
        self._connection = connection
        self._workers = workers
        self._blobs = blobs
        self._history = history
        self._deletes = deletes
        self._accomplice = accomplice or connection
        self._client = Client(connection, prefix="blob", timeout=REQUEST_TIMEOUT)
        self._clients = 0.5
        """How often it is an application, which has the SDK, and not a request that is a call."""

    async def run(self, calls: int) -> None:
        for _ in range(calls):
            await asyncio.sleep(self._random.choice((0.0, 0.01, 1.0, 20.0)) * self._random.random())
            await self._idle()
            if self._random.random() < self._faults.hostile:
                await self._hostile(self._random.choice(self._blobs))
                continue
            [verb] = self._random.choices(list(_VERBS), list(_VERBS.values()))
            await self.do(
                "get" if verb == "delete" and not self._deletes else verb, self._random.choice(self._blobs)
            )

    async def do(self, verb: str, blob: Blob) -> None:
        if verb in ("put", "get", "has", "delete") and self._random.random() < self._clients:
            await self._do_as_client(verb, blob)
            return
        match verb:
            case "put":
                await self._call("put", blob, lambda worker: self._put(worker, blob), "inline")
            case "stage":
                await self._stage(blob)
            case "get":
                await self._call("get", blob, lambda worker: self._get(worker, blob), "")
            case "has":
                await self._call("has", blob, lambda worker: self._has(worker, blob), "")
            case "hold":
                await self._hold(blob)
            case "delete":
                await self._call("delete", blob, lambda worker: worker.store.delete(blob.digest), "")
            case "collect":
                await self._call("collect", blob, lambda worker: worker.collector.collect(), "")

    async def _do_as_client(self, verb: str, blob: Blob) -> None:
        """Through the SDK and over the wire, as applications do."""
        match verb:
            case "put":
                expected = blob.digest if self._random.random() < 0.5 else None
                source = blob.data if self._random.random() < 0.5 else self._source(blob.data)
                await self._client_call("put", blob, self._client.put(source, digest=expected))
            case "get":
                await self._client_call("get", blob, self._client_get(blob))
            case "has":
                await self._client_call("has", blob, self._client.has(blob.digest))
            case "delete":
                await self._client_call("delete", blob, self._client.delete(blob.digest))

    async def _client_get(self, blob: Blob) -> bool:
        if await self._client.get(blob.digest) != blob.data:
            raise ViolationError(f"wrong bytes of blob {blob.number} were delivered by the client")
        return True

    async def _client_call(self, verb: Verb, blob: Blob, work: Coroutine[Any, Any, object]) -> None:
        call = self._begin(verb, blob, CLIENT)
        given = 20.0 * self._random.random() if self._random.random() < self._faults.cancels else None
        try:
            async with asyncio.timeout(given):
                result = await work
            if verb in ("get", "has"):
                call.found = bool(result)
        except TimeoutError:
            call.error = DeadlineError("the caller did not wait for it")
        except BlobNotFoundError as error:
            call.error, call.found = error, False
        except BlobError as error:
            call.error = error
        call.ended = asyncio.get_running_loop().time()

    async def _call(
        self, verb: Verb, blob: Blob, work: Callable[[Worker], Awaitable[object]], how: str
    ) -> Call:
        call = self._begin(verb, blob, how)
        try:
            result = await self._ask(work)
            if verb in ("get", "has"):
                call.found = bool(result)
        except BlobNotFoundError as error:
            call.error, call.found = error, False
        except BlobError as error:
            call.error = error
        call.ended = asyncio.get_running_loop().time()
        return call

    def _begin(self, verb: Verb, blob: Blob, how: str) -> Call:
        call = Call(verb, blob.number, self.name, asyncio.get_running_loop().time(), how=how)
        self._history.calls.append(call)
        return call

    async def _ask(self, work: Callable[[Worker], Awaitable[T]]) -> T:
        random = self._random
        cancel_after = random.randint(1, 14) if random.random() < self._faults.cancels else None
        return await random.choice(self._workers).answer(work, cancel_after=cancel_after)

    async def _put(self, worker: Worker, blob: Blob) -> None:
        expected = blob.digest if self._random.random() < 0.5 else None
        info = await worker.store.put(self._source(blob.data), expected=expected)
        if info.digest != blob.digest or info.size != len(blob.data):
            raise ViolationError("a put was answered with another blob")

    async def _source(self, data: bytes) -> AsyncIterator[bytes]:
        """May pause behind the last bytes, when all that fills a chunk is stored and has no name."""
        for start in range(0, len(data), 7):
            yield data[start : start + 7]
        if self._random.random() < self._faults.slow:
            await asyncio.sleep(40.0 * self._random.random())

    async def _get(self, worker: Worker, blob: Blob) -> bool:
        """The bytes as the store gives them: the sum of each chunk is checked, the digest is not."""
        received = b""
        async for chunk in worker.store.chunks(blob.digest):
            received += chunk
            if not blob.data.startswith(received):
                raise ViolationError(f"wrong bytes of blob {blob.number} were served")
        if received != blob.data:
            raise ViolationError(f"blob {blob.number} was served short, and as complete")
        return True

    async def _has(self, worker: Worker, blob: Blob) -> bool:
        return not await worker.store.missing([blob.digest])

    async def _hold(self, blob: Blob) -> None:
        """Open a put of known content: where it is there, that is an acknowledgement."""
        call = self._begin("put", blob, "known")
        try:
            held = await self._ask(lambda worker: worker.store.held(blob.digest))
            if held is None:
                self._history.calls.remove(call)
        except BlobError as error:
            call.error = error
        call.ended = asyncio.get_running_loop().time()

    async def _stage(self, blob: Blob) -> None:
        """An upload: opened, published past the workers, committed by some, or aborted, or forgotten."""
        random = self._random
        call = self._begin("put", blob, "staged")
        opened: Opened | None = None
        try:
            relayed = random.random() < 0.5
            opened = await self._ask(lambda worker: worker.uploads.open(relayed=relayed))
            request = await self._publish(blob, opened)
            await self._idle()
            if random.random() < 0.1:
                raise UnfinishedError
            aborting = None
            if random.random() < 0.25:
                aborting = asyncio.create_task(self._abort(blob, opened))
            await self._commit(request)
            if aborting is not None:
                await aborting
        except BlobError as error:
            call.error = error
            call.ended = asyncio.get_running_loop().time()
            if opened is not None and random.random() < 0.7:
                await self._abort(blob, opened)
        except UnfinishedError as error:
            call.error = error
        call.ended = min(call.ended, asyncio.get_running_loop().time())

    async def _hostile(self, blob: Blob) -> None:
        """An upload by a publisher who may write chunks, or by two of them, and who does it oddly."""
        random = self._random
        call = self._begin("put", blob, HOSTILE)
        try:
            opened = await self._ask(lambda worker: worker.uploads.open(relayed=False))
            stage = opened.chunk_subject.rpartition(".")[2]
            chunks = [blob.data[start : start + CHUNK] for start in range(0, len(blob.data), CHUNK)]
            is_odd = random.random() < 0.5  # else it is honest, but for its two connections
            again = 0.1 if is_odd else 0.0
            order = [index for index in range(len(chunks)) for _ in range(1 + (random.random() < again))]
            if is_odd and random.random() < 0.3:
                random.shuffle(order)
            send = self._odd if is_odd else self._send
            seqs = await asyncio.gather(*(send(stage, opened, index, chunks[index]) for index in order))
            placed = dict(zip(order, seqs, strict=True))
            marks = marks_of([placed[index] for index in range(len(chunks))]) if all(seqs) else None
            digest = blob.digest if random.random() < 0.7 else None
            await self._commit(CommitRequest(opened.upload, len(blob.data), len(chunks), digest, marks))
        except BlobError as error:
            call.error = error
        call.ended = asyncio.get_running_loop().time()

    async def _odd(self, stage: str, opened: Opened, index: int, chunk: bytes) -> int:
        """Publish a chunk, perhaps with other headers or bytes."""
        random = self._random
        headers = wire.chunk_headers(stage, index, chunk)
        if random.random() < 0.3:
            headers |= random.choice(_ODD)
        if random.random() < 0.1:
            del headers[random.choice(sorted(headers))]
        if random.random() < 0.05:
            chunk = chunk[:-1]
        return await self._send(stage, opened, index, chunk, headers)

    async def _send(
        self, stage: str, opened: Opened, index: int, chunk: bytes, headers: Headers | None = None
    ) -> int:
        """Publish a chunk on one of two connections; where it lies, if that is told."""
        connection = self._random.choice((self._connection, self._accomplice))
        headers = headers or wire.chunk_headers(stage, index, chunk)
        try:
            ack = await connection.request(opened.chunk_subject, chunk, headers=headers, timeout=5.0)
        except BlobError:
            return 0
        return int(msgspec.json.decode(ack.data or b"{}").get("seq", 0))

    async def _publish(self, blob: Blob, opened: Opened) -> CommitRequest:
        stage = opened.chunk_subject.rpartition(".")[2]

        async def elsewhere(trouble: BlobError, _silent: float, _: Callable[[], int]) -> Place | None:
            if not opened.relayed or not isinstance(trouble, (*_GONE, DeadlineError)):
                return None
            try:
                again = await self._ask(lambda worker: worker.uploads.open(opened.upload, relayed=True))
            except BlobError:
                return None
            return Place(again.chunk_subject, stage, again.window)

        window = PublishWindow(
            self._connection,
            opened.chunk_subject,
            message_id=stage,
            window=opened.window,
            patience=30.0,
            elsewhere=elsewhere,
        )
        with window:
            for start in range(0, len(blob.data), CHUNK):
                await window.send(blob.data[start : start + CHUNK])
            await window.finish()
        digest = blob.digest if self._random.random() < 0.7 else None
        return CommitRequest(opened.upload, len(blob.data), window.sent, digest, marks_of(window.seqs))

    async def _commit(self, request: CommitRequest) -> None:
        random = self._random
        for number in range(_COMMITS):
            attempts = [
                asyncio.create_task(self._ask(lambda worker: worker.uploads.commit(request)))
                for _ in range(random.choice((1, 1, 1, 2)))
            ]
            outcomes = await asyncio.gather(*attempts, return_exceptions=True)
            failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            if len(failures) < len(outcomes):
                return
            if number == _COMMITS - 1 or not all(getattr(error, "retryable", False) for error in failures):
                raise failures[-1]

    async def _abort(self, blob: Blob, opened: Opened) -> None:
        await self._call("abort", blob, lambda worker: worker.uploads.abort(opened.upload), "")

    async def _idle(self) -> None:
        if self._random.random() < self._faults.idles:
            await asyncio.sleep(_HOUR * self._random.choice((0.02, 0.9, 1.1, 2.1, 3.0)))


class UnfinishedError(Exception):
    """The caller went away in the middle."""
