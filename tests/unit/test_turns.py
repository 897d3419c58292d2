"""Turns at reading back: one client after the other, whatever they ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import pytest

from natsblob.errors import BusyError
from natsblob.objectstore.turns import MAX_READERS, READ_BACK_AT_ONCE, Asker, Places, Turns, on_behalf_of


class Source:
    """Items without end, or `count` of them; each waits for a round of the event loop."""

    def __init__(self, count: int | None = None) -> None:
        self._count = count
        self.read = 0
        self.read_some = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[int]:
        while self._count is None or self.read < self._count:
            await asyncio.sleep(0)
            self.read += 1
            if self.read >= 50:
                self.read_some.set()
            yield self.read


async def read(turns: Turns, client: str, source: Source, *, count: int = 10**6, each: int = 4) -> int:
    with on_behalf_of(Asker(client)):
        async with aclosing(turns.share(aiter(source), count=count, each=each)) as items:
            return len([item async for item in items])


async def cancelled(tasks: list[asyncio.Task[int]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_everything_is_read_in_order() -> None:
    turns = Turns()
    with on_behalf_of(Asker("one")):
        async with aclosing(turns.share(aiter(Source(10)), count=10, each=3)) as items:
            assert [item async for item in items] == list(range(1, 11))


async def test_what_never_ends_holds_up_nobody() -> None:
    turns = Turns()
    endless = [asyncio.create_task(read(turns, f"c{number % 3}", Source())) for number in range(20)]
    await asyncio.sleep(0)
    try:
        assert await asyncio.wait_for(read(turns, "honest", Source(20), count=20), 10) == 20
    finally:
        await cancelled(endless)


async def test_a_client_with_many_uploads_gets_no_more_than_one_with_a_single_one() -> None:
    turns = Turns(places=1)
    crowd = [Source() for _ in range(20)]
    tasks = [asyncio.create_task(read(turns, "crowd", source)) for source in crowd]
    await asyncio.sleep(0)
    try:
        assert await read(turns, "single", Source(200), count=200) == 200
        assert sum(source.read for source in crowd) <= 200 + 2 * 4
    finally:
        await cancelled(tasks)


async def test_at_most_so_many_are_read_at_a_time() -> None:
    turns = Turns()
    now = most = 0

    async def counted() -> AsyncIterator[int]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        yield 1

    async def once(number: int) -> None:
        with on_behalf_of(Asker(f"c{number}")):
            async with aclosing(turns.share(counted(), count=1, each=1)) as items:
                assert [item async for item in items] == [1]

    await asyncio.gather(*(once(number) for number in range(30)))
    assert most == READ_BACK_AT_ONCE


async def test_a_small_upload_takes_the_place_of_one_that_has_read_more() -> None:
    turns = Turns()
    sources = [Source() for _ in range(MAX_READERS)]
    tasks = [asyncio.create_task(read(turns, f"c{number}", one)) for number, one in enumerate(sources)]
    for source in sources:
        await source.read_some.wait()
    try:
        with pytest.raises(BusyError):
            await read(turns, "large", Source(10**6))
        assert await read(turns, "small", Source(20), count=20) == 20
        ended = [task for task in tasks if task.done()]
        assert len(ended) == 1
        assert isinstance(ended[0].exception(), BusyError)
    finally:
        await cancelled(tasks)


async def test_cancelled_at_any_moment_gives_its_place_back() -> None:
    for rounds in range(40):
        turns = Turns(places=2)
        tasks = [asyncio.create_task(read(turns, f"c{number}", Source(), each=2)) for number in range(6)]
        for _ in range(rounds):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await cancelled(tasks)
        assert await asyncio.wait_for(read(turns, "next", Source(9), count=9), 10) == 9
        with suppress(BusyError):
            await asyncio.gather(read(turns, "a", Source(9), count=9), read(turns, "b", Source(9), count=9))


async def test_a_consumer_that_stops_gives_its_place_back() -> None:
    turns = Turns(places=1)
    async with aclosing(turns.share(aiter(Source()), count=10, each=5)) as items:
        async for _ in items:
            break
    assert await asyncio.wait_for(read(turns, "next", Source(9), count=9), 10) == 9


async def test_the_time_that_reading_takes_is_allowed() -> None:
    allowed: list[float] = []
    turns = Turns()
    with on_behalf_of(Asker("one", allowed.append)):
        async with aclosing(turns.share(aiter(Source(9)), count=9, each=3)) as items:
            _ = [item async for item in items]
    assert len(allowed) == 3
    assert min(allowed) >= 0


async def test_places_go_round_by_client() -> None:
    places = Places(1)
    order: list[str] = []

    async def once(client: str) -> None:
        async with places.place(client):
            await asyncio.sleep(0)
            order.append(client)

    await asyncio.gather(*(once("crowd") for _ in range(20)), once("single"))
    assert order.index("single") <= 2
