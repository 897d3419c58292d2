"""A directory that holds blobs: what marks it, where its files lie, and the lock that its processes share.

    natsblob.json              the descriptor: format, identity and chunk size of the volume
    natsblob.lock              held for the moment in which a name of a blob appears, moves or goes
    blobs/ab/cd/abcd…          one file for each blob, named by its digest, with exactly its bytes
    staging/                   puts in flight, each locked by its writer
    quarantine/                a file for each blob that was found to be bad, until a put heals the blob

Every path is relative to a descriptor of the directory that is opened once: another file system that
is mounted there later is never mistaken for this one. Nothing here is async; callers bring threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Final
from uuid import UUID, uuid4

import msgspec

from natsblob.digest import Digest
from natsblob.errors import BlobError, InsufficientStorageError, SetupError, UnavailableError
from natsblob.logs import get_logger

FORMAT: Final = 1
DESCRIPTOR: Final = PurePosixPath("natsblob.json")
BLOBS: Final = PurePosixPath("blobs")
STAGING: Final = PurePosixPath("staging")
QUARANTINE: Final = PurePosixPath("quarantine")

_ROOT: Final = PurePosixPath()
_LOCK: Final = PurePosixPath("natsblob.lock")
_DRAFT: Final = PurePosixPath("natsblob.json.new")
_UNBORN: Final = {_LOCK.name, _DRAFT.name, "lost+found"}
"""What a directory may hold before it is a volume: traces of another opening, and a fresh ext4."""
_OWN: Final = _UNBORN | {DESCRIPTOR.name, BLOBS.name, STAGING.name, QUARANTINE.name}
_FILE_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
_NO_FILE: Final = {errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV}
"""What opening a link, a pipe without a reader, a socket, a directory or a device fails with."""
_STAGED: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NO_VOLUME: Final = "mount the disk that belongs there, or have a new volume made there by --create-disk"
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LACKING: Final = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK}
_DESCRIPTOR_SIZE: Final = 64 * 1024
"""Bytes of a descriptor that are looked at."""

_log = get_logger(__name__)


class Descriptor(msgspec.Struct, frozen=True):
    """What `natsblob.json` says of a volume."""

    format: int
    volume: UUID
    chunk_size: Annotated[int, msgspec.Meta(ge=1)]
    """Bytes. Fixed for good, so that all workers on the volume number its chunks alike."""


def translate(error: OSError) -> BlobError:
    """What an error of the operating system means to whoever asked for a blob."""
    reason = errno.errorcode.get(error.errno or 0, "unknown")
    if error.errno in _FULL:
        return InsufficientStorageError(
            "the volume is full, or files may not be so large; nothing was stored. "
            "Free space or raise the quota, then repeat",
            reason=reason,
        )
    return UnavailableError(
        f"the volume cannot be used for now ({reason}); what it has acknowledged is untouched. "
        "Check the disk, its mount and its permissions, then repeat",
        reason=reason,
    )


class Volume:
    """An opened volume.

    With `create`, a directory that is missing or empty becomes a volume with this `chunk_size`; without it
    that is refused, since it may be where a disk is to be mounted. Given an `identity`, any other volume
    is refused. `SetupError` if the directory cannot be used.
    """

    def __init__(
        self, directory: Path, *, chunk_size: int, create: bool = True, identity: UUID | None = None
    ) -> None:
        self._create = create and identity is None
        try:
            if self._create:
                _make_directories(directory)
            elif not directory.exists():
                raise SetupError(f"there is no directory {directory}: {_NO_VOLUME}")
            self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self.descriptor = self._open(directory, chunk_size, identity)
                self._collect()
            except BaseException:
                os.close(self._root)
                raise
        except OSError as error:
            lacking = "; volumes need locks, and directories that can be synced to disk"
            raise SetupError(
                f"{directory} cannot be used as a volume: {error.strerror}"
                f"{lacking if error.errno in _LACKING else ''}"
            ) from error

    def close(self) -> None:
        """Let go of the directory. No other method may be running, or be called later."""
        os.close(self._root)

    def blob(self, digest: Digest) -> PurePosixPath:
        """Where the file of a blob is, relative to the volume."""
        name = digest.hex
        return BLOBS / name[:2] / name[2:4] / name

    def open(self, path: PurePosixPath) -> int:
        """A descriptor to read from; `FileNotFoundError` unless it is a file."""
        return self._open_file(path, os.O_RDONLY)

    def stat(self, path: PurePosixPath) -> os.stat_result:
        """What is known of a file; `FileNotFoundError` if there is none, or something else."""
        return _of_file(os.stat(path, dir_fd=self._root, follow_symlinks=False))

    def _open_file(self, path: PurePosixPath, mode: int) -> int:
        """Open a file, and nothing that a thread could wait in: a pipe, a device, or a link to one."""
        try:
            file = os.open(path, mode | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=self._root)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise FileNotFoundError(errno.ENOENT, "not a file") from error
            raise
        try:
            _of_file(os.fstat(file))
        except BaseException:
            os.close(file)
            raise
        return file

    def exists(self, path: PurePosixPath) -> bool:
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def confirm(self) -> None:
        """Make sure that a name was not found in a volume that is still there, not in its remains."""
        if not self.exists(DESCRIPTOR):
            raise UnavailableError("the volume has lost its descriptor; what it holds cannot be told")

    def names(self, path: PurePosixPath) -> list[str]:
        """What a directory of the volume holds, in order; nothing if it does not exist."""
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            with os.scandir(directory) as entries:
                return sorted(entry.name for entry in entries)
        finally:
            os.close(directory)

    def stage(self, name: str) -> int:
        """A new file in `staging`, open for writing and locked until it is closed."""
        path = STAGING / name
        while True:
            staged = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _FILE_MODE, dir_fd=self._root)
            try:
                fcntl.flock(staged, fcntl.LOCK_EX)
                if os.fstat(staged).st_nlink:
                    return staged
            except BaseException:
                os.close(staged)
                self.unlink(path)
                raise
            os.close(staged)  # collected by another process before it was locked

    def rename(self, path: PurePosixPath, target: PurePosixPath) -> None:
        """Move a file; directories above `target` that are missing are made."""
        try:
            self._rename(path, target)
        except FileNotFoundError:
            self.make_directory(target.parent.parent)
            self.make_directory(target.parent)
            self._rename(path, target)
        except IsADirectoryError:
            obstacle = QUARANTINE / f"{target.name}.{uuid4().hex[:8]}"
            self._rename(target, obstacle)
            _log.warning("directory in place of a file", file=str(target), moved_to=str(obstacle))
            self._rename(path, target)

    def _rename(self, path: PurePosixPath, target: PurePosixPath) -> None:
        os.rename(path, target, src_dir_fd=self._root, dst_dir_fd=self._root)

    def forget_bad(self, digest: Digest) -> None:
        """Remove the bad file of a blob that is good again: this keeps the quarantine within bounds."""
        with suppress(FileNotFoundError):
            self.unlink(QUARANTINE / digest.hex)

    def make_directory(self, path: PurePosixPath) -> None:
        with suppress(FileExistsError):
            os.mkdir(path, _DIRECTORY_MODE, dir_fd=self._root)

    def unlink(self, path: PurePosixPath) -> None:
        os.unlink(path, dir_fd=self._root)

    def sync(self, path: PurePosixPath) -> None:
        """Wait until the names in a directory of the volume are durable."""
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude every other thread and process from changing which blobs there are."""
        lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _FILE_MODE, dir_fd=self._root)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _open(self, directory: Path, chunk_size: int, identity: UUID | None) -> Descriptor:
        if not self.exists(DESCRIPTOR):
            self._refuse_unless_new(directory, identity, _OWN)
        with self.lock():
            if not self.exists(DESCRIPTOR):
                self._refuse_unless_new(directory, identity, _UNBORN)
                self._initialise(chunk_size)
        descriptor = self._read_descriptor(directory)
        if identity is not None and descriptor.volume != identity:
            raise SetupError(
                f"{directory} holds the volume {descriptor.volume} and not {identity}; "
                "is the right disk mounted?"
            )
        for name in (BLOBS, STAGING, QUARANTINE):
            self.make_directory(name)
        self.sync(_ROOT)
        return descriptor

    def _refuse_unless_new(self, directory: Path, identity: UUID | None, expected: set[str]) -> None:
        if identity is not None:
            raise SetupError(f"{directory} is not the volume {identity}: is the right disk mounted?")
        if set(self.names(_ROOT)) - expected:
            raise SetupError(
                f"{directory} is not empty and has no {DESCRIPTOR}: choose an empty directory, "
                "or mount the volume that belongs there"
            )
        if not self._create:
            raise SetupError(f"{directory} is empty: {_NO_VOLUME}")

    def _initialise(self, chunk_size: int) -> None:
        descriptor = Descriptor(format=FORMAT, volume=uuid4(), chunk_size=chunk_size)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        draft = os.open(_DRAFT, flags, _FILE_MODE, dir_fd=self._root)
        try:
            write_all(draft, msgspec.json.format(msgspec.json.encode(descriptor)) + b"\n")
            os.fsync(draft)
        finally:
            os.close(draft)
        self.rename(_DRAFT, DESCRIPTOR)
        self.sync(_ROOT)

    def _read_descriptor(self, directory: Path) -> Descriptor:
        with os.fdopen(self.open(DESCRIPTOR), "rb") as file:
            text = file.read(_DESCRIPTOR_SIZE)
        try:
            descriptor = msgspec.json.decode(text, type=Descriptor)
        except msgspec.MsgspecError as error:
            raise SetupError(f"{directory / DESCRIPTOR} cannot be read: {error}") from error
        if descriptor.format != FORMAT:
            raise SetupError(
                f"{directory} has format {descriptor.format} and this version reads {FORMAT}; "
                "use the version that wrote it"
            )
        return descriptor

    def _collect(self) -> None:
        """Remove what writers that died have left in `staging`: the lock of a living one is held."""
        for name in filter(_STAGED.fullmatch, self.names(STAGING)):
            path = STAGING / name
            try:
                staged = self._open_file(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(staged, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.unlink(path)
                _log.info("stale upload collected", name=name)
            except (BlockingIOError, FileNotFoundError):
                continue
            finally:
                os.close(staged)


def _of_file(status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a file")
    return status


def write_all(file: int, data: bytes) -> None:
    """Write all of `data` at the position of the descriptor."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _make_directories(directory: Path) -> None:
    """Make `directory` and what is missing above it, and wait until their names are durable."""
    if directory.is_dir():
        return
    _make_directories(directory.parent)
    with suppress(FileExistsError):
        directory.mkdir(_DIRECTORY_MODE)
    parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
