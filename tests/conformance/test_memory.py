"""The memory store against the suites that every store has to pass."""

from __future__ import annotations

import pytest

from natsblob.store.base import Store
from natsblob.store.memory import MemoryStore
from natsblob.testing.conformance import GoldenConformance, StoreConformance


class TestMemoryStore(StoreConformance, GoldenConformance):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore(chunk_size=8192)
