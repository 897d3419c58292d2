"""Stores against a dictionary: whatever is done in whatever order, they hold what it holds."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from natsblob.digest import Digest
from natsblob.errors import BlobNotFoundError, DigestMismatchError
from natsblob.store.base import Store
from natsblob.store.disk import DiskStore
from natsblob.store.memory import MemoryStore
from natsblob.testing.payloads import BOUNDARIES, cut, pattern, source

CHUNK = 64
T = TypeVar("T")

contents = st.builds(
    pattern,
    st.sampled_from([size(CHUNK) for size in BOUNDARIES.values()]) | st.integers(0, 6 * CHUNK),
    st.sampled_from(["one", "two", "three"]),
)
pieces = st.integers(1, 3 * CHUNK)


class _StoreMachine(RuleBasedStateMachine):
    """A store beside the dictionary that says what it has to hold."""

    digests = Bundle("digests")
    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model: dict[Digest, bytes] = {}

    def do(self, step: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(step)

    def teardown(self) -> None:
        self.runner.close()

    @initialize(target=digests)
    def unknown(self) -> Digest:
        return Digest.of(b"never put")

    @rule(target=digests, data=contents, piece=pieces, declared=st.booleans())
    def put(self, data: bytes, piece: int, declared: bool) -> Digest:
        digest = Digest.of(data)
        info = self.do(self.store.put(source(*cut(data, piece)), expected=digest if declared else None))
        assert (info.digest, info.size, info.created) == (digest, len(data), digest not in self.model)
        self.model[digest] = data
        return digest

    @rule(target=digests, data=contents, piece=pieces, other=digests)
    def put_under_another_digest(self, data: bytes, piece: int, other: Digest) -> Any:
        digest = Digest.of(data)
        if digest == other:
            return multiple()
        with pytest.raises(DigestMismatchError):
            self.do(self.store.put(source(*cut(data, piece)), expected=other))
        return digest

    @rule(digest=digests)
    def delete(self, digest: Digest) -> None:
        try:
            info = self.do(self.store.delete(digest))
        except BlobNotFoundError:
            assert digest not in self.model
        else:
            assert info.size == len(self.model.pop(digest))

    @rule(digest=digests, first=st.integers(0, 7), count=st.none() | st.integers(0, 8))
    def read(self, digest: Digest, first: int, count: int | None) -> None:
        try:
            chunks = self.do(self.collect(digest, first, count))
        except BlobNotFoundError:
            assert digest not in self.model
        else:
            end = None if count is None else first + count
            assert chunks == list(cut(self.model[digest], CHUNK))[first:end]

    @rule(asked=st.lists(digests, max_size=8))
    def missing(self, asked: list[Digest]) -> None:
        assert self.do(self.store.missing(asked)) == [d for d in asked if d not in self.model]

    @rule(after=st.none() | digests, limit=st.integers(1, 5), digits=st.integers(0, 6), like=digests)
    def page(self, after: Digest | None, limit: int, digits: int, like: Digest) -> None:
        prefix = like.hex[:digits]
        wanted = [
            digest
            for digest in sorted(self.model)
            if (after is None or digest > after) and digest.hex.startswith(prefix)
        ]
        page = self.do(self.store.list(after=after, limit=limit, prefix=prefix))
        assert [info.digest for info in page.blobs] == wanted[:limit]
        assert page.after == (wanted[limit - 1] if len(wanted) > limit else None)

    @invariant()
    def everything_is_listed(self) -> None:
        page = self.do(self.store.list())
        assert {info.digest: info.size for info in page.blobs} == {
            digest: len(data) for digest, data in self.model.items()
        }

    async def collect(self, digest: Digest, first: int, count: int | None) -> list[bytes]:
        return [chunk async for chunk in self.store.chunks(digest, first, count)]


class _MemoryMachine(_StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(chunk_size=CHUNK)


class _DiskMachine(_StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.store = self.disk = DiskStore(self.directory.name, chunk_size=CHUNK)

    @rule()
    def reopen(self) -> None:
        self.disk.close()
        self.store = self.disk = DiskStore(self.directory.name)

    def teardown(self) -> None:
        self.disk.close()
        self.directory.cleanup()
        super().teardown()


TestMemoryStore = _MemoryMachine.TestCase
TestMemoryStore.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestDiskStore = _DiskMachine.TestCase
TestDiskStore.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
