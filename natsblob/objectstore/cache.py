"""Metadata of objects that were found, kept for as long as nothing is heard of their deletion or replacement.

Content is immutable, so metadata goes out of date in two ways only: its object is deleted, or replaced by one
with the same bytes (ADR 0013). Either publishes a message, which this listens for on the connection on which
requests come in: so it is heard before any request that its sender makes once it knows of the change. How
long something unheard (an interruption, an expiry, a purge by hand) can count is bounded by `KEPT_FOR`.
Puts never rely on it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Final

import msgspec

from natsblob.broker.connection import Connection
from natsblob.broker.message import Message
from natsblob.errors import NotAllowedError
from natsblob.logs import get_logger
from natsblob.objectstore.info import Entry, Layout
from natsblob.wire import NOT_DECODED

log = get_logger("natsblob.objectstore")

MOST: Final = 8_192
"""Objects remembered, the ones used last; between one and two KiB each."""
HEAVIEST: Final = 64 * 1024
"""Bytes of texts in the metadata of an object that is remembered: other clients may store a megabyte."""
KEPT_FOR: Final = 30.0
"""Seconds after which an object is looked up anew."""
SETTLING: Final = 30.0
"""Seconds after a marker was heard in which its object is not remembered: a replica may not have it yet."""


class _Marker(msgspec.Struct):
    name: str
    nuid: str = ""
    deleted: bool = False


class EntryCache:
    """Remembers entries by name, while it is `listening`. Bounded in number and in time."""

    def __init__(self, layout: Layout, *, clock: Callable[[], float] = monotonic) -> None:
        self._layout = layout
        self._clock = clock
        self._entries: OrderedDict[str, tuple[Entry, float]] = OrderedDict()
        self._deleted: OrderedDict[str, float] = OrderedDict()
        """When markers were heard, by name, of the last `MOST`."""
        self._unsettled_until = -SETTLING
        """Until when no object is remembered, because a marker that was heard had to be forgotten."""
        self._connection: Connection | None = None
        self._epoch = 0

    @asynccontextmanager
    async def listening(self, connection: Connection) -> AsyncIterator[None]:
        """Remember entries while the context lasts; none if markers cannot be heard."""
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(connection.subscribe(self._layout.all_meta, self._hear))
            except NotAllowedError:
                log.warning("cache.off", advice=f"allow workers to subscribe to {self._layout.all_meta}")
            else:
                self._connection, self._epoch = connection, connection.epoch
            try:
                yield
            finally:
                self._connection = None
                self._entries.clear()

    def get(self, name: str) -> Entry | None:
        """The entry of this name, if it is remembered."""
        self._check_connection()
        found = self._entries.get(name)
        if found is None:
            return None
        if found[1] < self._clock():
            del self._entries[name]
            return None
        self._entries.move_to_end(name)
        return found[0]

    def anyone(self) -> str | None:
        """The name of some object that is remembered, if there is one."""
        return next(reversed(self._entries), None)

    def now(self) -> float:
        """To be taken before an entry is looked up, and given to `add`."""
        return self._clock()

    def add(self, entry: Entry, looked_up_at: float) -> None:
        """Remember an entry, unless it may have been deleted since it was looked up, or just before."""
        self._check_connection()
        name = entry.info.name
        if self._connection is None or not entry.is_content or entry.info.weight > HEAVIEST:
            return
        unsettled_until = max(self._unsettled_until, self._deleted.get(name, -SETTLING) + SETTLING)
        if looked_up_at < unsettled_until:
            return
        self._entries[name] = (entry, looked_up_at + KEPT_FOR)
        self._entries.move_to_end(name)
        if len(self._entries) > MOST:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """The bucket is another one than before, and what is being looked up may be of the old one."""
        self._entries.clear()
        self._unsettled_until = max(self._unsettled_until, self._clock())

    def forget(self, name: str) -> None:
        """The object was deleted, or is not what is remembered of it."""
        self._entries.pop(name, None)
        self._deleted[name] = self._clock()
        self._deleted.move_to_end(name)
        if len(self._deleted) > MOST:
            _, heard_at = self._deleted.popitem(last=False)
            self._unsettled_until = heard_at + SETTLING

    def _hear(self, message: Message) -> None:
        try:
            marker = msgspec.json.decode(message.data, type=_Marker)
        except NOT_DECODED:
            return
        known = self._entries.get(marker.name)
        if marker.deleted or (known is not None and known[0].info.nuid != marker.nuid):
            self.forget(marker.name)

    def _check_connection(self) -> None:
        """What was published during an interruption was not heard."""
        if self._connection is not None and self._connection.epoch != self._epoch:
            self._epoch = self._connection.epoch
            self._entries.clear()
