"""Small files that people name: read whole, and never waited for or read without bound."""

from __future__ import annotations

import errno
import os
import select
import stat
from pathlib import Path
from time import monotonic
from typing import Final

_MOST: Final = 1024 * 1024
_PATIENCE: Final = 5.0
"""Seconds for whoever writes into a pipe, such as the shell in `--config <(…)`."""
_BLOCK: Final = 64 * 1024
_BOM: Final = b"\xef\xbb\xbf"


def read_small(path: str | Path) -> bytes:
    """The content of a file or pipe, without a byte order mark. `OSError` if it cannot be had soon."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = _read(descriptor)
        if not data and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            raise OSError(errno.EPIPE, "it is a pipe that nobody writes into", str(path))
    finally:
        os.close(descriptor)
    return data.removeprefix(_BOM)


def _read(descriptor: int) -> bytes:
    data = bytearray()
    until = monotonic() + _PATIENCE
    while len(data) <= _MOST:
        try:
            block = os.read(descriptor, _BLOCK)
        except BlockingIOError:
            if not select.select([descriptor], [], [], max(0.0, until - monotonic()))[0]:
                raise OSError(errno.ETIMEDOUT, "nothing comes from it") from None
            continue
        if not block:
            return bytes(data)
        data += block
    raise OSError(errno.EFBIG, "it is larger than 1 MiB")
