"""Acknowledged publishing of the chunks of one object, a bounded number of them at a time."""

from __future__ import annotations

import asyncio
from array import array
from typing import Final, Self

from natsblob.broker.connection import Connection
from natsblob.broker.jetstream import decode_ack
from natsblob.broker.message import Message
from natsblob.broker.retry import delay
from natsblob.chunking import Block
from natsblob.errors import BlobError, DeadlineError
from natsblob.wire import chunk_headers

ACK_TIMEOUT: Final = 5.0
"""Seconds without any ack after which the unanswered chunks are published again."""


class PublishWindow:
    """Publishes chunks 0, 1, 2, … to one subject and keeps at most `window` of them unanswered.

    A chunk that is refused for now, or not answered, is published again with the same message id and
    so is stored once. Use it as a context: leaving it stops listening for acks. Memory is bounded by
    the chunks that are unanswered. Errors of the types in `final` end it, even if they are retryable.
    """

    def __init__(
        self,
        connection: Connection,
        subject: str,
        *,
        message_id: str,
        window: int,
        patience: float,
        final: tuple[type[BlobError], ...] = (),
    ) -> None:
        self._connection = connection
        self._subject = subject
        self._message_id = message_id
        self._window = window
        self._patience = patience
        self._final = final
        self._unanswered: dict[int, Block] = {}
        self._wake = asyncio.Event()
        self._trouble: BlobError | None = None
        self._fatal: BlobError | None = None
        self._epoch = connection.epoch
        self._attempt = 0
        self._progress_at = 0.0
        self._inbox = connection.inbox(self._on_ack)
        self._reply = ""
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
        self._reply = self._inbox.__enter__()
        self._progress_at = asyncio.get_running_loop().time()
        return self

    def __exit__(self, *exc: object) -> None:
        self._inbox.__exit__(*exc)
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
            if self._fatal is not None:
                raise self._fatal
            if self._epoch != self._connection.epoch and self._unanswered:
                self._trouble = self._trouble or DeadlineError("the connection was interrupted")
            if self._trouble is not None:
                await self._publish_again(self._trouble)
            elif len(self._unanswered) <= most:
                return
            else:
                await self._next_ack()

    async def _next_ack(self) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(ACK_TIMEOUT):
                await self._wake.wait()
        except TimeoutError:
            self._trouble = DeadlineError(f"no answer to a chunk within {ACK_TIMEOUT:g} s")

    async def _publish_again(self, trouble: BlobError) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._progress_at > self._patience:
            raise trouble
        self._trouble = None
        await asyncio.sleep(delay(self._attempt, trouble))
        self._attempt += 1
        self._epoch = self._connection.epoch
        for index, data in list(self._unanswered.items()):
            if index in self._unanswered:
                await self._publish(index, data)

    async def _publish(self, index: int, data: Block) -> None:
        headers = chunk_headers(self._message_id, index, data)
        try:
            await self._connection.publish(
                self._subject, data, reply=f"{self._reply}.{index}", headers=headers
            )
        except BlobError as error:
            self._note(error)

    def _on_ack(self, message: Message) -> None:
        tail = message.subject.rpartition(".")[2]
        index = int(tail) if tail.isdecimal() else -1
        if index not in self._unanswered:
            return
        try:
            ack = decode_ack(message)
        except BlobError as error:
            self._note(error)
        else:
            del self._unanswered[index]
            self.seqs[index] = ack.seq
            self._attempt = 0
            self._progress_at = asyncio.get_running_loop().time()
        self._wake.set()

    def _note(self, error: BlobError) -> None:
        if error.retryable and not isinstance(error, self._final):
            self._trouble = error
        else:
            self._fatal = error
        self._wake.set()
