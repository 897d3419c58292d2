"""More than a worker takes on is refused at once and can be asked for again; the rest is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from natsblob.broker.embedded import EmbeddedServer
from natsblob.config.model import MIB
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import pattern
from natsblob.wire import Info
from tests.integration.raw import Answer, Raw, service


@pytest.fixture
async def held(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Event]:
    """Holds every put in the store until it is set."""
    release = asyncio.Event()
    put = JetStreamStore.put

    async def slow(*args: object, **named: object) -> Info:
        await release.wait()
        return await put(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(JetStreamStore, "put", slow)
    yield release
    release.set()


def outcomes(answers: list[Answer]) -> tuple[int, list[Answer]]:
    """How many were served, and the refusals."""
    refused = [answer for answer in answers if answer.code]
    for answer in refused:
        assert answer.error["name"] == "busy"
        assert answer.error["retryable"]
        assert answer.error["details"]["retry_after_ms"] > 0
    return len(answers) - len(refused), refused


async def putting(raw: Raw, blobs: list[bytes], held: asyncio.Event) -> tuple[int, list[Answer]]:
    """Put all at once; those that are not refused go on once all the others were."""
    tasks = [asyncio.create_task(raw.ask("put", blob)) for blob in blobs]
    await raw.figures()  # comes behind the puts, so they have been taken or refused
    held.set()
    return outcomes(await asyncio.gather(*tasks))


async def test_requests_beyond_the_limit(server: EmbeddedServer, held: asyncio.Event) -> None:
    async with service(server.url, max_requests=4) as raw:
        served, refused = await putting(raw, [pattern(10, str(n)) for n in range(12)], held)
        assert (served, len(refused)) == (4, 8)
        assert (await raw.figures())["refusals"] == 8
        await raw.still_answers()


async def test_bytes_beyond_the_limit(server: EmbeddedServer, held: asyncio.Event) -> None:
    async with service(server.url, max_bytes=MIB) as raw:
        blobs = [pattern(300_000, str(n)) for n in range(6)]
        served, refused = await putting(raw, blobs, held)
        assert (served, len(refused)) == (3, 3)
        assert (await raw.figures())["bytes_in_flight"] == 0
        await raw.still_answers()


async def test_many_small_reads_are_no_load(server: EmbeddedServer) -> None:
    async with service(server.url, chunk_size=512 * 1024) as raw:
        digest = await raw.put(b"small")
        answers = await asyncio.gather(*(raw.ask("get", digest.encode()) for _ in range(250)))
        assert {answer.data for answer in answers} == {b"small"}


async def test_figures_return_to_nothing(server: EmbeddedServer) -> None:
    async with service(server.url) as raw:
        digest = await raw.put(pattern(50_000))
        bodies = [digest.encode(), b"bad", {"digest": digest, "offset": 10**9}, {"digest": "0" * 64}]
        await asyncio.gather(*(raw.ask("get", body) for body in bodies * 10))
        await raw.frames(digest, 0, 7, verify=True)
        figures = await raw.figures()
        assert (figures["requests_in_flight"], figures["bytes_in_flight"]) == (0, 0)


async def test_a_deadline_answers_and_a_repeat_succeeds(server: EmbeddedServer, held: asyncio.Event) -> None:
    async with service(server.url, request_timeout=0.2) as raw:
        error = (await raw.ask("put", b"late")).error
        assert (error["name"], error["retryable"]) == ("timeout", True)
        held.set()
        assert (await raw.ask("put", b"late")).code == 0
