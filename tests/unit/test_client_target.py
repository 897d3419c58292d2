"""What a download writes to and how, without a server."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import stat
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from natsblob.client.download import save
from natsblob.client.part import PartFile, part_name
from natsblob.client.target import FileTarget, StreamTarget, target_of
from natsblob.digest import Digest
from natsblob.errors import ConflictError
from natsblob.testing.payloads import cut, pattern

DATA = pattern(300_000)
DIGEST = Digest.of(DATA)
LONGEST = 255


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


async def blocks(data: bytes = DATA) -> AsyncGenerator[bytes, None]:
    for piece in cut(data, 50_000):
        yield piece


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def part_of(path: Path) -> Path:
    return path.with_name(part_name(path.name, DIGEST, LONGEST))


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def collect(path: Path) -> PartFile:
    """Collect the blob as far as its last step."""
    target = target_of(path)
    assert isinstance(target, FileTarget)
    part = PartFile(target, DIGEST)
    part.truncate(0)
    part.write(DATA, 0)
    return part


def refusing(
    code: int, applies: Callable[..., bool] = lambda *_: True, real: Any = None
) -> Callable[..., Any]:
    def refuse(*arguments: Any, **named: Any) -> Any:
        if applies(*arguments):
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    return refuse


def is_directory(file: int) -> bool:
    return stat.S_ISDIR(os.fstat(file).st_mode)


# Where a path leads


async def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    assert await save(blocks(), tmp_path / "file") == len(DATA)
    assert (tmp_path / "file").read_bytes() == DATA
    assert mode_of(tmp_path / "file") == 0o640
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o755, 0o4755])
async def test_an_existing_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    path.chmod(mode)
    part = collect(path)
    assert mode_of(part_of(path)) & 0o077 == 0, "at no time open to more people"
    part.become()
    part.close()
    assert (path.read_bytes(), mode_of(path)) == (DATA, mode & 0o777)


@pytest.mark.parametrize("links", [1, 3])
async def test_links_lead_to_the_file_that_is_written(tmp_path: Path, links: int) -> None:
    (tmp_path / "far").mkdir()
    path = tmp_path / "far" / "file"
    path.write_bytes(b"before")
    path.chmod(0o600)
    given = path
    for number in range(links):
        link = tmp_path / f"link{number}"
        link.symlink_to(given)
        given = link
    await save(blocks(), given)
    assert given.is_symlink()
    assert (path.read_bytes(), mode_of(path)) == (DATA, 0o600)
    assert names(tmp_path / "far") == ["file"]


async def test_other_names_of_a_file_keep_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"before")
    (tmp_path / "other").hardlink_to(tmp_path / "file")
    await save(blocks(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert (tmp_path / "other").read_bytes() == b"before"


def bad_targets(directory: Path) -> dict[str, type[OSError]]:
    (directory / "dangling").symlink_to("nowhere")
    (directory / "loop").symlink_to("loop")
    (directory / "file").write_bytes(b"before")
    (directory / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "socket"))
    return {
        "dangling": FileNotFoundError,
        "dangling/": FileNotFoundError,
        "loop": OSError,
        "file/": NotADirectoryError,
        "file/under": NotADirectoryError,
        "directory": IsADirectoryError,
        "directory/": IsADirectoryError,
        "missing/": FileNotFoundError,
        "missing/file": FileNotFoundError,
        "missing/..": FileNotFoundError,
        "socket": OSError,
        "x" * 256: OSError,
        "": IsADirectoryError,
        ".": IsADirectoryError,
    }


async def test_what_cannot_be_written_is_an_error_with_its_path_and_left_alone(tmp_path: Path) -> None:
    bad = bad_targets(tmp_path)
    before = names(tmp_path)
    for name, kind in bad.items():
        path = f"{tmp_path}/{name}"
        with pytest.raises(kind) as caught:
            await save(blocks(), path)
        assert caught.value.filename == path
        assert names(tmp_path) == before
    assert (tmp_path / "file").read_bytes() == b"before"


async def test_a_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    real = os.open

    def protected(opened: Any, flags: int, *rest: Any, **named: Any) -> int:
        if os.fspath(opened) == str(path) and flags & os.O_WRONLY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(opened, flags, *rest, **named)

    monkeypatch.setattr(os, "open", protected)
    with pytest.raises(PermissionError) as caught:
        await save(blocks(), path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("length", [1, 230, 237, 238, 255])
async def test_names_up_to_the_limit_can_be_written(tmp_path: Path, length: int) -> None:
    for letter in ("x", "\N{LATIN SMALL LETTER E WITH ACUTE}"):
        path = tmp_path / (letter * (length // len(letter.encode())) or "x")
        part = collect(path)
        part.become()
        part.close()
        assert path.read_bytes() == DATA
        assert len(os.fsencode(part_of(path).name)) <= LONGEST


def test_two_long_names_have_two_parts() -> None:
    assert part_name("x" * 255, DIGEST, LONGEST) != part_name("x" * 254 + "y", DIGEST, LONGEST)


async def test_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"n\xffme")
    await save(blocks(), path)
    assert path.read_bytes() == DATA


# Pipes and devices


async def test_a_fifo_gets_the_bytes_and_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reading = asyncio.create_task(asyncio.to_thread(path.read_bytes))
    await save(blocks(), path)
    assert await reading == DATA
    assert path.is_fifo()
    assert names(tmp_path) == ["fifo"]


async def test_a_link_to_a_fifo_leads_to_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    reading = asyncio.create_task(asyncio.to_thread((tmp_path / "fifo").read_bytes))
    await save(blocks(), tmp_path / "link")
    assert await reading == DATA


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_waiting_for_a_reader_of_a_fifo_can_be_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = open_descriptors()
    target = target_of(tmp_path / "fifo")
    assert isinstance(target, StreamTarget)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await target.open()
    assert open_descriptors() == before


async def test_writing_to_a_slow_reader_can_be_given_up_and_leaves_no_descriptor(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = open_descriptors()
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await save(blocks(), tmp_path / "fifo")
    os.close(reading)
    assert open_descriptors() == before


async def test_a_reader_that_leaves_is_a_broken_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)

    async def endless() -> AsyncGenerator[bytes, None]:
        yield b"x" * 10
        os.close(reading)
        while True:
            yield b"x" * 100_000

    with pytest.raises(BrokenPipeError):
        await save(endless(), tmp_path / "fifo")


async def test_a_descriptor_of_a_connection_of_our_own_is_never_written_to(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    (tmp_path / "link").symlink_to(f"/proc/self/fd/{ours.fileno()}")
    with ours, theirs:
        theirs.settimeout(0)
        with pytest.raises(OSError):
            await save(blocks(), tmp_path / "link")
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


async def test_a_descriptor_that_was_inherited_is_written_to(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, bool(writing))
    (tmp_path / "link").symlink_to(f"/dev/fd/{writing}")
    with os.fdopen(reading, "rb") as file:
        received = asyncio.create_task(asyncio.to_thread(file.read))
        await save(blocks(), tmp_path / "link")
        os.close(writing)
        assert await received == DATA


# What others have put there


def plant_link(part: Path, victim: Path) -> None:
    part.symlink_to(victim)


def plant_hard_link(part: Path, victim: Path) -> None:
    part.hardlink_to(victim)


def plant_directory(part: Path, victim: Path) -> None:
    part.mkdir()


def plant_fifo(part: Path, victim: Path) -> None:
    os.mkfifo(part)


def plant_link_to_fifo(part: Path, victim: Path) -> None:
    os.mkfifo(victim.with_name("fifo"))
    part.symlink_to("fifo")


def plant_dangling(part: Path, victim: Path) -> None:
    part.symlink_to(victim.with_name("not there"))


@pytest.mark.parametrize(
    "plant",
    [plant_link, plant_hard_link, plant_directory, plant_fifo, plant_link_to_fifo, plant_dangling],
)
async def test_what_has_the_name_of_the_part_is_left_alone(
    tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"not to be lost")
    path = tmp_path / "file"
    plant(part_of(path), victim)
    planted = part_of(path).lstat()
    part = collect(path)
    part.become()
    part.close()
    assert (path.read_bytes(), path.is_symlink()) == (DATA, False)
    assert victim.read_bytes() == b"not to be lost"
    assert os.path.samestat(part_of(path).lstat(), planted)
    assert not (tmp_path / "not there").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
async def test_the_file_of_another_user_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    part_of(path).write_bytes(b"planted")
    os.chown(part_of(path), 65534, 65534)
    collect(path).become()
    assert (path.read_bytes(), path.stat().st_uid) == (DATA, 0)
    assert part_of(path).read_bytes() == b"planted"


async def test_a_part_that_is_open_to_more_people_than_the_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"secret")
    path.chmod(0o600)
    part_of(path).write_bytes(DATA[:1000])
    part_of(path).chmod(0o644)
    collect(path).become()
    assert (path.read_bytes(), mode_of(path)) == (DATA, 0o600)
    assert part_of(path).read_bytes() == DATA[:1000]


async def test_a_part_that_was_exchanged_meanwhile_does_not_become_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    part = collect(path)
    part_of(path).unlink()
    part_of(path).write_bytes(b"planted")
    with pytest.raises(OSError) as caught:
        part.become()
    assert caught.value.filename == str(path)
    part.remove()
    part.close()
    assert names(tmp_path) == [part_of(path).name]


async def test_a_target_that_became_a_directory_meanwhile_is_an_error_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "file"
    part = collect(path)
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        part.become()
    assert caught.value.filename == str(path)
    part.close()


async def test_a_target_that_became_a_link_meanwhile_is_replaced_and_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / "victim").write_bytes(b"not to be lost")
    part = collect(path)
    path.symlink_to("victim")
    part.become()
    part.close()
    assert (path.is_symlink(), path.read_bytes()) == (False, DATA)
    assert (tmp_path / "victim").read_bytes() == b"not to be lost"


async def test_the_directory_may_be_moved_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    part = collect(tmp_path / "one" / "file")
    (tmp_path / "one").rename(tmp_path / "two")
    part.become()
    part.close()
    assert (tmp_path / "two" / "file").read_bytes() == DATA


async def test_a_second_download_of_the_same_waits_for_nothing(tmp_path: Path) -> None:
    part = collect(tmp_path / "file")
    with pytest.raises(ConflictError):
        collect(tmp_path / "file")
    part.close()
    collect(tmp_path / "file").close()


# File systems that have less, and those that fail


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
async def test_without_locks_nobody_shares_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    one, other = collect(tmp_path / "file"), collect(tmp_path / "file")
    assert not one.kept
    assert len(names(tmp_path)) == 2
    one.become()
    other.remove()
    one.close()
    other.close()
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
async def test_without_sync_of_directories_the_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(code, is_directory, os.fsync))
    await save(blocks(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


async def test_a_directory_that_fails_to_sync_is_told_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO, is_directory, os.fsync))
    with pytest.raises(OSError) as caught:
        await save(blocks(), tmp_path / "file")
    assert caught.value.filename == str(tmp_path / "file")


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
async def test_without_modes_the_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "file").write_bytes(b"before")
    monkeypatch.setattr(os, "fchmod", refusing(code))
    monkeypatch.setattr(os, "fchown", refusing(code))
    await save(blocks(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


@pytest.mark.parametrize("step", ["pwrite", "fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBUSY])
async def test_what_the_disk_refuses_is_told_with_the_path_and_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, step, refusing(code))
    with pytest.raises(OSError) as caught:
        await save(blocks(), path)
    assert (caught.value.errno, caught.value.filename) == (code, str(path))
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["file"]


async def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: real(file, data[:1000], offset))
    await save(blocks(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


async def test_a_directory_that_may_be_written_and_not_read_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def unreadable(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if path == str(tmp_path) and not flags & os.O_PATH:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", unreadable)
    await save(blocks(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


@pytest.mark.parametrize("step", [0, 1, 3])
async def test_a_save_that_fails_or_is_cancelled_leaves_nothing(tmp_path: Path, step: int) -> None:
    before = open_descriptors()
    reached = asyncio.Event()

    async def hanging() -> AsyncGenerator[bytes, None]:
        for piece in list(cut(DATA, 50_000))[:step]:
            yield piece
        reached.set()
        await asyncio.Event().wait()

    async def failing() -> AsyncGenerator[bytes, None]:
        for piece in list(cut(DATA, 50_000))[:step]:
            yield piece
        raise LookupError

    saving = asyncio.create_task(save(hanging(), tmp_path / "file"))
    await reached.wait()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    with pytest.raises(LookupError):
        await save(failing(), tmp_path / "file")
    assert names(tmp_path) == []
    assert open_descriptors() == before


async def test_a_save_cancelled_before_its_file_is_open_leaves_nothing(tmp_path: Path) -> None:
    before = open_descriptors()
    for turns in range(6):
        saving = asyncio.create_task(save(blocks(), tmp_path / "file"))
        for _ in range(turns):
            await asyncio.sleep(0)
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(0)
    assert open_descriptors() == before
