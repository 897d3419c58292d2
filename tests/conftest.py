"""Real servers for tests, started once per test process where nobody harms them.

`server` and `cluster` are shared by all tests of a process: each test uses a bucket, and where it runs a
service a prefix, of its own. `fresh_server` and `fresh_cluster` belong to one test, which may kill, pause
and restart them.

The shared ones are started in pytest-asyncio's session loop while tests run in a loop each. That is sound
because a server is tied to no loop and no pipe (see `natsblob.broker.embedded`): tests take its address
from it and nothing else. Under pytest-xdist each process has its own servers, on ports of their own.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.servers import EmbeddedCluster, temporary_cluster, temporary_server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--blob-mib", type=int, default=64, help="size of the large blobs in fault tests, MiB")


def pytest_configure() -> None:
    """Processes under test inherit what this one ignores: under `nohup`, a signal that tests send."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server() -> AsyncIterator[EmbeddedServer]:
    async with temporary_server() as running:
        yield running


@pytest_asyncio.fixture
async def fresh_server() -> AsyncIterator[EmbeddedServer]:
    async with temporary_server() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with temporary_cluster() as running:
        yield running


@pytest_asyncio.fixture
async def fresh_cluster() -> AsyncIterator[EmbeddedCluster]:
    async with temporary_cluster() as running:
        yield running
