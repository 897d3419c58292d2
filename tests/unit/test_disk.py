"""The disk store when disks, processes and operators misbehave."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from natsblob.digest import Digest
from natsblob.errors import (
    BlobCorruptError,
    BlobNotFoundError,
    InsufficientStorageError,
    SetupError,
    UnavailableError,
)
from natsblob.store.disk import DiskStore
from natsblob.store.disk import store as disk_store
from natsblob.store.disk.files import StoredBlob
from natsblob.store.disk.sums import MOST_SUMS, Identity, Remembered, Sums, piece_size
from natsblob.testing.payloads import HangingSource, cut, pattern, source

CHUNK = 4096
DATA = pattern(3 * CHUNK + 17)
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    with closing(DiskStore(tmp_path, chunk_size=CHUNK)) as opened:
        yield opened


def file_of(directory: Path, digest: Digest = DIGEST) -> Path:
    return directory / "blobs" / digest.hex[:2] / digest.hex[2:4] / digest.hex


def staged(directory: Path) -> list[Path]:
    return list((directory / "staging").iterdir())


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ 0x10]))


def make_old(file: Path) -> None:
    """As if it had been written an hour ago: from there on verification is remembered."""
    then = time.time() - 3600
    os.utime(file, (then, then))


async def read(store: DiskStore, digest: Digest = DIGEST) -> bytes:
    return b"".join([chunk async for chunk in store.chunks(digest)])


async def put(store: DiskStore, data: bytes = DATA) -> None:
    await store.put(source(*cut(data, CHUNK)))


# Layout


async def test_a_file_holds_the_bytes_and_nothing_else(store: DiskStore, tmp_path: Path) -> None:
    await put(store)
    assert file_of(tmp_path).read_bytes() == DATA
    assert staged(tmp_path) == []


async def test_what_others_put_among_the_blobs_is_not_listed(store: DiskStore, tmp_path: Path) -> None:
    await put(store)
    leaf = file_of(tmp_path).parent
    for name in ("README", DIGEST.hex.upper(), "zz" + DIGEST.hex[2:], DIGEST.hex + "0", "f" * 64):
        (leaf / name).write_bytes(b"x")
    (tmp_path / "blobs" / "notes").mkdir()
    (tmp_path / "blobs" / "aa").write_bytes(b"a file where a directory belongs")
    assert [info.digest for info in (await store.list()).blobs] == [DIGEST]


# Durability


async def test_the_bytes_are_durable_before_the_name_and_the_name_before_the_answer(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def recorded(name: str, call: Callable[..., Any], describe: Callable[..., str]) -> None:
        def run(*arguments: Any, **named: Any) -> Any:
            steps.append(describe(*arguments))
            return call(*arguments, **named)

        monkeypatch.setattr(os, name, run)

    def kind(file: int) -> str:
        return "sync names" if stat.S_ISDIR(os.fstat(file).st_mode) else "sync bytes"

    recorded("write", os.write, lambda *_: "write")
    recorded("rename", os.rename, lambda *_: "rename")
    recorded("fsync", os.fsync, kind)
    await put(store)
    last_write = len(steps) - 1 - steps[::-1].index("write")
    last_rename = len(steps) - 1 - steps[::-1].index("rename")
    assert last_write < steps.index("sync bytes") < steps.index("rename")
    assert steps[last_rename + 1 :] == ["sync names"] * 3, "the new directories and the one of the file"


@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename"])
@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (errno.ENOSPC, InsufficientStorageError),
        (errno.EDQUOT, InsufficientStorageError),
        (errno.EFBIG, InsufficientStorageError),
        (errno.EIO, UnavailableError),
        (errno.EROFS, UnavailableError),
        (errno.EACCES, UnavailableError),
    ],
)
async def test_a_put_that_the_disk_refuses_stores_nothing(
    store: DiskStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    code: int,
    meaning: type[Exception],
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, step, refuse)
        with pytest.raises(meaning):
            await put(store)
    assert await store.missing([DIGEST]) == [DIGEST]
    assert staged(tmp_path) == []
    await put(store)
    assert await read(store) == DATA


async def test_a_name_that_is_not_durable_is_not_acknowledged(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def refuse_directories(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(file)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse_directories)
        with pytest.raises(UnavailableError):
            await put(store)
    await put(store)
    assert await read(store) == DATA


async def test_a_short_write_is_continued(store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:1000]))
    await put(store)
    assert await read(store) == DATA


PUT_AND_DIE = """
import asyncio, os, sys
from natsblob.store.disk import DiskStore
from natsblob.testing.payloads import cut, pattern, source

