"""The memory store against the suites that every store has to pass."""

from __future__ import annotations

import pytest

from natsblob.digest import Digest
from natsblob.errors import DigestMismatchError, InsufficientStorageError
from natsblob.store.base import Store
from natsblob.store.memory import MemoryStore
from natsblob.testing.conformance import GoldenConformance, StoreConformance
from natsblob.testing.payloads import pattern, source


class TestMemoryStore(StoreConformance, GoldenConformance):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore(chunk_size=8192)


async def test_a_full_memory_refuses_and_what_is_given_up_is_free_again() -> None:
    store = MemoryStore(max_bytes=100)
    kept = await store.put(source(pattern(60)))
    with pytest.raises(InsufficientStorageError):
        await store.put(source(pattern(30, "a"), pattern(30, "b")))
    with pytest.raises(DigestMismatchError):
        await store.put(source(pattern(40, "c")), expected=Digest.of(b""))
    await store.put(source(pattern(40, "d")))
    with pytest.raises(InsufficientStorageError):
        await store.put(source(b"x"))
    await store.delete(kept.digest)
    await store.put(source(pattern(60, "e")))
