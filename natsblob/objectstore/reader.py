"""Reading the chunks of one object by batched direct reads, wherever in the stream they lie."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress

from natsblob import chunking, wire
from natsblob.broker.frames import read_frames
from natsblob.broker.jetstream import JetStream
from natsblob.broker.message import SEQUENCE, Message
from natsblob.errors import BlobCorruptError, BlobError, UnavailableError, UnprovenError
from natsblob.objectstore.adopted import Sums
from natsblob.objectstore.info import Layout, ObjectInfo

PATIENCE = 30.0
"""Seconds without a new chunk after which a read gives up."""
MOST_MESSAGES = 4096
"""Messages in one window, however small: a reader takes them in one after the other, without flow control."""
AHEAD = 2
"""Windows asked for at a time."""
_BAD_COPIES = 6
"""Times that a chunk must fail its sum to be called corrupt. Copies are asked at random."""
_REMEMBERED = 256
"""Places of chunks that are remembered, to ask again from the last one before a chunk that got lost."""

StillThere = Callable[[], Awaitable[None]]
"""Raises `BlobNotFoundError` or `BlobCorruptError` if the leader no longer has the whole object."""
Unreadable = Callable[[], Awaitable[None]]
"""Told that the leader does not give a chunk, though it has the object, or gives a later one in its place."""
LeftOut = Callable[[int], Awaitable[None]]
"""Told how often in a row the leader has not given a chunk; raises `BlobCorruptError` if no copy will."""


class ChunkSource:
    """The chunks of one object as frames of direct reads; a `FrameSource`."""

    def __init__(
        self,
        jetstream: JetStream,
        layout: Layout,
        info: ObjectInfo,
        still_there: StillThere,
        *,
        window: int,
        verify: bool,
        sums: Sums | None = None,
        left_out: LeftOut,
    ) -> None:
        """With `verify` each chunk is compared with its sum in `sums`, or with the one stored beside it."""
        self._jetstream = jetstream
        self._stream = layout.stream
        self.subject = layout.chunks(info.nuid)
        self._info = info
        self._still_there = still_there
        self._window = window
        self._tell_left_out = left_out
        self._verify = verify
        self._seen: dict[int, int] = {}
        """Stream sequences of the chunks that came last, by index."""
        self._sums = sums
        self._bad = 0
        self._uneven = 0
        self._left_out = (-1, 0)
        """The chunk that the leader left out last, and how often."""
        self._is_unproven = False

    async def ask(self, first: int, count: int, reply: str, attempt: int) -> Mapping[int, bytes] | None:
        if self._bad >= _BAD_COPIES:
            raise BlobCorruptError("a chunk fails its checksum on every copy that could be read")
        if self._uneven >= _BAD_COPIES:
            raise BlobCorruptError(
                "the chunks of this object have other lengths than its metadata says: "
                "`natsblob bucket adopt` writes such objects anew"
            )
        if self._is_unproven:
            raise UnprovenError("nothing is stored that would prove this chunk")
        if attempt >= 2:
            await self._still_there()
        # Chunks that lie in another order are before the place where this one should be.
        back = min(first, 4 ** (attempt - 1), self._window // 2) if attempt >= 2 else 0
        start = self._start(first - back, trust_marks=attempt == 0)
        wanted = min(count + back, self._window)
        await self._jetstream.request_batch(self._stream, self.subject, start, wanted, reply)
        return await self._from_leader(first) if attempt >= 3 else None

    async def _from_leader(self, index: int) -> Mapping[int, bytes] | None:
        """The chunk, if it is the next one behind where it should be: not as a direct read delivers it."""
        start = self._start(index, trust_marks=False)
        stored, is_left_out = None, False
        with suppress(BlobError):
            stored = await self._jetstream.next_at_leader(self._stream, self.subject, start)
            found = wire.chunk_index(stored.headers) if stored else None
            is_next = index == 0 or index - 1 in self._seen
            is_skipped = is_next and found is not None and found > index
            if stored is None or is_skipped:
                await self._still_there()  # it may have gone since that was seen
                is_left_out = True
        if is_left_out:
            before, times = self._left_out
            self._left_out = (index, times + 1 if before == index else 1)
            await self._tell_left_out(self._left_out[1])
        if stored is None:
            return None
        frame = Message(stored.subject, "", stored.data, stored.headers)
        here = index if found is None and is_next else found
        if here != index or not self._is_good(index, frame):
            return None
        self._remember(index, stored.seq)
        return {index: stored.data}

    def place(self, frame: Message) -> int | None:
        """By the index that natsblob writes, else by how many chunks are still to come."""
        index = wire.chunk_index(frame.headers)
        if index is None:
            behind = self._jetstream.pending_after(frame)
            index = self._info.chunks - 1 - behind if behind is not None else -1
        seq = frame.headers.get(SEQUENCE, "")
        if seq.isdecimal() and index >= 0:
            self._remember(index, int(seq))
        return index if self._is_good(index, frame) else None

    def _remember(self, index: int, seq: int) -> None:
        self._seen[index] = seq
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]

    def _is_good(self, index: int, frame: Message) -> bool:
        info = self._info
        if len(frame.data) != chunking.length(index, info.size, info.chunk_size):
            self._uneven += 1
            return False
        if not self._verify:
            return True
        claimed = self._sums.of(index) if self._sums else frame.headers.get(wire.SUM)
        if claimed is None:
            if self._sums is None or index >= self._sums.first:
                self._is_unproven = True
            return False
        if claimed != wire.chunk_sum(frame.data):
            self._bad += 1
            return False
        return True

    def end(self, frame: Message) -> BlobError | None:
        if frame.status == "204":
            return None
        return UnavailableError(f"a replica has no more chunks to give ({frame.status})")

    def _start(self, first: int, *, trust_marks: bool) -> int:
        """A sequence from which the next message of the object is chunk `first`, or one before it."""
        bounds = [1]
        if trust_marks and (marked := start_of(self._info, first)) is not None:
            bounds.append(marked)
        before = max((index for index in self._seen if index < first), default=None)
        if before is not None:
            bounds.append(self._seen[before] + first - before)
        return max(bounds)


def start_of(info: ObjectInfo, first: int) -> int | None:
    """The stream sequence at or before chunk `first`, if the metadata tells it."""
    marks = info.marks
    if marks is None or first // marks.every >= len(marks.seqs):
        return None
    mark = first // marks.every
    return marks.seqs[mark] + first - mark * marks.every


def exact_start_of(info: ObjectInfo, first: int) -> int | None:
    """The stream sequence of chunk `first` itself, if the metadata tells it."""
    marks = info.marks
    if marks is None:
        return None
    run, inside = divmod(first, marks.every)
    steps = marks.seqs[run : run + 2]
    is_tight = len(marks.seqs) == 1 or (len(steps) == 2 and steps[1] - steps[0] == marks.every)
    return start_of(info, first) if inside == 0 or is_tight else None


def read_chunks(
    source: ChunkSource, jetstream: JetStream, chunks: range, *, window: int
) -> AsyncIterator[bytes]:
    """The chunks of `chunks` in order, each checked as the source was told to."""
    return read_frames(jetstream.connection, source, chunks, window=window, ahead=AHEAD, patience=PATIENCE)