directory, step, turn = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = DiskStore(directory)
real, calls = getattr(os, step), 0

def dying(*arguments, **named):
    global calls
    calls += 1
    if calls == turn:
        os._exit(9)
    return real(*arguments, **named)

setattr(os, step, dying)
asyncio.run(store.put(source(*cut(pattern(3 * 4096 + 17), 4096))))
os._exit(0)
"""


@pytest.mark.parametrize(
    ("step", "turn"), [("write", 1), ("write", 3), ("fsync", 1), ("rename", 1), ("mkdir", 1), ("fsync", 2)]
)
async def test_a_process_that_dies_leaves_all_or_nothing(tmp_path: Path, step: str, turn: int) -> None:
    DiskStore(tmp_path, chunk_size=CHUNK).close()
    await put_and_die(tmp_path, step, turn)
    named = file_of(tmp_path).exists()
    assert named == ((step, turn) == ("fsync", 2)), "only the sync of the directory comes after the name"
    assert bool(staged(tmp_path)) != named
    with closing(DiskStore(tmp_path)) as store:
        assert staged(tmp_path) == []
        assert await store.missing([DIGEST]) == ([] if named else [DIGEST])
        await put(store)
        assert await read(store) == DATA


async def put_and_die(directory: Path, step: str, turn: int) -> None:
    script = (sys.executable, "-c", PUT_AND_DIE, str(directory), step, str(turn))
    process = await asyncio.create_subprocess_exec(*script)
    assert await process.wait() == 9


async def test_a_put_in_flight_is_not_taken_for_a_stale_one(store: DiskStore, tmp_path: Path) -> None:
    hanging = HangingSource(DATA[:CHUNK])
    writing = asyncio.create_task(store.put(hanging))
    await hanging.reached.wait()
    assert len(staged(tmp_path)) == 1
    DiskStore(tmp_path).close()
    assert len(staged(tmp_path)) == 1
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert staged(tmp_path) == []


async def test_a_put_cancelled_while_the_disk_hangs_is_cleaned_up_when_it_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_store, "CLEANUP_SECONDS", 0.01)
    loop, reached, recovered = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    real = os.fsync

    def hang(file: int) -> None:
        loop.call_soon_threadsafe(reached.set)
        recovered.wait()
        real(file)

    with closing(DiskStore(tmp_path, chunk_size=CHUNK)) as store:
        monkeypatch.setattr(os, "fsync", hang)
        writing = asyncio.create_task(put(store))
        await reached.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert len(staged(tmp_path)) == 1, "its thread still hangs"
        recovered.set()
    assert staged(tmp_path) == []
    assert not file_of(tmp_path).exists() or file_of(tmp_path).read_bytes() == DATA
    with closing(DiskStore(tmp_path, chunk_size=CHUNK)) as store:
        await put(store)
        assert await read(store) == DATA


# Rot


@pytest.mark.parametrize("offset", [0, CHUNK, len(DATA) - 1])
@pytest.mark.parametrize("read_before", [False, True])
async def test_a_flipped_bit_is_never_served(
    store: DiskStore, tmp_path: Path, offset: int, read_before: bool
) -> None:
    await put(store)
    if read_before:
        assert await read(store) == DATA
    flip(file_of(tmp_path), offset)
    await assert_refused_and_healed(store, tmp_path)


@pytest.mark.parametrize("length", [0, 1, CHUNK, len(DATA) - 1, len(DATA) + 1])
async def test_a_file_of_another_length_is_never_served(
    store: DiskStore, tmp_path: Path, length: int
) -> None:
    await put(store)
    os.truncate(file_of(tmp_path), length)
    await assert_refused_and_healed(store, tmp_path)


async def test_rot_after_a_remembered_verification_is_noticed(store: DiskStore, tmp_path: Path) -> None:
    await put(store)
    make_old(file_of(tmp_path))
    assert await read(store) == DATA
    flip(file_of(tmp_path), CHUNK + 5)
    await assert_refused_and_healed(store, tmp_path)


async def test_rot_within_one_tick_of_the_clock_is_noticed(store: DiskStore, tmp_path: Path) -> None:
    await put(store)
    file = file_of(tmp_path)
    tick = time.time_ns() + 3600 * 10**9  # still to come, so that no pause of this test lets it pass
    os.utime(file, ns=(tick, tick))
    assert await read(store) == DATA
    flip(file, 5)
    os.utime(file, ns=(tick, tick))
    await assert_refused_and_healed(store, tmp_path)


async def test_a_flipped_bit_in_a_blob_of_one_chunk_is_never_served(store: DiskStore, tmp_path: Path) -> None:
    small = await store.put(source(b"small"))
    file = file_of(tmp_path, small.digest)
    make_old(file)
    assert await read(store, small.digest) == b"small"
    flip(file, 4)
    with pytest.raises(BlobCorruptError):
        await read(store, small.digest)
    assert await store.missing([small.digest]) == [small.digest]
    assert (await store.put(source(b"small"))).created


async def assert_refused_and_healed(store: DiskStore, directory: Path) -> None:
    with pytest.raises(BlobCorruptError):
        await anext(store.chunks(DIGEST, 1, 1))
    assert [file.name.partition(".")[0] for file in (directory / "quarantine").iterdir()] == [DIGEST.hex]
    assert await store.missing([DIGEST]) == [DIGEST]
    with pytest.raises(BlobNotFoundError):
        await read(store)
    assert (await store.put(source(DATA))).created
    assert await read(store) == DATA


async def test_nobody_is_spared_an_upload_for_a_file_that_has_rotted(
    store: DiskStore, tmp_path: Path
) -> None:
    await put(store)
    assert await store.held(DIGEST) is not None
    flip(file_of(tmp_path), 5)
    assert await store.held(DIGEST) is None
    await put(store)
    assert await store.held(DIGEST) is not None


async def test_a_put_replaces_a_file_that_has_rotted_unnoticed(store: DiskStore, tmp_path: Path) -> None:
    await put(store)
    flip(file_of(tmp_path), 5)
    assert not (await store.put(source(DATA))).created
    assert await read(store) == DATA


async def test_a_healed_file_is_not_quarantined_for_the_one_before(store: DiskStore, tmp_path: Path) -> None:
    await put(store)
    flip(file_of(tmp_path), 5)
    rotten = StoredBlob(store._volume, DIGEST)
    rotten.open()
    await put(store)
    with pytest.raises(BlobCorruptError):
        rotten.verify(threading.Event(), CHUNK)
    rotten.close()
    assert await read(store) == DATA
    assert list((tmp_path / "quarantine").iterdir()) == []


def rot(file: Path, offset: int) -> None:
    """Flip a bit as a disk does: inode, size and time stay as they were."""
    before = file.stat()
    flip(file, offset)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_a_range_of_a_file_that_rotted_after_it_was_verified_is_not_served(
    store: DiskStore, tmp_path: Path
) -> None:
    data = pattern(40 * CHUNK + 17)
    digest = (await store.put(source(*cut(data, CHUNK)))).digest
    make_old(file_of(tmp_path, digest))
    assert await read(store, digest) == data
    rot(file_of(tmp_path, digest), 3 * CHUNK + 100)
    with pytest.raises(BlobCorruptError):
        await anext(store.chunks(digest, 3, 1))
    assert await store.missing([digest]) == [digest]
    assert (await store.put(source(data))).created
    assert await read(store, digest) == data


async def test_a_file_that_rots_while_it_is_read_is_not_served_further(
    store: DiskStore, tmp_path: Path
) -> None:
    data = pattern(40 * CHUNK + 17)
    digest = (await store.put(source(*cut(data, CHUNK)))).digest
    make_old(file_of(tmp_path, digest))
    received: list[bytes] = []

    async def receive() -> None:
        async for chunk in store.chunks(digest):
            received.append(chunk)
            if len(received) == 1:
                rot(file_of(tmp_path, digest), len(data) - 1)

    with pytest.raises(BlobCorruptError):
        await receive()
    begin = b"".join(received)
    assert data.startswith(begin)
    assert len(begin) < len(data)


async def test_a_file_that_was_misread_once_is_read_again(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store)
    make_old(file_of(tmp_path))
    assert await read(store) == DATA
    real, misread = os.pread, [True]

    def once(file: int, length: int, offset: int) -> bytes:
        data = real(file, length, offset)
        return bytes(len(data)) if misread and misread.pop() else data

    monkeypatch.setattr(os, "pread", once)
    assert await read(store) == DATA
    assert await store.missing([DIGEST]) == []


async def test_a_file_that_is_always_misread_is_refused(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store)
    make_old(file_of(tmp_path))
    monkeypatch.setattr(os, "pread", lambda _file, length, _offset: bytes(length))
    with pytest.raises(BlobCorruptError):
        await read(store)


@pytest.mark.parametrize("chunk_size", [1000, 4096, 65_536, 100_000])
@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 300_000])
async def test_ranges_are_right_whatever_the_size_of_chunks(
    tmp_path: Path, chunk_size: int, size: int
) -> None:
    data = pattern(size)
    with closing(DiskStore(tmp_path, chunk_size=chunk_size)) as store:
        digest = (await store.put(source(data))).digest
        for first, count in [(0, None), (0, 1), (1, 2), (3, 70), (size // chunk_size, 5), (10_000, 1)]:
            chunks = [chunk async for chunk in store.chunks(digest, first, count)]
            end = size if count is None else (first + count) * chunk_size
            assert b"".join(chunks) == data[first * chunk_size : end]
            assert all(len(chunk) == chunk_size for chunk in chunks[:-1])


def test_sums_take_bounded_memory() -> None:
    remembered = Remembered(memory=10_000)
    for number in range(100):
        identity = Identity(DIGEST, number, 0, 0)
        remembered.keep(identity, Sums(CHUNK, array("I", [number] * 100)))
        assert remembered.held <= 10_000
        assert remembered.get(identity) is not None
    assert remembered.get(Identity(DIGEST, 0, 0, 0)) is None
    for number in range(100):
        remembered.forget(Identity(DIGEST, number, 0, 0))
    assert remembered.held == 0


@pytest.mark.parametrize("chunk_size", [1, 1024, 512 * 1024])
@pytest.mark.parametrize("size", [0, 1, 2**20, 2**40, 2**53])
def test_no_blob_has_more_sums_than_fit(chunk_size: int, size: int) -> None:
    piece = piece_size(size, chunk_size)
    assert piece % chunk_size == 0
    assert -(-size // piece) <= MOST_SUMS


async def test_a_promise_is_given_on_bytes_that_were_read_for_it(store: DiskStore, tmp_path: Path) -> None:
    await put(store)
    make_old(file_of(tmp_path))
    assert await read(store) == DATA
    rot(file_of(tmp_path), 5)
    assert await store.held(DIGEST) is None
    assert await store.missing([DIGEST]) == [DIGEST]


async def test_a_large_file_counts_as_read_for_a_while(
    store: DiskStore, tmp_path: Path, verified: list[Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_store, "REREAD_SIZE", 0)
    await put(store)
    make_old(file_of(tmp_path))
    for _ in range(3):
        assert await store.held(DIGEST) is not None
    assert verified == [DIGEST]
    monkeypatch.setattr(disk_store, "FRESH_SECONDS", 0)
    assert await store.held(DIGEST) is not None
    assert verified == [DIGEST] * 2


async def test_the_quarantine_holds_one_file_of_a_blob_until_it_is_healed(
    store: DiskStore, tmp_path: Path
) -> None:
    for offset in range(3):
        await put(store)
        assert list((tmp_path / "quarantine").iterdir()) == []
        flip(file_of(tmp_path), offset)
        with pytest.raises(BlobCorruptError):
            await read(store)
        assert [file.name for file in (tmp_path / "quarantine").iterdir()] == [DIGEST.hex]


def test_what_others_put_into_staging_is_left_alone(tmp_path: Path) -> None:
    DiskStore(tmp_path).close()
    staging = tmp_path / "staging"
    for name in ("notes.txt", "0" * 31):
        (staging / name).write_text("kept")
    (staging / ("1" * 32)).mkdir()
    (staging / ("2" * 32)).symlink_to("notes.txt")
    os.mkfifo(staging / ("3" * 32))
    before = sorted(path.name for path in staging.iterdir() if not path.is_fifo())
    DiskStore(tmp_path).close()
    assert sorted(path.name for path in staging.iterdir() if not path.is_fifo()) == before
    assert (staging / "notes.txt").read_text() == "kept"


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[Digest]:
    """The digests of the files that were read to verify them."""
    seen: list[Digest] = []
    real = StoredBlob.verify

    def counted(blob: StoredBlob, stop: threading.Event, piece: int) -> Sums | None:
        seen.append(blob.identity.digest)
        return real(blob, stop, piece)

    monkeypatch.setattr(StoredBlob, "verify", counted)
    return seen


async def test_a_file_is_verified_once_while_it_stays_as_it_is(
    store: DiskStore, tmp_path: Path, verified: list[Digest]
) -> None:
    await put(store)
    make_old(file_of(tmp_path))
    for _ in range(3):
        assert await read(store) == DATA
    assert verified == [DIGEST]


async def test_readers_share_a_verification(store: DiskStore, verified: list[Digest]) -> None:
    await put(store)
    assert await asyncio.gather(*(read(store) for _ in range(8))) == [DATA] * 8
    assert len(verified) < 8


async def test_a_verification_outlives_the_reader_that_began_it(
    store: DiskStore, tmp_path: Path, verified: list[Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store)
    make_old(file_of(tmp_path))
    loop, reached, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    real = os.dup

    def slow(file: int) -> int:
        copy = real(file)
        loop.call_soon_threadsafe(reached.set)
        go_on.wait()
        return copy

    monkeypatch.setattr(os, "dup", slow)
    reading = asyncio.create_task(read(store))
    await reached.wait()
    reading.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await read(store) == DATA
    assert verified == [DIGEST]


# Volumes


def test_a_new_directory_becomes_a_volume_that_keeps_its_identity(tmp_path: Path) -> None:
    directory = tmp_path / "several" / "levels"
    with closing(DiskStore(directory, chunk_size=CHUNK)) as first:
        identity = first.volume
    with closing(DiskStore(directory, chunk_size=2 * CHUNK, volume=identity)) as again:
        assert again.volume == identity
        assert again.chunk_size == CHUNK


@pytest.mark.parametrize("kind", ["missing", "empty", "fresh"])
def test_no_volume_is_made_unless_it_is_asked_for(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "volume"
    if kind != "missing":
        directory.mkdir()
    if kind == "fresh":
        (directory / "lost+found").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SetupError):
        DiskStore(directory, create=False)
    assert sorted(tmp_path.rglob("*")) == before
    DiskStore(directory, create=True).close()
    DiskStore(directory, create=False).close()
    DiskStore(directory, create=True).close()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOLCK, errno.EINVAL])
def test_a_volume_that_cannot_be_used_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    DiskStore(tmp_path).close()

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    for module, step in ((os, "open"), (fcntl, "flock"), (os, "fsync")):
        with monkeypatch.context() as broken:
            broken.setattr(module, step, refuse)
            with pytest.raises(SetupError) as caught:
                DiskStore(tmp_path, create=False)
            assert str(tmp_path) in caught.value.message


def test_a_fresh_file_system_may_become_a_volume(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    with closing(DiskStore(tmp_path)) as store:
        volume = store.volume
    with closing(DiskStore(tmp_path)) as again:
        assert again.volume == volume
    assert (tmp_path / "lost+found").is_dir()


def test_another_directory_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("not a blob")
    with pytest.raises(SetupError):
        DiskStore(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_volume_that_lost_its_descriptor_is_refused(tmp_path: Path) -> None:
    DiskStore(tmp_path).close()
    (tmp_path / "natsblob.json").unlink()
    with pytest.raises(SetupError):
        DiskStore(tmp_path)


def test_a_volume_that_was_asked_for_has_to_be_there(tmp_path: Path) -> None:
    DiskStore(tmp_path / "other").close()
    (tmp_path / "empty").mkdir()
    for name in ("other", "empty", "absent"):
        with pytest.raises(SetupError):
            DiskStore(tmp_path / name, volume=uuid4())
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 2, "volume": "5ff0f2b4-3bd0-4f4e-8d0a-2f3a1a3c8d10", "chunk_size": 4096}',
        '{"format": 1, "volume": "5ff0f2b4-3bd0-4f4e-8d0a-2f3a1a3c8d10", "chunk_size": 0}',
        '{"format": 1, "volume": "me", "chunk_size": 4096}',
    ],
)
def test_a_descriptor_that_cannot_be_understood_is_refused(tmp_path: Path, text: str) -> None:
    DiskStore(tmp_path).close()
    (tmp_path / "natsblob.json").write_text(text)
    with pytest.raises(SetupError):
        DiskStore(tmp_path)


def test_a_file_is_no_volume(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError):
        DiskStore(tmp_path / "file")


async def test_a_volume_whose_content_went_away_is_not_an_empty_store(
    store: DiskStore, tmp_path: Path
) -> None:
    await put(store)
    for part in ("natsblob.json", "blobs"):
        (tmp_path / part).rename(tmp_path / f"{part}.gone")
    for ask in (store.missing([DIGEST]), store.stat(DIGEST), read(store), store.list(), store.delete(DIGEST)):
        with pytest.raises(UnavailableError):
            await ask


async def test_a_mount_over_an_open_volume_is_not_taken_for_it(tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    with closing(DiskStore(directory, chunk_size=CHUNK)) as store:
        await put(store)
        directory.rename(tmp_path / "beneath")
        DiskStore(directory).close()
        assert await store.missing([DIGEST]) == []
        assert await read(store) == DATA


# Several processes

PUT_MANY = """
import asyncio, sys
from natsblob.store.disk import DiskStore
from natsblob.testing.payloads import cut, pattern, source

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    store = DiskStore(sys.argv[1], chunk_size=4096)
    infos = [await store.put(source(*cut(pattern(5000, str(n)), 1500))) for n in range(30)]
    print(store.volume, sum(info.created for info in infos))
    store.close()

asyncio.run(main())
"""


async def test_processes_share_a_directory_from_its_first_moment(tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", PUT_MANY, str(directory), stdin=pipe, stdout=pipe
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        await process.stdout.readline()
    answers = [answer for answer, _ in await asyncio.gather(*(p.communicate(b"go\n") for p in processes))]
    identities, created = zip(*(answer.split() for answer in answers), strict=True)
    assert len(set(identities)) == 1
    assert sum(map(int, created)) == 30
    assert staged(directory) == []
    with closing(DiskStore(directory)) as store:
        for n in range(30):
            assert await read(store, Digest.of(pattern(5000, str(n)))) == pattern(5000, str(n))
