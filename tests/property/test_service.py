"""Any blob, put in any way and asked for in any range or window, comes back as it was."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.payloads import BOUNDARIES, pattern
from tests.integration.raw import CHUNK, Raw, pieces, service

SIZES = st.sampled_from([size(CHUNK) for size in BOUNDARIES.values()]) | st.integers(0, 6 * CHUNK)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """One loop for the service and for every example, which hypothesis runs outside of any."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", params=["jetstream", "memory"])
def raw(server: EmbeddedServer, loop: asyncio.Runner, request: pytest.FixtureRequest) -> Iterator[Raw]:
    serving = service(server.url, backend=request.param)
    yield loop.run(serving.__aenter__())
    loop.run(serving.__aexit__(None, None, None))


async def stored(raw: Raw, data: bytes, order: list[int] | None) -> str:
    """Put in one message, or as an upload whose chunks are published in this order."""
    if order is None:
        return await raw.put(data)
    chunks = pieces(data)
    upload = await raw.open()
    wanted = [index for index in dict.fromkeys(order) if index < len(chunks)]
    wanted += [index for index in range(len(chunks)) if index not in wanted]
    await asyncio.gather(*(upload.send(index, chunks[index]) for index in wanted))
    return str((await upload.commit()).json["digest"])


@QUICK
@given(size=SIZES, order=st.none() | st.lists(st.integers(0, 8), max_size=8), seed=st.uuids())
@example(size=0, order=[], seed=None)
def test_what_goes_in_comes_out(
    raw: Raw, loop: asyncio.Runner, size: int, order: list[int] | None, seed: object
) -> None:
    data = pattern(size, str(seed))

    async def check() -> None:
        digest = await stored(raw, data, order)
        assert digest == hashlib.sha256(data).hexdigest()
        assert (await raw.ask("get", digest.encode())).data == data
        info = (await raw.ask("stat", digest.encode())).json
        assert (info["size"], info["chunks"]) == (size, -(-size // CHUNK))
        assert (await raw.ask("has", digest.encode())).json["size"] == size

    loop.run(check())


@QUICK
@given(size=SIZES, offset=st.integers(0, 7 * CHUNK), length=st.none() | st.integers(0, 7 * CHUNK))
def test_every_range(raw: Raw, loop: asyncio.Runner, size: int, offset: int, length: int | None) -> None:
    data = pattern(size)

    async def check() -> None:
        digest = await raw.put(data)
        reply = await raw.ask("get", {"digest": digest, "offset": offset, "length": length})
        if offset > size:
            assert reply.error["name"] == "bad_range"
        else:
            assert reply.data == data[offset : None if length is None else offset + length]

    loop.run(check())


@QUICK
@given(size=SIZES, first=st.integers(0, 7), count=st.integers(1, 9), verify=st.booleans())
def test_every_window(
    raw: Raw, loop: asyncio.Runner, size: int, first: int, count: int, verify: bool
) -> None:
    data = pattern(size)
    chunks = pieces(data)

    async def check() -> None:
        digest = await raw.put(data)
        if chunks and first >= len(chunks):
            assert (await raw.frames(digest, first, count, verify=verify))[0].error["name"] == "bad_range"
        else:
            expected = dict(enumerate(chunks[first : first + count], start=first))
            assert await raw.window(digest, first, count, verify=verify) == expected

    loop.run(check())
