"""Defects planted on purpose, so that the simulation is known to catch them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final
from unittest import mock

from natsblob.broker.message import Message
from natsblob.broker.publish import PublishWindow
from natsblob.chunking import Seen
from natsblob.maintenance.collect import Collector
from natsblob.objectstore import expiry, objects, proof, staging, survey
from natsblob.objectstore.info import Entry
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.proof import Proofs
from natsblob.objectstore.reader import ChunkSource
from natsblob.objectstore.staging import Decided, Decision, Staging
from tests.simulation.faults import Faults

Plant = Callable[[], AbstractContextManager[object]]


def _metadata_before_chunks() -> AbstractContextManager[object]:
    async def finish(self: PublishWindow) -> None:
        """Does not wait for the last window's answers."""

    return mock.patch.object(PublishWindow, "finish", finish)


def _missing_is_not_confirmed() -> AbstractContextManager[object]:
    async def find(self: Objects, name: str) -> Entry | None:
        stored = await self._jetstream.last(self._layout.stream, self._layout.meta(name))
        entry = Entry.decode(stored) if stored else None
        return entry if entry and not entry.info.deleted else None

    return mock.patch.object(Objects, "find", find)


def _damaged_leader_is_believed() -> AbstractContextManager[object]:
    async def newer(*_: object) -> dict[str, Entry]:
        return {}

    return mock.patch.object(objects, "newer_elsewhere", newer)


def _collection_believes_a_damaged_leader() -> AbstractContextManager[object]:
    async def counted(*_: object) -> int:
        return 0

    return mock.patch.object(objects, "most_counted", counted)


def _no_renewal() -> AbstractContextManager[object]:
    async def is_lasting(*_: object) -> bool:
        return True

    return mock.patch.object(proof, "is_lasting", is_lasting)


def _taps_are_believed() -> AbstractContextManager[object]:
    async def believed(_: object, __: object, ___: object, seen: Seen, first: int) -> Sequence[int]:
        return range(first, first + seen.chunks)

    return mock.patch.object(staging, "places_as_seen", believed)


def _abort_without_decision() -> AbstractContextManager[object]:
    async def abort(self: Staging, stage: str) -> None:
        await self._objects.drop(stage)

    return mock.patch.object(Staging, "abort", abort)


def _collector_without_age() -> AbstractContextManager[object]:
    def is_due(self: Collector, orphan: Any, began: float) -> bool:
        return True

    return mock.patch.object(Collector, "_is_due", is_due)


def _window_without_bound() -> AbstractContextManager[object]:
    settle = PublishWindow._settle

    async def unbounded(self: PublishWindow, most: int) -> None:
        await settle(self, most if most == 0 else 1_000_000)

    return mock.patch.object(PublishWindow, "_settle", unbounded)


def _frames_by_arrival() -> AbstractContextManager[object]:
    def place(self: Any, frame: Message) -> int | None:
        self._arrived = getattr(self, "_arrived", -1) + 1
        return int(self._arrived)

    return mock.patch.object(ChunkSource, "place", place)


def _drop_on_unknown_outcome() -> AbstractContextManager[object]:
    name = Objects.name

    async def dropping(self: Objects, written: Any, *args: Any) -> Entry:
        try:
            return await name(self, written, *args)
        except BaseException:
            await self.drop(written.nuid)
            raise

    return mock.patch.object(Objects, "name", dropping)


def _chunks_in_any_order() -> AbstractContextManager[object]:
    async def write(self: Objects, source: Any) -> Any:
        return (await self._write(source, self.window))[0]

    return mock.patch.object(Objects, "write", write)


def _commit_without_decision() -> AbstractContextManager[object]:
    decide = Staging._decide

    async def decided(self: Staging, stage: str, decision: Decision) -> Decided:
        if decision.action == "drop":
            return await decide(self, stage, decision)
        return Decided(decision, 1_000_000)

    return mock.patch.object(Staging, "_decide", decided)


def _markers_keep_chunks() -> AbstractContextManager[object]:
    async def named(self: Objects, among: AbstractSet[str]) -> set[str]:
        return {Entry.decode(stored).info.nuid async for stored in self.metadata()} & among

    return mock.patch.object(Objects, "named_chunks", named)


def _asking_from_the_beginning() -> AbstractContextManager[object]:
    start = ChunkSource._start

    def forgetful(self: ChunkSource, first: int, *, trust_marks: bool) -> int:
        return start(self, first, trust_marks=True) if trust_marks else 1

    return mock.patch.object(ChunkSource, "_start", forgetful)


def _any_headers_are_named() -> AbstractContextManager[object]:
    return mock.patch.object(survey, "is_canonical", return_value=True)


def _any_blob_is_proven() -> AbstractContextManager[object]:
    async def holds(self: Proofs, entry: Entry, **_: object) -> bool:
        return entry.is_blob and await expiry.is_lasting(self._objects.bucket, entry)

    return mock.patch.object(Proofs, "holds", holds)


def _doubts_are_not_recorded() -> AbstractContextManager[object]:
    async def doubt(self: Proofs, entry: Entry) -> None:
        """Tells nobody."""

    return mock.patch.object(Proofs, "doubt", doubt)


DEFECTS: Final[dict[str, tuple[Plant, Faults]]] = {
    "metadata before chunks": (_metadata_before_chunks, Faults(late=0.08, reordered=0.4)),
    "missing is not confirmed": (_missing_is_not_confirmed, Faults(lag=20.0)),
    "damaged leader is believed": (_damaged_leader_is_believed, Faults(rot=1.0)),
    "collection believes a damaged leader": (_collection_believes_a_damaged_leader, Faults(rot=1.0)),
    "what expires is not renewed": (_no_renewal, Faults(max_age=4 * 3600.0, idles=0.5)),
    "taps are believed": (_taps_are_believed, Faults(reordered=0.4, hostile=0.6)),
    "abort without decision": (_abort_without_decision, Faults(late=0.2, duplicated=0.2)),
    "commit without decision": (_commit_without_decision, Faults(late=0.2, duplicated=0.2)),
    "delete markers keep chunks": (_markers_keep_chunks, Faults(lost=0.3, cancels=0.6)),
    "asking from the beginning": (_asking_from_the_beginning, Faults(reordered=0.9)),
    "collector without age": (_collector_without_age, Faults(slow=1.0)),
    "window without bound": (_window_without_bound, Faults(late=0.1)),
    "frames by arrival": (_frames_by_arrival, Faults(reordered=0.4, duplicated=0.2)),
    "drop on unknown outcome": (_drop_on_unknown_outcome, Faults(cancels=0.6)),
    "any headers are named": (_any_headers_are_named, Faults(hostile=0.6)),
    "any blob is proven": (_any_blob_is_proven, Faults(damage=True)),
    "doubts are not recorded": (_doubts_are_not_recorded, Faults(damage=True)),
    "chunks in any order": (_chunks_in_any_order, Faults(refused=0.15)),
}
"""Each with faults under which it shows soon."""


def planted(defect: str | None) -> AbstractContextManager[object]:
    """The code with a defect for as long as the context lasts, or as it is."""
    return DEFECTS[defect][0]() if defect is not None else nullcontext()
