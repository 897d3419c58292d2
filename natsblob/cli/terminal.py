"""What commands write, and where: results to stdout, everything else to stderr."""

from __future__ import annotations

import asyncio
import io
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from natsblob.cli.encoding import shown
from natsblob.cli.exits import FileError
from natsblob.client import Progress as Report
from natsblob.digest import Digest

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

_STDOUT: Final = 1
_BUFFER: Final = 32 * 1024
_WIDTH: Final = 120
"""Columns of text that no terminal breaks."""
_PATIENCE: Final = 0.4
"""Seconds before a progress bar appears: short work needs none."""
_UNITS: Final = (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))
_json = msgspec.json.Encoder(enc_hook=str)


class Stdout:
    """Standard output, written in a thread: whoever reads it may be slow, and the connection must live.

    Lines are gathered up to `_BUFFER` bytes; `flush` sends the rest. `BrokenPipeError` if the
    reader has gone, `FileError` if nothing can be written.
    """

    def __init__(self) -> None:
        if sys.stdout is None:  # its number may belong to a socket by now
            raise FileError("standard output is closed")
        self._lines = bytearray()

    @property
    def is_terminal(self) -> bool:
        return os.isatty(_STDOUT)

    async def write(self, data: bytes) -> None:
        await self.flush()
        await asyncio.to_thread(_write_all, data)

    async def line(self, text: str) -> None:
        """One line, whatever others call their things."""
        await self._add(shown(printable(text), sys.stdout))

    async def page(self, what: RenderableType) -> None:
        """Several lines, styled and as wide as the terminal; its texts are `printable` already."""
        await self._add(shown(_rendered(what), sys.stdout))

    async def record(self, value: Any) -> None:
        """One JSON object on one line, in UTF-8 whatever the locale."""
        await self._add(_json.encode(value))

    async def _add(self, line: bytes) -> None:
        self._lines += line + b"\n"
        if len(self._lines) >= _BUFFER:
            await self.flush()

    async def flush(self) -> None:
        if self._lines:
            lines, self._lines = bytes(self._lines), bytearray()
            await asyncio.to_thread(_write_all, lines)


def _write_all(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(_STDOUT, rest) :]
        except BlockingIOError:  # another process has set our pipe to be so
            select.select([], [_STDOUT], [])
        except BrokenPipeError:
            raise
        except OSError as error:
            raise FileError(f"standard output: {error.strerror}") from error


def say(text: str, *, style: str = "") -> None:
    """One line for people, on stderr: plain if that is no terminal or has no colours."""
    if sys.stderr is None:
        return
    text = printable(text)
    with suppress(OSError, ValueError):  # whoever read it has gone
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.text import Text

            Console(stderr=True, soft_wrap=True).print(Text(text, style=style))
        else:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def _rendered(what: RenderableType) -> str:
    from rich.console import Console

    terminal = os.isatty(_STDOUT)
    width = os.get_terminal_size(_STDOUT).columns if terminal else _WIDTH
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width or _WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(what)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def complain(message: str, advice: str = "") -> None:
    """What happened, in one line, and what is safe and to be done next."""
    say(f"natsblob: {' '.join(message.splitlines())}", style="red")
    if advice:
        say(f"  {advice}")


def printable(text: str) -> str:
    """The text without what would steer a terminal or begin a line: others choose names and messages."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def text_of(name: str | Path) -> str:
    """The name of a file as JSON can have it: names are bytes, and not all of them are text."""
    return os.fsencode(name).decode(errors="replace")


def bytes_of(size: int) -> str:
    """A size to read, not to compute with."""
    return next((f"{size / factor:.1f} {unit}" for unit, factor in _UNITS if size >= factor), f"{size} B")


def short(digest: Digest) -> str:
    return f"{digest.short}…"


@contextmanager
def progress(label: str, *, wanted: bool) -> Iterator[Report | None]:
    """A bar on stderr while the context lasts; nothing if that is no terminal, or not `wanted`."""
    if not wanted or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    bar = _Bar(printable(label))
    try:
        yield bar.report
    finally:
        bar.close()


class _Bar:
    """A progress bar that appears when the work has taken a moment."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._appears_at = time.monotonic() + _PATIENCE
        self._shown: tuple[Progress, TaskID] | None = None

    def report(self, done: int, total: int | None) -> None:
        if self._shown is None:
            if time.monotonic() < self._appears_at:
                return
            self._shown = _show(self._label)
        bar, task = self._shown
        bar.update(task, completed=done, total=total)

    def close(self) -> None:
        if self._shown is not None:
            self._shown[0].stop()


def _show(label: str) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    return bar, bar.add_task(str(Text(label)), total=None)
