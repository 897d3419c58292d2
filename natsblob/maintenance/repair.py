"""Bringing the copies of a bucket back to agreement, from a copy that is proved to be whole (ADR 0009).

A damaged copy is never mended in place: its server leaves the group and gets a fresh copy. Nothing leaves
before a comparison has read every blob from a copy that stays, and that copy leads meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from natsblob.broker.consumers import Copies
from natsblob.broker.jetstream import StreamInfo
from natsblob.errors import BlobCorruptError, DeadlineError, UnavailableError
from natsblob.maintenance.replicas import Comparer, Comparison, nodes_of
from natsblob.objectstore.bucket import Bucket

_ELECTION: Final = 30.0
"""Seconds for the group to follow the leader that it was asked to."""
_LOOK_AGAIN: Final = 0.1
_ASK_AGAIN: Final = 5.0
_PROOFS: Final = 5
_PROVE_AGAIN: Final = 1.0
_NAMED: Final = 3

Say = Callable[[str], None]


class Repairer:
    """Repairs one bucket. `patience` in seconds is for one copy to be made: it grows with the bytes."""

    def __init__(
        self, bucket: Bucket, comparer: Comparer, copies: Copies, *, patience: float, say: Say
    ) -> None:
        self._bucket = bucket
        self._comparer = comparer
        self._copies = copies
        self._patience = patience
        self._say = say

    async def repair(self) -> Comparison:
        """What the copies hold after the repair, or as they are where they agree already.

        `BlobCorruptError` where no copy is whole, `UnavailableError` where one cannot be read; nothing
        is changed then. Where it fails later every blob is still on the leader: run it again.
        """
        before = await self._comparer.compare()
        if before.agree:
            return before
        source = _source(before)
        damaged = [node.name for node in before.nodes if not node.is_good]
        self._say(f"{source} holds every blob; fresh copies for {', '.join(damaged)}")
        await self._lead(source)
        for node in damaged:
            if await self._copies.replace(node):
                self._say(f"another server takes the place of {node}")
                await self._settle(before.replicas)
        await self._shed(damaged, source)
        await self._bucket.set_replicas(before.replicas)
        await self._settle(before.replicas)
        return await self._proved()

    async def _proved(self) -> Comparison:
        """The copies, compared again. A new one may be called current a moment before it is."""
        for _ in range(_PROOFS):
            after = await self._comparer.compare()
            if after.agree:
                return after
            await asyncio.sleep(_PROVE_AGAIN)
        raise BlobCorruptError("the copies still differ; every blob was readable from the leader")

    async def _shed(self, damaged: list[str], source: str) -> None:
        """Have damaged copies leave the group, where no other server could take their place.

        The servers choose which copy goes, and never the leader's.
        """
        while True:
            info = await self._bucket.info()
            group = nodes_of(info)
            if not any(node in damaged for node in group):
                return
            if info.cluster is None or info.cluster.leader != source:
                raise UnavailableError("another copy leads now, so no more were removed; run it again")
            fewer = len(group) - 1
            self._say(f"{fewer} of {len(group)} copies stay")
            await self._bucket.set_replicas(fewer)
            await self._settle(fewer)

    async def _lead(self, node: str) -> None:
        """Move the leadership to a copy that is whole."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _ELECTION
        while loop.time() < give_up_at:
            if await self._leader() == node:
                return
            await self._copies.lead(node)
            ask_again_at = min(give_up_at, loop.time() + _ASK_AGAIN)
            while loop.time() < ask_again_at and await self._leader() != node:  # noqa: ASYNC110 - servers decide
                await asyncio.sleep(_LOOK_AGAIN)
        raise UnavailableError(f"the group does not take {node} as its leader; nothing was changed")

    async def _leader(self) -> str:
        try:
            info = await self._bucket.info()
        except UnavailableError:
            return ""
        return info.cluster.leader if info.cluster else ""

    async def _settle(self, replicas: int) -> None:
        """Wait until there are as many copies as wanted, all current."""
        try:
            async with asyncio.timeout(self._patience):
                while not _is_settled(await self._bucket.info(), replicas):  # noqa: ASYNC110 - servers decide
                    await asyncio.sleep(_LOOK_AGAIN)
        except TimeoutError:
            raise DeadlineError(
                f"the bucket has not {replicas} current copies yet; the servers go on. When "
                f"`natsblob bucket info` shows all current: natsblob bucket set --replicas, and verify again"
            ) from None


def _is_settled(info: StreamInfo, replicas: int) -> bool:
    if info.cluster is None or not info.cluster.leader:
        return False
    followers = info.cluster.replicas
    return len(followers) == replicas - 1 and all(peer.current for peer in followers)


def _source(found: Comparison) -> str:
    """The copy to repair from, the leader's if it is whole; an error where there is none."""
    unread = [node.name for node in found.nodes if not node.read]
    if unread:
        raise UnavailableError(
            f"the copy of {_named(unread)} cannot be read, so it cannot be judged; nothing was changed. "
            "Start that server first"
        )
    whole = [node for node in found.nodes if node.is_good]
    if whole:
        return next((node for node in whole if node.leader), whole[0]).name
    lost = [one.name for one in found.damage if not one.good]
    if lost:
        raise BlobCorruptError(f"no copy has {_named(lost)}; nothing was changed")
    raise BlobCorruptError(
        "no single copy has every blob, though each blob is whole somewhere; nothing was changed. Get "
        f"{_named([one.name for one in found.damage])}, remove and put them again, then repair"
    )


def _named(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
