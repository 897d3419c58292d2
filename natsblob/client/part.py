"""The file in which a download is collected: nobody else's, and given its name once it is complete.

Its name can be told beforehand, so that a later download goes on from there. Whatever else has that name (a
link, a file of another user, one that has further names) is left alone, and a name that nobody can tell is
used instead; so is one on file systems without locks. Blocking, for use in threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from hashlib import sha256
from secrets import token_hex
from typing import Final, NamedTuple

from natsblob.client.target import FileTarget, naming
from natsblob.digest import Digest
from natsblob.errors import ConflictError
from natsblob.logs import get_logger

_OPEN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
_NO_MODES: Final = {errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
_NO_SYNC: Final = {errno.EINVAL, errno.ENOTSUP}
_TRIES: Final = 16
"""Times that a file may be replaced while it is opened, before its name is given up."""
_PERMISSIONS: Final = 0o777
_OWNERS: Final = 0o600
_log = get_logger("natsblob.client")


class _Opened(NamedTuple):
    file: int
    name: str
    kept: bool
    """Whether an interrupted download leaves it for the next one."""


class PartFile:
    """The file, open. `ConflictError` if another download is writing it."""

    def __init__(self, target: FileTarget, digest: Digest | None) -> None:
        """`digest` is that of the whole blob; without one the file cannot be found again."""
        self._target = target
        try:
            self._file, self._name, self.kept = _open(target, digest)
        except OSError as error:
            reason = f"no file can be made beside it ({error.strerror})"
            raise OSError(error.errno, reason, target.path) from error

    @property
    def length(self) -> int:
        return os.fstat(self._file).st_size

    def read(self, most: int, offset: int) -> bytes:
        with naming(self._target.path):
            return os.pread(self._file, most, offset)

    def write(self, data: bytes, offset: int) -> None:
        rest = memoryview(data)
        with naming(self._target.path):
            while rest:
                written = os.pwrite(self._file, rest, offset)
                rest, offset = rest[written:], offset + written

    def truncate(self, length: int) -> None:
        with naming(self._target.path):
            os.ftruncate(self._file, length)

    def become(self) -> None:
        """Make the bytes durable, and then give the file its name in place of whatever had it."""
        with naming(self._target.path):
            synced = self._sync()
            self._dress()
            self._confirm(self._name)
            self._rename()
            self._confirm(self._target.name)
            self.kept = True
            if not (self._target.sync() and synced):
                _log.warning("download.not_durable", reason="this file system cannot be synced")

    def remove(self) -> None:
        """Take the file away, if it is still under its own name."""
        with suppress(OSError):
            self._confirm(self._name)
            os.unlink(self._name, dir_fd=self._target.directory)

    def close(self) -> None:
        os.close(self._file)

    def _rename(self) -> None:
        directory = self._target.directory
        try:
            os.rename(self._name, self._target.name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise OSError(error.errno, "is mounted by itself, and so cannot be replaced") from error

    def _sync(self) -> bool:
        try:
            os.fsync(self._file)
        except OSError as error:
            if error.errno in _NO_SYNC:
                return False
            raise
        return True

    def _dress(self) -> None:
        """Give the file the owner and the mode of the one that it replaces, as far as that can be had."""
        before = self._target.before
        if before is None:
            return
        with suppress(OSError):  # root alone may give files away
            os.fchown(self._file, before.st_uid, before.st_gid)
        try:
            os.fchmod(self._file, stat.S_IMODE(before.st_mode) & _PERMISSIONS)
        except OSError as error:
            if error.errno not in _NO_MODES:
                raise

    def _confirm(self, name: str) -> None:
        """Make sure that the name is that of the file: others may write to the directory."""
        found = os.stat(name, dir_fd=self._target.directory, follow_symlinks=False)
        if not os.path.samestat(found, os.fstat(self._file)):
            raise OSError(
                errno.ESTALE, "somebody else has replaced the file meanwhile; nothing more was done"
            )


def part_name(name: str, digest: Digest, longest: int) -> str:
    """What the part of a blob is called beside the file `name`; as long as a name may be."""
    plain = f".{name}.{digest.short}.part"
    if len(os.fsencode(plain)) <= longest:
        return plain
    return f".{sha256(os.fsencode(name)).hexdigest()[:32]}.{digest.short}.part"


def _open(target: FileTarget, digest: Digest | None) -> _Opened:
    if digest is not None:
        found = _open_known(target, part_name(target.name, digest, target.longest_name))
        if found is not None:
            return found
    name = f".natsblob.{token_hex(12)}.part"
    return _Opened(_create(target, name), name, kept=False)


def _open_known(target: FileTarget, name: str) -> _Opened | None:
    """The file of that name, new or as an earlier download left it; `None` if it is not to be used."""
    for _ in range(_TRIES):
        try:
            file, created = _create(target, name), True
        except FileExistsError:
            try:
                file, created = os.open(name, _OPEN, dir_fd=target.directory), False
            except FileNotFoundError:
                continue
            except OSError:
                break
        try:
            usable = (created or _ours(target, os.fstat(file))) and _locked(file, target)
            if usable and _is(target, name, file):
                return _Opened(file, name, kept=True)
            if created and not usable:
                os.unlink(name, dir_fd=target.directory)
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        if not usable:
            break
    return None


def _create(target: FileTarget, name: str) -> int:
    """A new file. One that replaces a file is at no time open to more people than that one."""
    mode = 0o666 if target.before is None else _OWNERS
    return os.open(name, _OPEN | os.O_CREAT | os.O_EXCL, mode, dir_fd=target.directory)


def _ours(target: FileTarget, found: os.stat_result) -> bool:
    """Whether a download of this user left the file, and nobody else can reach it elsewhere."""
    allowed = _PERMISSIONS if target.before is None else target.before.st_mode | _OWNERS
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_uid == os.geteuid()
        and found.st_nlink == 1
        and not stat.S_IMODE(found.st_mode) & ~allowed
    )


def _locked(file: int, target: FileTarget) -> bool:
    """Whether the file is locked now; false if there are no locks here."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConflictError(f"another download of this blob to {target.path} is running") from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _is(target: FileTarget, name: str, file: int) -> bool:
    """Whether the name is still that of the file: who held the lock before may have renamed it."""
    with suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=target.directory, follow_symlinks=False)
        return os.path.samestat(found, os.fstat(file))
    return False
