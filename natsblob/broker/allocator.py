"""How the C library keeps memory, in processes that are natsblob's own.

By default glibc gives the pages of every freed chunk back to the kernel, and takes new ones for the
next, which the kernel clears first: a quarter of a CPU second for each GiB that passes
(docs/performance.md).
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEEP: Final = 64 * 1024 * 1024
"""Bytes of free memory at the end of the heap that are kept."""
_LARGE: Final = 4 * 1024 * 1024
"""Bytes from which a block is mapped for itself."""


def keep_memory() -> None:
    """Reuse the memory of chunks instead of returning it. Does nothing but on Linux with glibc."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_TRIM_THRESHOLD, _KEEP)
            mallopt(_M_MMAP_THRESHOLD, _LARGE)
