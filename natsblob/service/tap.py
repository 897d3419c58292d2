"""Watching the chunks of uploads pass on their way into the stream, and hashing them meanwhile.

An optimisation and nothing more: whatever a tap is not sure of, it has not seen, and the commit reads
the stored chunks back. Sure it is only of chunks that came each once, in order, with exactly the headers that
they have to have, over a connection that was not interrupted; and the commit compares each with what the
stream holds (ADR 0005, ADR 0014).
"""

from __future__ import annotations

import asyncio
from array import array
from types import TracebackType
from typing import Final, Self

from natsblob import wire
from natsblob.broker.connection import Connection
from natsblob.broker.message import Message
from natsblob.chunking import Seen
from natsblob.errors import BlobError
from natsblob.hashing import ConcurrentHasher
from natsblob.logs import get_logger
from natsblob.objectstore.canonical import is_canonical
from natsblob.service.limits import ByteBudget

log = get_logger("natsblob")

MAX_TAPS: Final = 8
"""Uploads watched at a time; further ones are read back. Chunks come past without flow control: what one
worker cannot hash as fast as many clients publish piles up in the server, which then cuts it off."""
MAX_HELD: Final = 64 * 1024 * 1024
"""Bytes that may wait to be hashed in one worker; the tap that would exceed it gives up."""
IDLE: Final = 60.0
"""Seconds without a chunk after which a tap ends."""
_CATCH_UP: Final = 2.0
"""Seconds that a commit waits for the next of the chunks that are stored but have not come past yet."""


class Tap:
    """One upload as it passes. Runs as a task of `Taps`."""

    def __init__(self, connection: Connection, budget: ByteBudget, stage: str) -> None:
        self._stage = stage
        self._budget = budget
        self._connection = connection
        self._epoch = connection.epoch
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self._hasher = ConcurrentHasher()
        self._sums = array("I")
        self._broken = False
        self._chunk_size = 0
        self._size = 0
        self._taken = 0
        self._hashed = 0
        self._progress = asyncio.Event()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_sure(self) -> bool:
        """Whether everything that came past is known."""
        return not self._broken and self._epoch == self._connection.epoch

    def take(self, message: Message) -> None:
        """The next message on the chunk subject, whoever published it."""
        if self._broken:
            return
        size = len(message.data)
        in_turn = size > 0 and wire.chunk_index(message.headers) == self._taken
        full_so_far = self._size == self._taken * self._chunk_size
        fits = size <= (self._chunk_size or size)
        if in_turn and full_so_far and fits and self._budget.hold(size):
            self._chunk_size = self._chunk_size or size
            self._size += size
            self._taken += 1
            self._queue.put_nowait(message)
        else:
            self._broken = True
            self._progress.set()

    async def run(self, subject: str) -> None:
        """Hash what comes, until nothing has come for `IDLE` seconds or this is cancelled."""
        try:
            async with self._connection.subscribe(subject, self.take):
                self._epoch = self._connection.epoch
                self.ready.set_result(None)
                while not self._broken:
                    async with asyncio.timeout(IDLE):
                        message = await self._queue.get()
                    try:
                        await self._hash(message)
                    finally:
                        self._budget.release(len(message.data))
        except TimeoutError:
            pass
        finally:
            self._broken = True
            self._progress.set()
            if not self.ready.done():
                self.ready.cancel()
            while not self._queue.empty():
                self._budget.release(len(self._queue.get_nowait().data))

    async def _hash(self, message: Message) -> None:
        found = wire.crc32(message.data)
        if not is_canonical(message.block, self._stage, self._hashed, found):
            self._broken = True
        else:
            self._sums.append(found)
            await self._hasher.update(message.data)
            self._hashed += 1
        self._progress.set()

    async def seen(self, chunks: int) -> Seen | None:
        """What came past, once that is `chunks` chunks, or `None` if it is not."""
        while self.is_sure and self._hashed < chunks:
            self._progress.clear()
            try:
                async with asyncio.timeout(_CATCH_UP):
                    await self._progress.wait()
            except TimeoutError:
                return None
        if not self.is_sure or self._taken != chunks:
            return None
        return Seen(await self._hasher.digest(), self._size, chunks, self._chunk_size, self._sums)


class Taps:
    """The taps of one worker, as a context that ends them all."""

    def __init__(self, connection: Connection, *, most: int = MAX_TAPS) -> None:
        self._connection = connection
        self._most = most
        self._budget = ByteBudget(MAX_HELD)
        self._taps: dict[str, tuple[Tap, asyncio.Task[None]]] = {}

    async def watch(self, stage: str, subject: str) -> None:
        """Begin to watch an upload; on return nothing that is published from now on is missed."""
        if len(self._taps) >= self._most:
            return
        tap = Tap(self._connection, self._budget, stage)
        task = asyncio.create_task(tap.run(subject))
        self._taps[stage] = (tap, task)
        task.add_done_callback(lambda _: self._ended(stage))
        await asyncio.wait({tap.ready, task}, return_when=asyncio.FIRST_COMPLETED)

    async def seen(self, stage: str, chunks: int) -> Seen | None:
        """What was seen of an upload, if that was all of its `chunks` chunks."""
        watched = self._taps.get(stage)
        return await watched[0].seen(chunks) if watched else None

    async def forget(self, stage: str) -> None:
        """Stop watching an upload."""
        watched = self._taps.get(stage)
        if watched:
            watched[1].cancel()
            await asyncio.wait({watched[1]})

    def _ended(self, stage: str) -> None:
        _, task = self._taps.pop(stage)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, BlobError):
            log.error("tap.defect", exc_info=error)
        # a tap that could not subscribe has seen nothing, which is all it may mean

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = {task for _, task in self._taps.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
