"""Whether a stream is still the one that it was, or was made anew, restored, or emptied by somebody.

The time of its creation does not tell: a restore brings it back, with sequences that go on to other
messages. So what is remembered of a stream comes with signs by which it is known again (ADR 0017).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final, Self

from natsblob.broker.jetstream import JetStream, StreamInfo
from natsblob.objectstore.info import Layout

_WITNESSES: Final = 4


@dataclass(frozen=True, slots=True)
class Signs:
    """What the leader says of a stream without being asked for a message."""

    created: datetime | None
    last_seq: int
    last_time: datetime | None

    @classmethod
    def of(cls, info: StreamInfo) -> Self:
        return cls(info.created, info.state.last_seq, info.state.last_ts)

    def can_become(self, later: Signs) -> bool:
        """Whether the same stream can show these signs later on."""
        if self.created != later.created or self.last_seq > later.last_seq:
            return False
        return self.last_seq < later.last_seq or self.last_time == later.last_time


class Evidence(Enum):
    SAME = "a message is where it was"
    NONE = "none of the messages is there any more"
    OTHER = "another message is there"


class Witnesses:
    """A few messages of metadata that were the newest ones when they were noted."""

    def __init__(self, jetstream: JetStream, layout: Layout) -> None:
        self._jetstream = jetstream
        self._layout = layout
        self._noted: deque[tuple[int, datetime]] = deque(maxlen=_WITNESSES)

    async def note(self) -> None:
        """Note the newest metadata. To be done before that is read which is to be remembered."""
        newest = await self._jetstream.last_at_leader(self._layout.stream, self._layout.all_meta)
        if newest is not None and (newest.seq, newest.time) not in self._noted:
            self._noted.append((newest.seq, newest.time))

    async def ask(self) -> Evidence:
        """Whether the stream is the one in which they were noted; the newest is asked first."""
        for seq, time in reversed(self._noted):
            stored = await self._jetstream.at_leader(self._layout.stream, seq)
            if stored is not None:
                return Evidence.SAME if stored.time == time else Evidence.OTHER
        return Evidence.NONE

    def forget(self) -> None:
        self._noted.clear()
