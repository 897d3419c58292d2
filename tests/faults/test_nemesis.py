"""The shortest telling run of the nemesis, and that its parts can be trusted; `make faults` runs it all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from natsblob.broker.embedded import LOOPBACK
from tests.faults.nemesis.__main__ import run_apart
from tests.faults.nemesis.catalogue import SCENARIOS
from tests.faults.nemesis.checker import Verdict, Window, check
from tests.faults.nemesis.history import (
    CANCELLED,
    NOT_FOUND,
    OK,
    UNANSWERED,
    WRONG,
    Kind,
    Operation,
    Recorder,
    Tail,
    content,
)
from tests.faults.nemesis.network import Link

WINDOW = Window(begins=10.0, ends=20.0)


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["short", "power-r1", "power-control-r1"])
def test_nothing_acknowledged_is_lost_where_it_must_not_be(name: str) -> None:
    scenario = next(one for one in SCENARIOS if one.name == name)
    if scenario.lacks:
        pytest.skip(scenario.lacks)
    report = run_apart(scenario, seed=1)
    assert not report.violations, report
    assert report.acknowledged
    assert bool(report.lost) == scenario.loses


# The checker has to find what is planted, and nothing in a history that is good.


def made(kind: Kind, outcome: str, *, began: float = 1.0, ended: float = 2.0, blob: str = "b") -> Operation:
    name = f"{kind}-{outcome}-{began}"
    return Operation(id=name, kind=kind, blob=blob, size=5, began=began, ended=ended, outcome=outcome)


GOOD = [
    made("put", "unavailable", blob="refused"),
    made("put", "timeout", blob="unknown"),
    made("put", CANCELLED, blob="cancelled"),
    made("get", NOT_FOUND, began=1.5),
    made("put", OK),
    made("put", OK, began=3.0, ended=4.0),
    made("get", OK, began=3.0, ended=4.0),
    made("has", OK, began=3.0, ended=4.0),
    made("get", "unavailable", began=12.0, ended=18.0),
    made("get", NOT_FOUND, blob="absent", began=12.0, ended=13.0),
]
LEFT = {"b": OK, "refused": NOT_FOUND, "unknown": OK, "cancelled": NOT_FOUND}


def test_a_good_history_is_passed() -> None:
    verdict = check(GOOD, LEFT, WINDOW)
    assert verdict.complaints() == {}
    assert (verdict.operations, verdict.acknowledged, verdict.slowest) == (len(GOOD), 2, 6.0)


@pytest.mark.parametrize(
    ("planted", "left", "complaint"),
    [
        (None, {"b": NOT_FOUND}, "lost"),
        (None, {"b": "blob_corrupt"}, "lost"),
        (None, {"b": "unavailable"}, "lost"),
        (None, {"b": WRONG}, "wrong"),
        (made("put", OK, blob="never read back"), {}, "lost"),
        (made("get", WRONG, began=5.0), {}, "wrong"),
        (made("get", NOT_FOUND, began=5.0), {}, "false_missing"),
        (made("has", NOT_FOUND, began=5.0), {}, "false_missing"),
        (made("get", UNANSWERED, began=5.0), {}, "unanswered"),
        (made("get", "", began=5.0), {}, "unanswered"),
        (made("get", "internal", began=5.0), {}, "unexplained"),
        (made("get", "blob_corrupt", began=5.0), {}, "unexplained"),
        (made("put", NOT_FOUND, began=5.0), {}, "unexplained"),
        (made("put", "insufficient_storage", began=5.0), {}, "unexplained"),
        (None, {"refused": "blob_corrupt"}, "half_visible"),
        (None, {"cancelled": WRONG}, "half_visible"),
    ],
)
def test_a_planted_fault_is_found(planted: Operation | None, left: dict[str, str], complaint: str) -> None:
    history = [*GOOD, planted] if planted else GOOD
    assert complaint in check(history, {**LEFT, **left}, WINDOW).complaints()


def test_what_a_scenario_explains_is_no_complaint() -> None:
    history = [*GOOD, made("put", "insufficient_storage", blob="refused"), made("get", NOT_FOUND, began=5.0)]
    explained = ["unavailable", "timeout", "insufficient_storage"]
    assert check(history, LEFT, WINDOW, explained=explained, trusts_absence=False).complaints() == {}


def test_where_nothing_may_fail_every_error_is_a_complaint() -> None:
    assert len(check(GOOD, LEFT, WINDOW, explained=()).unexplained) == 3


@pytest.mark.parametrize(
    ("ends", "gap"),
    [
        ([1.0, 2.0, 11.0, 12.0, 30.0], 18.0),
        ([1.0, 9.5, 10.5, 19.0, 21.0, 90.0], 8.5),
        ([1.0, 40.0], 39.0),
        ([], 10.0),
    ],
)
def test_the_longest_gap_is_one_that_overlaps_the_faults(ends: list[float], gap: float) -> None:
    history = [made("put", OK, began=0.5, ended=end) for end in ends]
    verdict: Verdict = check(history, LEFT, WINDOW)
    assert verdict.no_put == gap


def test_a_history_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "history")
    assert tail.ended() == []
    recorder = Recorder(tmp_path / "history", client=3)
    first, second = recorder.begin("put", "a", 1), recorder.begin("get", "b", 2)
    assert tail.ended() == []
    recorder.end(second, OK)
    recorder.close()
    assert [one.id for one in tail.ended()] == [second.id]
    assert [one.id for one in tail.unfinished] == [first.id]
    with (tmp_path / "history").open("ab") as file:
        file.write(b'{"id": "half a li')
    assert tail.ended() == []


def test_content_follows_from_the_name_alone() -> None:
    assert content("a", 1000) == content("a", 1000) != content("b", 1000)


# The proxy.


@pytest_asyncio.fixture
async def link() -> AsyncIterator[Link]:
    """A proxy before a server that sends everything back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, LOOPBACK, 0)
    async with server, Link((LOOPBACK, server.sockets[0].getsockname()[1])) as link:
        yield link


async def test_a_link_carries_bytes_both_ways(link: Link) -> None:
    reader, writer = await asyncio.open_connection(LOOPBACK, link.port)
    data = content("x", 1_000_000)
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    writer.close()


@pytest.mark.parametrize("direction", ["there", "back"])
async def test_what_is_cut_is_held_and_comes_after_healing(link: Link, direction: str) -> None:
    reader, writer = await asyncio.open_connection(LOOPBACK, link.port)
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    link.cut(there=direction == "there", back=direction == "back")
    writer.write(b"during")
    held = asyncio.create_task(reader.readexactly(6))
    done, _ = await asyncio.wait({held}, timeout=0.2)
    assert not done
    link.heal()
    assert await held == b"during"
    writer.close()


@pytest.mark.parametrize(
    "harm", [lambda link: link.tear(1000), lambda link: link.reset()], ids=["tear", "reset"]
)
async def test_a_torn_connection_ends_with_an_error(link: Link, harm: Callable[[Link], None]) -> None:
    reader, writer = await asyncio.open_connection(LOOPBACK, link.port)
    writer.write(b"before")
    await reader.readexactly(6)
    harm(link)
    writer.write(content("x", 50_000))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(50_000)
    writer.close()
    reader, writer = await asyncio.open_connection(LOOPBACK, link.port)
    writer.write(b"after")
    assert await reader.readexactly(5) == b"after"
    writer.close()
