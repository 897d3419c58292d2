"""A disk that loses its power, fills up or fails: an ext4 file system in an image, on a loop device."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

MIB: Final = 1024 * 1024
# <linux/fs.h> and fs/ext4: what xfstests use to cut the power of a file system.
_EXT4_IOC_SHUTDOWN: Final = 0x8004587D
_WITHOUT_FLUSHING: Final = struct.pack("I", 2)


async def run(*command: str | Path) -> None:
    """Run a command to its end; `OSError` with what it said where it fails."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {said.decode(errors='replace').strip()}")


class Disk:
    """A file system of `size` MiB that is mounted at `place`."""

    def __init__(self, image: Path, place: Path, size: int) -> None:
        self._image = image
        self.place = place
        self._size = size
        self._filler = place / "filler"

    async def make(self) -> None:
        with self._image.open("wb") as file:
            file.truncate(self._size * MIB)
        await run("mkfs.ext4", "-q", "-m", "0", self._image)
        self.place.mkdir(parents=True)
        await self.mount()

    async def mount(self) -> None:
        await run("mount", "-o", "loop", self._image, self.place)

    async def unmount(self) -> None:
        await run("umount", self.place)

    def fail(self) -> None:
        """From now on calls on this file system fail with an input/output error, and nothing is written.

        What was not yet on its way to the disk never gets there.
        """
        place = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(place, _EXT4_IOC_SHUTDOWN, _WITHOUT_FLUSHING)
        finally:
            os.close(place)

    async def turn_read_only(self) -> None:
        """What ext4 does when it finds itself damaged: writing fails, reading does not."""
        await run("mount", "-o", "remount,abort", self.place)

    async def replace(self) -> None:
        """Mount again, with its journal replayed. Nobody may use the file system."""
        await self.unmount()
        await self.mount()

    async def cut_power(self) -> None:
        """What was flushed is there afterwards, and nothing else. The server has to be dead.

        The image is copied before the file system is unmounted, so that what only the kernel's memory has
        is not in the copy, whatever unmounting might still write. Between the two nothing is written.
        """
        self.fail()
        copy = self._image.with_suffix(".copy")
        await run("cp", "--sparse=always", "--reflink=never", self._image, copy)
        await self.unmount()
        copy.replace(self._image)
        await self.mount()

    def fill(self) -> None:
        """Take all the room that is left."""
        with self._filler.open("ab") as file:
            size = MIB
            while size:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
                except OSError:
                    size //= 2

    def empty(self) -> None:
        """Give the room back."""
        self._filler.unlink()
