"""What every store has to do, as tests: a backend or a wrapper proves itself by subclassing a suite.

    class TestMyStore(StoreConformance):
        @pytest.fixture
        async def store(self) -> AsyncIterator[Store]:
            yield MyStore()

The suite sees nothing but the protocol in `natsblob.store.base`. It is written for pytest with a plugin
that runs async tests and fixtures (pytest-asyncio in auto mode). Sizes follow `store.chunk_size`; a
small one, a few KiB, keeps the suite fast.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from natsblob import chunking
from natsblob.digest import Digest
from natsblob.errors import BlobError, BlobNotFoundError, DigestMismatchError
from natsblob.store.base import Store
from natsblob.testing.payloads import BOUNDARIES, Golden, HangingSource, cut, pattern, source
from natsblob.wire import Info

DEADLINE = 30.0
"""Seconds that any one step of the suite may take; a store that hangs fails instead."""

T = TypeVar("T")

boundaries = pytest.mark.parametrize("boundary", BOUNDARIES)


async def read(store: Store, digest: Digest, first: int = 0, count: int | None = None) -> list[bytes]:
    """The chunks, verified."""
    return [chunk async for chunk in store.chunks(digest, first, count)]


class SourceFailedError(Exception):
    """What a source of the suite fails with."""


def facts(info: Info) -> tuple[Digest, int, int, int]:
    """What every verb has to say alike of a blob."""
    return info.digest, info.size, info.chunks, info.chunk_size


def bounded(suite: type[T]) -> type[T]:
    """Give every test of a suite a deadline."""

    def within(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        @functools.wraps(test)
        async def run(*arguments: Any, **named: Any) -> None:
            async with asyncio.timeout(DEADLINE):
                await test(*arguments, **named)

        return run

    for name, member in list(vars(suite).items()):
        if name.startswith("test_"):
            setattr(suite, name, within(member))
    return suite


@bounded
class StoreConformance:
    """Subclass this with a fixture `store` that yields an empty store and ends it."""

    async def reopen(self, store: Store) -> Store:
        """Another handle to the same blobs, such as another worker has; a store without any has itself.

        The suite does not end the handle: let it go with the `store` fixture.
        """
        return store

    def held(self, store: Store) -> int:  # noqa: ARG002 - for subclasses
        """How much that can leak is in use: tasks, and what a subclass adds (files, subscriptions)."""
        return len(asyncio.all_tasks())

    # Put and get

    @boundaries
    async def test_what_was_put_is_read_back(self, store: Store, boundary: str) -> None:
        data = pattern(BOUNDARIES[boundary](store.chunk_size))
        info = await store.put(source(data))
        assert info.created
        assert info.digest == Digest(hashlib.sha256(data).digest())
        assert info.size == len(data)
        assert info.chunks == chunking.count(len(data), info.chunk_size)
        assert await read(store, info.digest) == list(cut(data, info.chunk_size))

    @boundaries
    async def test_verification_changes_no_bytes(self, store: Store, boundary: str) -> None:
        data = pattern(BOUNDARIES[boundary](store.chunk_size))
        info = await store.put(source(data))
        unverified = [chunk async for chunk in store.chunks(info.digest, verify=False)]
        assert unverified == await read(store, info.digest)

    @pytest.mark.parametrize("piece", ["chunk//7", "chunk-1", "chunk", "chunk+1", "3*chunk", "whole"])
    async def test_a_source_may_be_cut_anywhere(self, store: Store, piece: str) -> None:
        chunk = store.chunk_size
        data = pattern(4 * chunk + 5)
        sizes = {"chunk//7": max(1, chunk // 7), "chunk-1": max(1, chunk - 1), "chunk": chunk}
        sizes |= {"chunk+1": chunk + 1, "3*chunk": 3 * chunk, "whole": len(data)}
        info = await store.put(source(*cut(data, sizes[piece])))
        assert info.digest == Digest.of(data)
        assert b"".join(await read(store, info.digest)) == data

    async def test_a_source_may_be_cut_into_bytes_and_into_nothing(self, store: Store) -> None:
        data = pattern(300)
        pieces = [part for byte in cut(data, 1) for part in (b"", byte, b"")]
        info = await store.put(source(*pieces))
        assert info.digest == Digest.of(data)
        assert b"".join(await read(store, info.digest)) == data

    @pytest.mark.parametrize("pieces", [(), (b"",), (b"", b"")])
    async def test_no_bytes_are_a_blob_too(self, store: Store, pieces: tuple[bytes, ...]) -> None:
        info = await store.put(source(*pieces))
        assert (info.digest, info.size, info.chunks) == (Digest.of(b""), 0, 0)
        assert await read(store, info.digest) == []
        assert await store.missing([info.digest]) == []

    async def test_a_second_put_changes_nothing(self, store: Store) -> None:
        data = pattern(2 * store.chunk_size + 1)
        first = await store.put(source(data))
        second = await store.put(source(*cut(data, 1 + store.chunk_size // 2)))
        assert (first.created, second.created) == (True, False)
        assert (second.digest, second.size) == (first.digest, first.size)
        assert b"".join(await read(store, first.digest)) == data
        assert len((await store.list()).blobs) == 1

    async def test_of_concurrent_puts_of_the_same_bytes_one_creates(self, store: Store) -> None:
        data = pattern(3 * store.chunk_size + 1)
        infos = await asyncio.gather(*(store.put(source(*cut(data, 1000 + n))) for n in range(8)))
        assert {info.digest for info in infos} == {Digest.of(data)}
        assert sum(info.created for info in infos) == 1
        assert b"".join(await read(store, infos[0].digest)) == data

    async def test_concurrent_puts_of_different_bytes_do_not_mix(self, store: Store) -> None:
        blobs = [pattern(2 * store.chunk_size + n, f"mix {n}") for n in range(8)]
        infos = await asyncio.gather(*(store.put(source(*cut(data, 777))) for data in blobs))
        for data, info in zip(blobs, infos, strict=True):
            assert b"".join(await read(store, info.digest)) == data

    async def test_what_is_acknowledged_is_seen_through_another_handle(self, store: Store) -> None:
        data = pattern(2 * store.chunk_size + 1)
        info = await store.put(source(data))
        other = await self.reopen(store)
        assert await other.missing([info.digest]) == []
        assert (await other.stat(info.digest)).size == len(data)
        assert b"".join(await read(other, info.digest)) == data
        assert not (await other.put(source(data))).created

    # Puts that must store nothing

    @boundaries
    async def test_a_declared_digest_that_is_right_is_accepted(self, store: Store, boundary: str) -> None:
        data = pattern(BOUNDARIES[boundary](store.chunk_size))
        info = await store.put(source(data), expected=Digest.of(data))
        assert info.created
        assert not (await store.put(source(data), expected=Digest.of(data))).created

    @boundaries
    async def test_a_declared_digest_that_is_wrong_stores_nothing(self, store: Store, boundary: str) -> None:
        data, other = pattern(BOUNDARIES[boundary](store.chunk_size)), Digest.of(b"something else")
        with pytest.raises(DigestMismatchError):
            await store.put(source(data), expected=other)
        await self.assert_absent(store, Digest.of(data), other)
        assert (await store.put(source(data), expected=Digest.of(data))).created

    async def test_a_declared_digest_of_another_stored_blob_is_still_wrong(self, store: Store) -> None:
        stored = await store.put(source(b"stored"))
        with pytest.raises(DigestMismatchError):
            await store.put(source(b"not the same"), expected=stored.digest)
        assert await read(store, stored.digest) == [b"stored"]
        await self.assert_absent(store, Digest.of(b"not the same"))

    async def test_a_wrong_declaration_does_not_harm_the_blob_that_is_there(self, store: Store) -> None:
        data = pattern(store.chunk_size + 1)
        info = await store.put(source(data))
        with pytest.raises(DigestMismatchError):
            await store.put(source(data), expected=Digest.of(b"something else"))
        assert b"".join(await read(store, info.digest)) == data

    @pytest.mark.parametrize("step", range(5))
    async def test_a_source_that_fails_stores_nothing(self, store: Store, step: int) -> None:
        pieces = list(cut(pattern(4 * store.chunk_size), store.chunk_size))
        failure = SourceFailedError()

        async def failing() -> AsyncIterator[bytes]:
            for piece in pieces[:step]:
                yield piece
            raise failure

        with pytest.raises(SourceFailedError) as caught:
            await store.put(failing())
        assert caught.value is failure
        await self.assert_absent(store, Digest.of(b"".join(pieces[:step])), Digest.of(b"".join(pieces)))
        assert (await store.put(source(*pieces))).created

    # Cancellation

    @pytest.mark.parametrize("step", range(5))
    async def test_a_put_cancelled_while_it_waits_for_its_source(self, store: Store, step: int) -> None:
        pieces = list(cut(pattern(4 * store.chunk_size), store.chunk_size))
        hanging = HangingSource(*pieces[:step])
        before = self.held(store)
        put = asyncio.create_task(store.put(hanging))
        await hanging.reached.wait()
        await asyncio.sleep(0)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        await self.assert_absent(store, Digest.of(b"".join(pieces[:step])), Digest.of(b"".join(pieces)))
        await self.assert_let_go(store, before)
        assert (await store.put(source(*pieces))).created

    async def test_a_put_cancelled_anywhere_is_all_or_nothing(self, store: Store) -> None:
        before = self.held(store)
        for turns in (*range(24), 30, 40, 60, 100, 200, 400):
            data = pattern(2 * store.chunk_size + 1, f"cancelled after {turns}")
            put = asyncio.create_task(store.put(source(*cut(data, store.chunk_size))))
            for _ in range(turns):
                await asyncio.sleep(0)
            put.cancel()
            with suppress(asyncio.CancelledError):
                await put
            with suppress(BlobNotFoundError):
                assert b"".join(await read(store, Digest.of(data))) == data
            await store.put(source(data), expected=Digest.of(data))
            assert b"".join(await read(store, Digest.of(data))) == data
        await self.assert_let_go(store, before)

    async def test_a_read_cancelled_anywhere_leaves_the_blob_readable(self, store: Store) -> None:
        data = pattern(5 * store.chunk_size)
        info = await store.put(source(data))
        before = self.held(store)
        for turns in (*range(24), 30, 40, 60, 100):
            reading = asyncio.create_task(read(store, info.digest))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
        assert b"".join(await read(store, info.digest)) == data
        await self.assert_let_go(store, before)

    async def test_an_iterator_closed_early_leaves_nothing(self, store: Store) -> None:
        data = pattern(5 * store.chunk_size)
        info = await store.put(source(data))
        before = self.held(store)
        for _ in range(20):
            chunks = store.chunks(info.digest)
            assert await anext(chunks) == data[: info.chunk_size]
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
            del chunks
        await self.assert_let_go(store, before)

    # Stat and missing

    @boundaries
    async def test_stat_says_what_put_said(self, store: Store, boundary: str) -> None:
        put = await store.put(source(pattern(BOUNDARIES[boundary](store.chunk_size))))
        stat = await store.stat(put.digest)
        assert not stat.created
        assert facts(stat) == facts(put)
        held = await store.held(put.digest)
        assert held is not None
        assert facts(held) == facts(put)
        assert stat.modified is None or stat.modified.tzinfo is not None

    async def test_missing_keeps_order_and_duplicates(self, store: Store) -> None:
        here = [(await store.put(source(name))).digest for name in (b"a", b"b")]
        gone = [Digest.of(name) for name in (b"z", b"x", b"y")]
        asked = [gone[0], here[0], gone[1], gone[0], here[1], gone[2], here[0], gone[1]]
        assert await store.missing(asked) == [gone[0], gone[1], gone[0], gone[2], gone[1]]
        assert await store.missing(here) == []
        assert await store.missing([]) == []

    async def test_what_is_not_there_is_not_found(self, store: Store) -> None:
        await store.put(source(b"another"))
        unknown = Digest.of(b"unknown")
        with pytest.raises(BlobNotFoundError):
            await store.stat(unknown)
        with pytest.raises(BlobNotFoundError):
            await anext(store.chunks(unknown))
        with pytest.raises(BlobNotFoundError):
            await anext(store.chunks(unknown, 7, 1, verify=False))
        with pytest.raises(BlobNotFoundError):
            await store.delete(unknown)
        assert await store.held(unknown) is None
        assert await store.missing([unknown]) == [unknown]

    # Windows of chunks

    async def test_windows_of_chunks(self, store: Store) -> None:
        data = pattern(4 * store.chunk_size + 3)
        info = await store.put(source(data))
        chunks = list(cut(data, info.chunk_size))
        for first in range(len(chunks) + 2):
            for count in (None, 0, 1, 2, len(chunks), 1000):
                end = None if count is None else first + count
                assert await read(store, info.digest, first, count) == chunks[first:end]

    async def test_a_blob_is_read_by_many_at_once(self, store: Store) -> None:
        data = pattern(4 * store.chunk_size + 3)
        info = await store.put(source(data))
        for chunks in await asyncio.gather(*(read(store, info.digest) for _ in range(16))):
            assert b"".join(chunks) == data

    # List

    async def test_an_empty_store_lists_nothing(self, store: Store) -> None:
        page = await store.list()
        assert (page.blobs, page.after) == ([], None)

    async def test_a_list_is_in_order_and_says_what_stat_says(self, store: Store) -> None:
        digests = await self.put_many(store, 20)
        page = await store.list()
        assert [info.digest for info in page.blobs] == digests
        assert page.after is None
        for info in page.blobs:
            assert facts(info) == facts(await store.stat(info.digest))

    @pytest.mark.parametrize("limit", [1, 2, 7, 19, 20, 21])
    async def test_pages_join_without_gap_or_repeat(self, store: Store, limit: int) -> None:
        digests = await self.put_many(store, 20)
        seen: list[Digest] = []
        page = await store.list(limit=limit)
        while True:
            assert len(page.blobs) <= limit
            seen += [info.digest for info in page.blobs]
            if page.after is None:
                break
            assert len(page.blobs) == limit
            page = await store.list(after=page.after, limit=limit)
        assert seen == digests

    async def test_a_list_begins_behind_any_digest(self, store: Store) -> None:
        digests = await self.put_many(store, 20)
        absent = [Digest.of(f"absent {n}".encode()) for n in range(8)]
        for after in (*digests, *absent, Digest(bytes(32)), Digest(b"\xff" * 32)):
            page = await store.list(after=after)
            assert [info.digest for info in page.blobs] == [digest for digest in digests if digest > after]

    async def test_a_list_by_prefix(self, store: Store) -> None:
        digests = await self.put_many(store, 40)
        chosen = digests[13].hex
        for prefix in ("", *"0123456789abcdef", chosen[:2], chosen[:3], chosen[:4], chosen[:5], chosen):
            wanted = [digest for digest in digests if digest.hex.startswith(prefix)]
            assert [info.digest for info in (await store.list(prefix=prefix)).blobs] == wanted
            for after in (digests[0], digests[13], digests[20]):
                page = await store.list(prefix=prefix, after=after, limit=3)
                assert [info.digest for info in page.blobs] == [d for d in wanted if d > after][:3]

    # Delete

    @boundaries
    async def test_what_is_deleted_is_gone_and_can_come_back(self, store: Store, boundary: str) -> None:
        data = pattern(BOUNDARIES[boundary](store.chunk_size))
        kept = await store.put(source(b"kept"))
        put = await store.put(source(data))
        assert facts(await store.delete(put.digest)) == facts(put)
        await self.assert_absent(store, put.digest)
        with pytest.raises(BlobNotFoundError):
            await store.delete(put.digest)
        assert (await store.put(source(data))).created
        assert b"".join(await read(store, put.digest)) == data
        assert await read(store, kept.digest) == [b"kept"]

    async def test_a_blob_deleted_under_its_reader_is_never_read_wrong(self, store: Store) -> None:
        data = pattern(6 * store.chunk_size + 1)
        info = await store.put(source(data))
        received: list[bytes] = []
        try:
            async for chunk in store.chunks(info.digest):
                received.append(chunk)
                if len(received) == 1:
                    await store.delete(info.digest)
        except BlobError:
            assert b"".join(received) == data[: len(received) * info.chunk_size]
        else:
            assert b"".join(received) == data

    # What the tests say more than once

    async def put_many(self, store: Store, count: int) -> list[Digest]:
        """Store `count` small blobs and return their digests in ascending order."""
        infos = [await store.put(source(f"blob {n}".encode())) for n in range(count)]
        return sorted(info.digest for info in infos)

    async def assert_absent(self, store: Store, *digests: Digest) -> None:
        """No verb of the store knows the digests."""
        assert await store.missing(digests) == list(digests)
        assert [await store.held(digest) for digest in digests] == [None] * len(digests)
        listed = {info.digest for info in (await store.list()).blobs}
        assert listed.isdisjoint(digests)
        for digest in digests:
            with pytest.raises(BlobNotFoundError):
                await store.stat(digest)
            with pytest.raises(BlobNotFoundError):
                await anext(store.chunks(digest))

    async def assert_let_go(self, store: Store, before: int) -> None:
        """Whatever was held is let go; a store may take a moment for it."""
        gc.collect()
        while self.held(store) > before:  # noqa: ASYNC110 - what is let go last, a thread, sets no event
            await asyncio.sleep(0.01)


@bounded
class GoldenConformance:
    """That a store addresses bytes as everybody else does.

    Subclass this with the fixtures `store` and `golden`, a sequence of `natsblob.testing.payloads.Golden`.
    """

    async def test_golden_addresses(self, store: Store, golden: Sequence[Golden]) -> None:
        for entry in golden:
            info = await store.put(source(*cut(entry.data(), 4096)))
            assert (info.digest.hex, info.size) == (entry.digest, entry.size)
            assert b"".join(await read(store, info.digest)) == entry.data()
