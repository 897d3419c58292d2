"""A host with several addresses is reached by whichever of them answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from natsblob.broker import dial as dialling
from natsblob.broker.dial import dial


@pytest.fixture
def dead() -> Iterator[tuple[str, int]]:
    """An address that takes no connection and refuses none."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)  # noqa: FBT003
            one.connect_ex(full.getsockname())
        yield full.getsockname()
        for one in waiting:
            one.close()


@pytest.fixture
def alive() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()


@pytest.fixture
def refusing() -> tuple[str, int]:
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        return ("127.0.0.1", gone.getsockname()[1])


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    async def getaddrinfo(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


async def test_a_silent_address_does_not_hide_the_next(
    monkeypatch: pytest.MonkeyPatch, dead: tuple[str, int], alive: tuple[str, int]
) -> None:
    resolve(monkeypatch, dead, dead, alive)
    with await dial("host", 1) as connected:
        assert connected.getpeername() == alive


async def test_a_refusing_address_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, refusing: tuple[str, int], alive: tuple[str, int]
) -> None:
    monkeypatch.setattr(dialling, "STAGGER", 3600)
    resolve(monkeypatch, refusing, alive)
    with await dial("host", 1) as connected:
        assert connected.getpeername() == alive


async def test_nobody_to_reach(monkeypatch: pytest.MonkeyPatch, refusing: tuple[str, int]) -> None:
    resolve(monkeypatch, refusing, refusing)
    with pytest.raises(OSError):
        await dial("host", 1)
    resolve(monkeypatch)
    with pytest.raises(OSError):
        await dial("host", 1)


async def test_giving_up_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, dead: tuple[str, int]
) -> None:
    resolve(monkeypatch, dead, dead)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await dial("host", 1)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_families_take_turns() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    found = [(family, 1, 6, "", number) for number, family in enumerate([six, six, six, four])]
    assert dialling._families_in_turn(found) == [(six, 0), (four, 3), (six, 1), (six, 2)]
