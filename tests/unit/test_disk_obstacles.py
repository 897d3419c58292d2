"""What is no file, in the place of a blob's file: no thread waits in it, and the next put takes its place."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from natsblob.digest import Digest
from natsblob.errors import BlobNotFoundError, SetupError
from natsblob.store.disk import DiskStore
from natsblob.store.disk.store import THREADS
from natsblob.testing.payloads import pattern, source

CHUNK = 4096
DATA = pattern(3 * CHUNK + 17)
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    with closing(DiskStore(tmp_path, chunk_size=CHUNK)) as opened:
        yield opened


def a_socket(path: Path) -> None:
    # Addresses of sockets are short: bound elsewhere, and moved.
    with TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{short}/s")
        Path(short, "s").rename(path)


def a_full_directory(path: Path) -> None:
    path.mkdir()
    (path / "something").write_bytes(b"x")


def a_link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))


def a_link_to_a_good_file(path: Path) -> None:
    path.with_name("good").write_bytes(DATA)
    path.symlink_to(path.with_name("good"))


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


OBSTACLES: list[Callable[[Path], None]] = [
    os.mkfifo,
    a_socket,
    Path.mkdir,
    a_full_directory,
    a_link_to_a_pipe,
    a_link_to_a_good_file,
    a_link_to_itself,
    a_link_to_a_device,
]


def file_of(directory: Path) -> Path:
    return directory / "blobs" / DIGEST.hex[:2] / DIGEST.hex[2:4] / DIGEST.hex


async def read(store: DiskStore) -> bytes:
    return b"".join([chunk async for chunk in store.chunks(DIGEST)])


@pytest.mark.parametrize("obstacle", OBSTACLES)
async def test_what_is_no_file_is_no_blob_and_holds_up_nobody(
    store: DiskStore, tmp_path: Path, obstacle: Callable[[Path], None]
) -> None:
    other = await store.put(source(b"other"))
    file_of(tmp_path).parent.mkdir(parents=True, exist_ok=True)
    obstacle(file_of(tmp_path))
    async with asyncio.timeout(10):
        for outcome in await asyncio.gather(
            *(read(store) for _ in range(THREADS + 1)), return_exceptions=True
        ):
            assert isinstance(outcome, BlobNotFoundError)
        with pytest.raises(BlobNotFoundError):
            await store.stat(DIGEST)
        with pytest.raises(BlobNotFoundError):
            await store.delete(DIGEST)
        assert await store.held(DIGEST) is None
        assert await store.missing([DIGEST, other.digest]) == [DIGEST]
        assert [info.digest for info in (await store.list()).blobs] == [other.digest]
        assert (await store.put(source(DATA))).created
        assert await read(store) == DATA
        assert {info.digest for info in (await store.list()).blobs} == {other.digest, DIGEST}
    assert file_of(tmp_path).is_file()
    assert not file_of(tmp_path).is_symlink()


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_is_no_file_in_staging_does_not_keep_a_volume_from_opening(
    tmp_path: Path, obstacle: Callable[[Path], None]
) -> None:
    DiskStore(tmp_path, chunk_size=CHUNK).close()
    obstacle(tmp_path / "staging" / "left")
    DiskStore(tmp_path, chunk_size=CHUNK).close()


@pytest.mark.parametrize("obstacle", [os.mkfifo, a_socket, Path.mkdir, a_link_to_a_pipe, a_link_to_itself])
def test_what_is_no_file_as_the_descriptor_is_refused(
    tmp_path: Path, obstacle: Callable[[Path], None]
) -> None:
    DiskStore(tmp_path, chunk_size=CHUNK).close()
    (tmp_path / "natsblob.json").unlink()
    obstacle(tmp_path / "natsblob.json")
    with pytest.raises(SetupError):
        DiskStore(tmp_path, chunk_size=CHUNK)
