"""Acknowledged publishing of the chunks of one object, a bounded number of them at a time."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Final, NamedTuple, Self, TypeAlias

from natsblob.broker.connection import Connection
from natsblob.broker.jetstream import decode_ack
from natsblob.broker.message import Message
from natsblob.broker.retry import delay
from natsblob.chunking import Block
from natsblob.errors import BlobError, DeadlineError, NotAllowedError, UnavailableError
from natsblob.wire import chunk_headers

ACK_TIMEOUT: Final = 5.0
"""Seconds without any ack after which the unanswered chunks are published again."""
FIRST_ACK_TIMEOUT: Final = 1.2
"""The same as long as there was no ack at all, if chunks can go elsewhere."""


class Place(NamedTuple):
    """Where chunks go."""

    subject: str
    message_id: str
    """Precedes the index in the message ids of the chunks."""
    window: int
    """Chunks that may be unanswered there."""


Elsewhere: TypeAlias = Callable[[BlobError, float, Callable[[], int]], Awaitable[Place | None]]
"""Where the unanswered chunks go from now on, if not to the same place.

It is told of an error and of the seconds without any answer, and may ask how many chunks are answered: these
are stored, and are not published again. Only if there are none may the message ids be other ones.
"""


class PublishWindow:
    """Publishes chunks 0, 1, 2, … to one subject and keeps at most `window` of them unanswered.

    A chunk that is refused for now, or not answered, is published again with the same message id and
    so is stored once. Use it as a context: leaving it stops listening for acks. Memory is bounded by
    the chunks that are unanswered. `elsewhere` is asked before anything is published again, or given up.
    """

    def __init__(
        self,
        connection: Connection,
        subject: str,
        *,
        message_id: str,
        window: int,
        patience: float,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._connection = connection
        self._subject = subject
        self._message_id = message_id
        self._window = window
        self._patience = patience
        self._elsewhere = elsewhere
        self._unanswered: dict[int, Block] = {}
        self._refused: set[int] = set()
        """Those that are to be published again."""
        self._wake = asyncio.Event()
        self._trouble: BlobError | None = None
        self._fatal: BlobError | None = None
        self._epoch = connection.epoch
        self._attempt = 0
        self._progress_at = 0.0
        self._reply = ""
        self._listening = ExitStack()
        self._has_moved = False
        self.seqs = array("Q")
        """The stream sequence of each chunk, by index; final after `finish`."""

    @property
    def sent(self) -> int:
        """Chunks handed to `send` so far."""
        return len(self.seqs)

    @property
    def answered(self) -> int:
        """How many of them are stored."""
        return len(self.seqs) - len(self._unanswered)

    def __enter__(self) -> Self:
        self._listen()
        self._progress_at = asyncio.get_running_loop().time()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self._unanswered.clear()

    async def send(self, data: Block) -> None:
        """Publish the next chunk once there is room. The bytes are kept until they are answered.

        Raises what the stream refuses for good, and after `patience` seconds without progress the
        last passing error.
        """
        await self._settle(self._window - 1)
        index = self.sent
        self.seqs.append(0)
        if not self._unanswered:
            self._progress_at = asyncio.get_running_loop().time()
        self._unanswered[index] = data
        await self._publish(index, data)

    async def finish(self) -> None:
        """Wait until every chunk is answered: they are stored then."""
        await self._settle(0)

    async def _settle(self, most: int) -> None:
        """Wait until at most `most` chunks are unanswered, publishing again what needs it."""
        while True:
            if self._epoch != self._connection.epoch and self._unanswered:
                self._trouble = self._trouble or UnavailableError("the connection was interrupted")
                self._refused.update(self._unanswered)
            trouble = self._fatal or self._trouble
            if trouble is not None:
                if not await self._moved(trouble):
                    await self._publish_again(trouble)
            elif len(self._unanswered) <= most:
                return
            else:
                await self._next_ack()

    async def _next_ack(self) -> None:
        self._wake.clear()
        is_first = self._elsewhere is not None and self.answered == 0
        patience = min(ACK_TIMEOUT, FIRST_ACK_TIMEOUT) if is_first else ACK_TIMEOUT
        try:
            async with asyncio.timeout(patience):
                await self._wake.wait()
        except TimeoutError:
            self._trouble = DeadlineError(f"no answer to a chunk within {patience:g} s")
            self._refused.update(self._unanswered)

    async def _moved(self, trouble: BlobError) -> bool:
        """Whether the chunks go elsewhere from now on; all that are unanswered are to be published there."""
        silent = asyncio.get_running_loop().time() - self._progress_at
        place = await self._elsewhere(trouble, silent, lambda: self.answered) if self._elsewhere else None
        if place is None:
            return False
        if place.message_id != self._message_id:  # what was published before is of no use there
            self._listen()
        self._subject, self._message_id, self._window = place
        self._has_moved = True
        self._fatal = None
        self._trouble = UnavailableError("the chunks go elsewhere")
        self._refused.update(self._unanswered)
        await self._publish_again(self._trouble)
        return True

    def _listen(self) -> None:
        """Hear the answers to what is published from now on, and no others."""
        self._listening.close()
        self._reply = self._listening.enter_context(self._connection.inbox(self._on_ack))
        self._listening.enter_context(self._connection.refusals(self._subject, self._on_refusal))

    async def _publish_again(self, trouble: BlobError) -> None:
        loop = asyncio.get_running_loop()
        if self._fatal is not None or loop.time() - self._progress_at > self._patience:
            raise trouble
        self._trouble = None
        await asyncio.sleep(delay(self._attempt, trouble))
        self._attempt += 1
        self._epoch = self._connection.epoch
        again, self._refused = sorted(self._refused), set()
        for index in again:
            if index in self._unanswered:
                await self._publish(index, self._unanswered[index])

    async def _publish(self, index: int, data: Block) -> None:
        headers = chunk_headers(self._message_id, index, data)
        try:
            await self._connection.publish(
                self._subject, data, reply=f"{self._reply}.{index}", headers=headers
            )
        except BlobError as error:
            self._note(error, index)

    def _on_ack(self, message: Message) -> None:
        tail = message.subject.rpartition(".")[2]
        index = int(tail) if tail.isdecimal() else -1
        if index not in self._unanswered:
            return
        try:
            ack = decode_ack(message)
        except BlobError as error:
            self._note(error, index)
        else:
            del self._unanswered[index]
            self.seqs[index] = ack.seq
            self._attempt = 0
            self._progress_at = asyncio.get_running_loop().time()
        self._wake.set()

    def _on_refusal(self, error: NotAllowedError) -> None:
        """These credentials may not publish where the chunks went first."""
        if not self._has_moved:
            self._note(error)

    def _note(self, error: BlobError, index: int | None = None) -> None:
        """A chunk was refused, or all are."""
        self._refused.update(self._unanswered if index is None else {index})
        if error.retryable:
            self._trouble = error
        else:
            self._fatal = error
        self._wake.set()
