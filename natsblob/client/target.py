"""Where downloaded bytes go: a file that is replaced when they are complete, or a pipe or a device.

A path is understood as `cp` does: a link leads to what is written, a FIFO or a device gets the bytes, and an
existing file keeps its mode. Blocking, for use in threads, but for what is awaited.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

from natsblob.broker.cleanup import acquired, shielded

_READER_SECONDS: Final = 0.05
"""After which a FIFO that nobody reads is looked at again: nothing tells of a reader."""
_LOOK_UP_MS: Final = 200
"""Milliseconds after which a thread that waits for a slow reader looks whether it is still wanted."""
_ATOMIC: Final = select.PIPE_BUF
"""Bytes that a pipe takes at once if it takes any."""
_ANY: Final = 2**30
_LINKS: Final = 40
_NO_SYNC: Final = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EROFS}
"""A directory cannot be synced here, or may not be read by this user. Anything else is a failing disk."""
_NAME_MAX: Final = 255


class FileTarget(NamedTuple):
    """A regular file, there already or not, in a directory that is held open and so cannot be exchanged."""

    path: str
    """As it is shown."""
    directory: int
    name: str
    before: os.stat_result | None
    """What the file is now."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.directory)

    @property
    def longest_name(self) -> int:
        """Bytes that a name in the directory may have."""
        with suppress(OSError):
            return max(1, os.fpathconf(self.directory, "PC_NAME_MAX"))
        return _NAME_MAX

    def sync(self) -> bool:
        """Wait until the names in the directory are durable; false if this cannot be had here."""
        try:
            os.fsync(self.directory)
        except OSError as error:
            if error.errno in _NO_SYNC:
                return False
            reason = f"is complete, and may be lost if the power fails now: {error.strerror}"
            raise OSError(error.errno, reason) from error
        return True


class StreamTarget:
    """A FIFO, a device or a descriptor that the process was given: what went in cannot be taken back."""

    def __init__(self, path: str, *, descriptor: int | None = None) -> None:
        self.path = path
        self._given = descriptor
        self._file: int | None = None
        self._piece = _ATOMIC

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)

    async def open(self) -> None:
        """Open it; a FIFO when somebody reads from it."""
        if self._given is not None:
            self._file = os.dup(self._given)
            return
        while True:
            self._file = await acquired(self._open, _close)
            if self._file is not None:
                return
            await asyncio.sleep(_READER_SECONDS)

    def _open(self) -> int | None:
        """The file, open; `None` if it is a FIFO that nobody reads from."""
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO and Path(self.path).is_fifo():
                return None
            raise
        if stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(errno.ESTALE, "was replaced by a file meanwhile", self.path)
        self._piece = _ANY
        return file

    async def write(self, data: bytes) -> None:
        """Write all of `data`; `BrokenPipeError` if the reader has gone."""
        if self._file is None:
            raise ValueError("not open")
        rest = memoryview(data)
        while rest:
            writing = asyncio.ensure_future(asyncio.to_thread(self._write_some, self._file, rest))
            try:
                rest = rest[await asyncio.shield(writing) :]
            finally:
                await shielded(asyncio.wait([writing]))  # the file must not be closed under the thread

    async def finish(self) -> None:
        """Wait until a device has the bytes."""
        if self._file is None:
            return
        try:
            with naming(self.path):
                await asyncio.to_thread(os.fsync, self._file)
        except OSError as error:
            if error.errno not in _NO_SYNC:  # a pipe has nothing to sync
                raise

    def _write_some(self, file: int, data: memoryview) -> int:
        """Write what can be written at once; how much that was."""
        written = 0
        timeout = _LOOK_UP_MS
        with naming(self.path):
            while written < len(data) and _writable(file, timeout):
                timeout = 0
                try:
                    written += os.write(file, data[written : written + self._piece])
                except BlockingIOError:
                    break
        return written


def target_of(given: str | os.PathLike[str]) -> FileTarget | StreamTarget:
    """What the path leads to, which is left as it is. `OSError` with the path if it cannot be written.

    To be used as a context, which closes it.
    """
    path = os.fspath(given)
    number = _descriptor(path)
    if number is not None:
        return StreamTarget(path, descriptor=number)
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return _new_file(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory; name the file to write to", path)
    if path.endswith(os.sep):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    if stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.ENXIO, "is a socket, which cannot be written to as a file", path)
    if not stat.S_ISREG(found.st_mode):
        return StreamTarget(path)
    _confirm_writable(path)
    real = Path(path).resolve()
    target = FileTarget(path, _open_directory(str(real.parent), path), real.name, found)
    with _closing_on_error(target):
        if not os.path.samestat(found, os.stat(real.name, dir_fd=target.directory, follow_symlinks=False)):
            raise OSError(errno.ESTALE, "was replaced while it was looked at", path)
    return target


def _close(file: int | None) -> None:
    if file is not None:
        os.close(file)


def _confirm_writable(path: str) -> None:
    """Raise what writing to the file would, although it is replaced: it may be protected on purpose."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.ETXTBSY:  # a program that runs can be replaced
            raise


def _new_file(path: str) -> FileTarget:
    head, name = os.path.split(path)
    if Path(path).is_symlink():
        raise FileNotFoundError(errno.ENOENT, "is a link that leads nowhere", path)
    if name in ("", os.curdir, os.pardir):
        raise FileNotFoundError(errno.ENOENT, "there is no such directory", path)
    target = FileTarget(path, _open_directory(head or os.curdir, path), name, None)
    with _closing_on_error(target):
        if len(os.fsencode(name)) > target.longest_name:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    return target


def _open_directory(directory: str, path: str) -> int:
    """A descriptor of the directory; one that may be written but not read cannot be synced, and is enough."""
    try:
        try:
            return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, f"there is no directory {directory}", path) from error


@contextmanager
def _closing_on_error(target: FileTarget) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(target.directory)
        raise


def _descriptor(path: str) -> int | None:
    """Which descriptor of this process, that it was started with, a path such as /dev/stdout leads to.

    What the process opened itself is not inherited: no link leads into one of its connections.
    """
    ours = (Path(f"/proc/{os.getpid()}/fd"), Path("/dev/fd"))
    link = Path(path)
    for _ in range(_LINKS):
        if link.name.isdecimal() and link.parent.resolve() in ours:
            with suppress(OSError, OverflowError):
                return int(link.name) if os.get_inheritable(int(link.name)) else None
            return None
        try:
            link = link.parent / link.readlink()
        except OSError:
            return None
    return None


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Have errors of the system name the file as its user does."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _writable(file: int, timeout_ms: int) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    return bool(poll.poll(timeout_ms))
