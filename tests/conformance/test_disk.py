"""The disk store against the suites that every store has to pass."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from natsblob.store.base import Store
from natsblob.store.disk import DiskStore
from natsblob.testing.conformance import GoldenConformance, StoreConformance


class TestDiskStore(StoreConformance, GoldenConformance):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        self.directory = tmp_path
        with ExitStack() as self.handles:
            yield self.handles.enter_context(closing(DiskStore(tmp_path, chunk_size=8192)))

    async def reopen(self, store: Store) -> Store:
        return self.handles.enter_context(closing(DiskStore(self.directory)))

    def held(self, store: Store) -> int:
        staged = len(list((self.directory / "staging").iterdir()))
        return super().held(store) + staged + len(list(Path("/dev/fd").iterdir()))
