"""Bringing the copies of a bucket back to agreement, from a copy that is proved to be whole (ADR 0009).

A damaged copy is never mended in place: its server leaves the group and gets a fresh copy. Nothing leaves
before a comparison has read every blob from a copy that stays, and that copy leads meanwhile.

Which copy leaves when the group shrinks is for the servers to choose: never the leader's, and first one whose
server is down. So the whole copies stay for certain only while the damaged one's server is stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from natsblob.broker.consumers import Copies
from natsblob.broker.jetstream import StreamInfo
from natsblob.errors import (
    BlobCorruptError,
    DeadlineError,
    InsufficientStorageError,
    SetupError,
    UnavailableError,
)
from natsblob.maintenance.replicas import Comparer, Comparison, nodes_of
from natsblob.objectstore.bucket import Bucket

_ELECTION: Final = 30.0
"""Seconds for the group to follow the leader that it was asked to."""
_LOOK_AGAIN: Final = 0.1
_ASK_AGAIN: Final = 5.0
_PROOFS: Final = 10
_PROVE_AGAIN: Final = 1.0
_NAMED: Final = 3

Say = Callable[[str], None]
"""Tells an operator what is done, and what to do: `repair` waits for it."""


class Repairer:
    """Repairs one bucket.

    `patience` in seconds is for one copy to be made, and for an operator to stop or start a server.
    `online` has no server stopped: then one whole copy may be all there is until the next is made.
    """

    def __init__(
        self,
        bucket: Bucket,
        comparer: Comparer,
        copies: Copies,
        *,
        patience: float,
        say: Say,
        online: bool = False,
    ) -> None:
        self._bucket = bucket
        self._comparer = comparer
        self._copies = copies
        self._patience = patience
        self._say = say
        self._online = online

    async def repair(self) -> Comparison:
        """What the copies hold after the repair, or as they are if they agree already.

        `BlobCorruptError` if no copy is whole, `UnavailableError` if one cannot be read; nothing
        is changed then. If it fails later, every blob is still on the leader: run it again.
        """
        before = await self._comparer.compare()
        if before.agree:
            return before
        if before.is_same:
            raise BlobCorruptError(f"no copy has {_named(before.lost)}; nothing was changed")
        source = _source(before)
        damaged = [node.name for node in before.nodes if not node.is_good]
        self._say(f"{source} holds every blob; fresh copies for {', '.join(damaged)}")
        await self._lead(source)
        left = [node for node in damaged if not await self._replaced(node, before.replicas)]
        if self._online:
            await self._shed(left, source)
            await self._grow(before.replicas)
        else:
            for node in left:
                await self._renew(node, source, before.replicas)
        return await self._proved()

    async def _proved(self) -> Comparison:
        """The copies, compared again.

        A new one may be called current a moment before it is, and be absent from the group for another.
        """
        for _ in range(_PROOFS):
            after = await self._comparer.compare()
            if after.is_same and len(after.nodes) == after.replicas:
                return after
            await asyncio.sleep(_PROVE_AGAIN)
        raise BlobCorruptError("the copies still differ; every blob was readable from the leader")

    async def _replaced(self, node: str, replicas: int) -> bool:
        """Whether another server has taken the place of `node`, with a copy of its own."""
        if not await self._copies.replace(node):
            return False
        self._say(f"another server takes the place of {node}")
        await self._settle(replicas)
        return True

    async def _renew(self, node: str, source: str, replicas: int) -> None:
        """Have `node` give up its copy while it is down, and make a fresh one when it is back."""
        stay = (await self._group(source)).keys() - {node}
        self._say(f"stop nats-server {node} now: it is waited for, and all other copies stay meanwhile")
        async with self._in_time(f"{node} was not stopped"):
            while (await self._group(source)).get(node):  # noqa: ASYNC110 - an operator decides
                await asyncio.sleep(_LOOK_AGAIN)
        await self._bucket.change(replicas=replicas - 1)
        await self._settle(replicas - 1)
        if (await self._group(source)).keys() != stay:
            raise UnavailableError(f"another copy than that of {node} has left; {source} has every blob")
        self._say(f"start nats-server {node} again: it is waited for, and gets a fresh copy")
        await self._grow(replicas)

    async def _shed(self, damaged: Sequence[str], source: str) -> None:
        """Make the group smaller until no damaged copy is in it."""
        while (group := await self._group(source)).keys() & set(damaged):
            fewer = len(group) - 1
            self._say(f"{fewer} of {len(group)} copies stay")
            await self._bucket.change(replicas=fewer)
            await self._settle(fewer)

    async def _grow(self, replicas: int) -> None:
        """Have as many copies as before, as soon as there are servers for them."""
        async with self._in_time("there is no server for another copy"):
            while True:
                try:
                    await self._bucket.change(replicas=replicas)
                    break
                except (SetupError, InsufficientStorageError):
                    await asyncio.sleep(_PROVE_AGAIN)
        await self._settle(replicas)

    async def _group(self, source: str) -> dict[str, bool]:
        """The servers of the group, and whether each is there, as long as `source` leads."""
        info = await self._bucket.info()
        if info.cluster is None or info.cluster.leader != source:
            raise UnavailableError("another copy leads now, so nothing more was changed; run it again")
        return nodes_of(info)

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
        async with self._in_time(f"the bucket has not {replicas} current copies"):
            while not _is_settled(await self._bucket.info(), replicas):  # noqa: ASYNC110 - servers decide
                await asyncio.sleep(_LOOK_AGAIN)

    @asynccontextmanager
    async def _in_time(self, missing: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._patience):
                yield
        except TimeoutError:
            raise DeadlineError(
                f"{missing} after {self._patience:g} s. Every blob is whole on the leader; see `natsblob "
                "bucket info`, set the number of replicas back if it is smaller, and verify again"
            ) from None


def _is_settled(info: StreamInfo, replicas: int) -> bool:
    if info.cluster is None or not info.cluster.leader:
        return False
    followers = info.cluster.replicas
    return len(followers) == replicas - 1 and all(peer.current for peer in followers)


def _source(found: Comparison) -> str:
    """The copy to repair from, the leader's if it is whole; an error if there is none."""
    unread = [node.name for node in found.nodes if not node.read]
    if unread:
        raise UnavailableError(
            f"the copy of {_named(unread)} cannot be read, so it cannot be judged; nothing was changed. "
            "Start that server first"
        )
    whole = [node for node in found.nodes if node.is_good]
    if whole:
        return next((node for node in whole if node.leader), whole[0]).name
    raise BlobCorruptError(
        "no single copy has every blob, though each blob is whole somewhere; nothing was changed. Get "
        f"{_named([one.name for one in found.damage])}, remove and put them again, then repair"
    )


def _named(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
