"""Turns at reading staged chunks back: a few uploads at a time, a window each, one client after the other.

Whoever has many chunks to read, or many uploads, or calls itself by many names, waits with the others: a
place is given up after each window. How many uploads are being read is bounded as well. When no more fit, a
smaller one is let in at the cost of one of which more was read already, and which has to begin again.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, TypeVar

from natsblob.errors import BusyError

T = TypeVar("T")

READ_BACK_AT_ONCE: Final = 4
"""Windows of chunks that are read back at a time in one worker."""
MAX_READERS: Final = 64
"""Uploads that are read back or wait for their turn, in one worker."""
MAX_READERS_EACH: Final = 32
"""The same, of one client."""
TURN: Final = 5.0
"""Seconds that an upload waits for its turn, before its client is told to ask again."""
_RETRY_AFTER_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Asker:
    """Whom something is read for. `allow` moves its deadline, by seconds."""

    client: str = ""
    allow: Callable[[float], None] = lambda _: None


_NOBODY: Final = Asker()
_asker: ContextVar[Asker] = ContextVar("asker", default=_NOBODY)


@contextmanager
def on_behalf_of(asker: Asker) -> Iterator[None]:
    """What is read inside, in this task, is read for `asker`."""
    token = _asker.set(asker)
    try:
        yield
    finally:
        _asker.reset(token)


def asker() -> Asker:
    """Whom this task reads for."""
    return _asker.get()


class _Reader:
    """One upload that is read back."""

    __slots__ = ("client", "items", "must_end")

    def __init__(self, client: str) -> None:
        self.client = client
        self.items = 0
        self.must_end = False


class Places:
    """A few places at a time for what clients ask for, one client after the other."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._turns = 0
        self._last_turn: dict[str, int] = {}
        """The number of the last turn of each client that is here."""
        self._here: Counter[str] = Counter()

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """A place when it is this client's turn; `BusyError` if that takes longer than `TURN`."""
        with self.staying(client):
            if self._free:
                self._free -= 1
            else:
                await self._wait(client)
            try:
                self._turns += 1
                self._last_turn[client] = self._turns
                yield
            finally:
                self._next()

    @contextmanager
    def staying(self, client: str) -> Iterator[None]:
        """Remember inside when the client had its last turn: it is about to want another one."""
        self._here[client] += 1
        try:
            yield
        finally:
            self._here[client] -= 1
            if not self._here[client]:
                del self._here[client]
                self._last_turn.pop(client, None)

    async def _wait(self, client: str) -> None:
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(given)
        try:
            async with asyncio.timeout(TURN):
                await given
        except BaseException as error:
            if given.done() and not given.cancelled():
                self._next()
            given.cancel()
            if isinstance(error, TimeoutError):
                raise _busy() from None
            raise

    def _next(self) -> None:
        """Give the place to the client whose last turn is longest ago, and there to whoever waits longest."""
        while self._waiting:
            client = min(self._waiting, key=lambda waiting: self._last_turn.get(waiting, 0))
            given = self._waiting[client].popleft()
            if not self._waiting[client]:
                del self._waiting[client]
            if not given.done():
                given.set_result(None)
                return
        self._free += 1


class Turns:
    """Uploads that are read back in one worker, a window in a turn."""

    def __init__(self, places: int = READ_BACK_AT_ONCE) -> None:
        self._places = Places(places)
        self._readers: set[_Reader] = set()

    async def share(self, items: AsyncIterator[T], *, count: int, each: int) -> AsyncGenerator[T, None]:
        """`items`, about `count`, of which `each` in a turn. Close it if it is not read to its end.

        Time that passes while items come does not count against the deadline of whoever asks.
        `BusyError` if too much is being read back, or this was read for longer than others need.
        """
        asker = _asker.get()
        loop = asyncio.get_running_loop()
        with self._reading(asker.client, count) as reader, self._places.staying(asker.client):
            while True:
                began = loop.time()
                async with self._places.place(asker.client):
                    if reader.must_end:
                        raise _busy()
                    for _ in range(each):
                        try:
                            item = await anext(items)
                        except StopAsyncIteration:
                            return
                        reader.items += 1
                        yield item
                asker.allow(loop.time() - began)

    @contextmanager
    def _reading(self, client: str, count: int) -> Iterator[_Reader]:
        _make_room([reader for reader in self._readers if reader.client == client], MAX_READERS_EACH, count)
        _make_room(self._readers, MAX_READERS, count)
        reader = _Reader(client)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)


def _make_room(readers: Collection[_Reader], most: int, count: int) -> None:
    """Have the reader end that has read the most, if there is no room; `BusyError` if that is not more."""
    staying = [reader for reader in readers if not reader.must_end]
    if len(staying) < most:
        return
    largest = max(staying, key=lambda reader: reader.items)
    if largest.items <= count:
        raise _busy()
    largest.must_end = True


def _busy() -> BusyError:
    return BusyError("this worker does much of this for others; ask again", retry_after_ms=_RETRY_AFTER_MS)
