"""The files of single blobs: one that is read and verified, and one that a put is writing.

Blocking, for use in threads. A task that is cancelled leaves its thread at work, so each of these has a
lock: whoever closes the file waits for the thread that uses it, and what comes later finds it closed.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Final
from uuid import uuid4
from zlib import crc32

from natsblob.digest import Digest, Hasher
from natsblob.errors import BlobCorruptError, BlobNotFoundError, DigestMismatchError, UnavailableError
from natsblob.logs import get_logger
from natsblob.store.disk.sums import Identity, Sums
from natsblob.store.disk.volume import QUARANTINE, STAGING, Volume, write_all

_READ_SIZE: Final = 1024 * 1024
_log = get_logger(__name__)


def read_small(volume: Volume, digest: Digest, limit: int, verify: bool) -> bytes | None:
    """The bytes of a blob that has at most `limit`, checked with `verify`; `None` if it has more."""
    blob = StoredBlob(volume, digest)
    try:
        blob.open()
        if blob.identity.size > limit:
            return None
        data = blob.read(0, blob.identity.size)
        if verify and Digest.of(data) != digest:
            raise blob.condemn()
        return data
    finally:
        blob.close()


class StoredBlob:
    """An open file of a blob. One thread at a time uses it, and `close` waits for that one."""

    def __init__(self, volume: Volume, digest: Digest) -> None:
        self._volume = volume
        self._digest = digest
        self._lock = threading.Lock()
        self._file: int | None = None
        self.identity: Identity

    def open(self) -> None:
        with self._lock:
            try:
                self._file = self._volume.open(self._volume.blob(self._digest))
            except FileNotFoundError:
                self._volume.confirm()
                raise BlobNotFoundError("no such blob") from None
            self.identity = self._identify(os.fstat(self._file))

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            if self._file is None:
                raise UnavailableError("the reader was closed")
            data = os.pread(self._file, length, offset)
        if len(data) != length:
            raise BlobCorruptError("the stored file became shorter while it was read")
        return data

    def verify(self, stop: threading.Event, piece: int) -> Sums | None:
        """The sums of the file's pieces, once it was read to its end; `BlobCorruptError` if it is not good.

        `None` if the reader had gone before this began, or `stop` was set. A bad file is moved to
        the quarantine, so that the next put of the digest heals the blob.
        """
        with self._lock:
            if self._file is None:
                return None
            file = os.dup(self._file)  # the reader may go while this is under way
        try:
            digest, sums = self._read_whole(file, stop, piece)
        finally:
            os.close(file)
        if stop.is_set():
            return None
        if digest == self._digest:
            return Sums(piece, sums)
        raise self.condemn()

    def _read_whole(self, file: int, stop: threading.Event, piece: int) -> tuple[Digest, array[int]]:
        hasher = Hasher()
        sums = array("I")
        block = memoryview(bytearray(max(1, min(_READ_SIZE, piece, self.identity.size))))
        value = 0
        while hasher.size <= self.identity.size and not stop.is_set():
            length = os.preadv(file, [block[: piece - hasher.size % piece]], hasher.size)
            if not length:
                break
            data = block[:length]
            hasher.update(data)
            value = crc32(data, value)
            if hasher.size % piece == 0:
                sums.append(value)
                value = 0
        if hasher.size % piece:
            sums.append(value)
        return hasher.digest(), sums

    def condemn(self) -> BlobCorruptError:
        """Put the file aside for good, and say so."""
        with suppress(OSError):  # on a read-only disk it stays, and is refused again at the next reading
            self._quarantine()
        return BlobCorruptError(
            "the stored bytes are not those of the digest; none were delivered. "
            "The file was put aside: put the blob again to heal it"
        )

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _quarantine(self) -> None:
        path = self._volume.blob(self._digest)
        target = QUARANTINE / self._digest.hex
        with self._volume.lock():
            if self._identify(self._volume.stat(path)) != self.identity:
                return  # healed by a put meanwhile
            self._volume.rename(path, target)
        self._volume.sync(QUARANTINE)
        self._volume.sync(path.parent)
        _log.error("corrupt blob quarantined", digest=self._digest.hex, file=str(target))

    def _identify(self, status: os.stat_result) -> Identity:
        return Identity(self._digest, status.st_ino, status.st_mtime_ns, status.st_size)


class StagedBlob:
    """The file of a put in flight. One thread at a time uses it, and `discard` waits for that one."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._name = uuid4().hex
        self._lock = threading.Lock()
        self._file: int | None = None
        self._hasher = Hasher()
        self.closed = False

    def write(self, pieces: Sequence[bytes]) -> None:
        data = b"".join(pieces)
        with self._lock:
            if self.closed:
                raise UnavailableError("the put was given up")
            if self._file is None:
                self._file = self._volume.stage(self._name)
            write_all(self._file, data)
            self._hasher.update(data)

    def finish(self, expected: Digest | None) -> Digest:
        """Check what was written, and wait until it is durable."""
        with self._lock:
            if self._file is None:
                raise UnavailableError("the put was given up")
            digest = self._hasher.digest()
            if expected is not None and expected != digest:
                raise DigestMismatchError
            if os.fstat(self._file).st_size != self._hasher.size:
                raise UnavailableError("the disk has not kept what was written; nothing was stored")
            os.fsync(self._file)
            return digest

    def move(self, path: PurePosixPath) -> None:
        """Give the file its name; it stays locked until then, so that nobody takes it for stale."""
        with self._lock:
            self._volume.rename(STAGING / self._name, path)
            self._close()

    def discard(self) -> None:
        with self._lock:
            if self._file is not None:
                with suppress(OSError):  # what cannot be removed now is collected at the next opening
                    self._volume.unlink(STAGING / self._name)
            self._close()

    def _close(self) -> None:
        self.closed = True
        if self._file is not None:
            os.close(self._file)
            self._file = None
