"""Reading chunks by asking for windows of frames, which may come in any order, twice or not at all."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Final, Protocol

from natsblob.broker.connection import Connection, Inbox
from natsblob.broker.message import Message
from natsblob.broker.parts import Parts
from natsblob.broker.retry import delay
from natsblob.errors import BlobError, DeadlineError
from natsblob.wire import ERROR_CODE

STALL_TIMEOUT: Final = 3.0
"""Seconds without a frame after which a window is asked for again."""


class FrameSource(Protocol):
    """What a `FrameReader` reads from, and how its frames are to be understood."""

    async def ask(self, first: int, count: int, reply: str, attempt: int) -> Mapping[int, bytes] | None:
        """Have chunks `first` to `first + count - 1` sent to `reply`, and an end frame behind them.

        `attempt` counts from 0 how often nothing new came of asking: from 1 on the source is to look in
        another way, from 2 on to find out why, and to raise what is final. Chunks that it has found itself
        by then are returned, by index.
        """
        ...

    def place(self, frame: Message) -> int | None:
        """The index of the chunk in a data frame, or `None` if the frame is of no use."""
        ...

    def end(self, frame: Message) -> BlobError | None:
        """Why an end frame ended its window early, or `None` if it came in its turn."""
        ...


class _Window:
    """A run of chunks that was asked for, and those of them that have arrived."""

    def __init__(self, connection: Connection, source: FrameSource, first: int, count: int) -> None:
        self._connection = connection
        self._source = source
        self.range = range(first, first + count)
        self._frames: dict[int, bytes] = {}
        self._taken = first
        self._parts = Parts()
        self._inbox: Inbox | None = None
        self._changed = asyncio.Event()
        self._ended = False
        self._trouble: BlobError | None = None
        self._progress = True
        self._attempt = 0
        self._epoch = connection.epoch
        self._progress_at = 0.0
        self._active_at = 0.0

    async def ask(self) -> None:
        """Ask for what is missing, at a fresh reply subject: frames of earlier askings are dropped."""
        self.close()
        missing = [index for index in self.range if self._wants(index)]
        if not missing:
            return
        self._ended = False
        self._trouble = None
        self._progress = False
        self._epoch = self._connection.epoch
        self._inbox = self._connection.inbox(self._on_frame)
        reply = self._inbox.__enter__()
        count = missing[-1] - missing[0] + 1
        try:
            found = await self._source.ask(missing[0], count, reply, self._attempt)
        except BlobError as error:
            self._fail(error)
        else:
            for index, data in (found or {}).items():
                self._keep(index, data)
        self._active_at = asyncio.get_running_loop().time()

    async def take(self, index: int, patience: float) -> bytes:
        """Chunk `index`; chunks are taken in order. Asks again as often as that helps.

        Only the time that somebody waits here counts against `patience`.
        """
        if index not in self._frames:
            self._progress_at = asyncio.get_running_loop().time()
        while index not in self._frames:
            if self._ended or self._epoch != self._connection.epoch:
                await self._ask_again(patience)
            else:
                await self._next_frame(patience)
        self._taken = index + 1
        return self._frames.pop(index)

    async def _next_frame(self, patience: float) -> None:
        self._changed.clear()
        # A window that went silent while another was taken has been waited for already. Frames of no use
        # are a sign that somebody is there, but not for ever.
        give_up_at = min(self._active_at + STALL_TIMEOUT, self._progress_at + patience)
        try:
            async with asyncio.timeout_at(give_up_at):
                await self._changed.wait()
        except TimeoutError:
            self._fail(DeadlineError("data is missing and does not arrive"))

    async def _ask_again(self, patience: float) -> None:
        trouble = self._trouble or DeadlineError("data is missing and does not arrive")
        waited = asyncio.get_running_loop().time() - self._progress_at
        if not trouble.retryable:
            raise trouble
        if waited > patience:
            if isinstance(trouble, DeadlineError):
                raise DeadlineError(
                    f"no data for {waited:.0f} s: it cannot be read for now, or is damaged, which "
                    "`natsblob verify --replicas` tells"
                ) from trouble
            raise trouble
        self._attempt = 0 if self._progress else self._attempt + 1
        if self._attempt:
            await asyncio.sleep(delay(self._attempt, trouble))
        await self.ask()

    def _on_frame(self, frame: Message) -> None:
        self._active_at = asyncio.get_running_loop().time()
        if not frame.is_stored and (frame.status is not None or ERROR_CODE in frame.headers):
            self._trouble = self._source.end(frame)
            self._ended = True
        elif (whole := self._parts.add(frame)) is not None and (
            index := self._source.place(whole)
        ) is not None:
            self._keep(index, whole.data)
        self._changed.set()

    def _keep(self, index: int, data: bytes) -> None:
        if self._wants(index):
            self._frames[index] = data
            self._progress = True
            self._progress_at = asyncio.get_running_loop().time()

    def _wants(self, index: int) -> bool:
        return index in self.range and index >= self._taken and index not in self._frames

    def _fail(self, error: BlobError) -> None:
        self._trouble = error
        self._ended = True
        self._changed.set()

    def close(self) -> None:
        if self._inbox is not None:
            self._inbox.__exit__()
            self._inbox = None


async def read_frames(
    connection: Connection,
    source: FrameSource,
    chunks: range,
    *,
    window: int,
    ahead: int,
    patience: float,
) -> AsyncGenerator[bytes, None]:
    """The chunks of `chunks` in order, in windows of `window`, with `ahead` windows asked for at a time.

    Memory is bounded by `window * ahead` chunks. Raises the last passing error after `patience`
    seconds without a new chunk.
    """
    windows: deque[_Window] = deque()
    to_ask = chunks.start
    try:
        while windows or to_ask < chunks.stop:
            while len(windows) < ahead and to_ask < chunks.stop:
                windows.append(_Window(connection, source, to_ask, min(window, chunks.stop - to_ask)))
                to_ask = windows[-1].range.stop
                await windows[-1].ask()
            for index in windows[0].range:
                yield await windows[0].take(index, patience)
            windows.popleft().close()
    finally:
        for waiting in windows:
            waiting.close()
