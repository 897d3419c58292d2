"""Running a command to its exit code, whatever happens to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NoReturn, TypeAlias

from natsblob.broker.allocator import keep_memory
from natsblob.broker.loop import loop_factory
from natsblob.cli.exits import Exit, meaning_of
from natsblob.cli.terminal import complain
from natsblob.errors import BlobError

Command: TypeAlias = Callable[[], Coroutine[Any, Any, Exit | None]]


def run(command: Command) -> Exit:
    """The exit code of a command. What goes wrong is told on stderr in a line or two, without a traceback."""
    try:
        keep_memory()
        # Not closed: that would wait for a thread that reads a terminal or writes to a stopped pipe.
        runner = asyncio.Runner(loop_factory=loop_factory())
        return runner.run(_interruptible(command)) or Exit.OK
    except (KeyboardInterrupt, asyncio.CancelledError):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        complain("interrupted", "What is stored is safe, and repeating this is.")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return Exit.BROKEN_PIPE
    except SystemExit as left:  # how pages of help end
        return Exit.BROKEN_PIPE if isinstance(left.__context__, BrokenPipeError) else Exit.FAILURE
    except BlobError as error:
        return told(error)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        complain(what)
        return Exit.FAILURE
    except Exception as error:  # noqa: BLE001 - the last resort: people are told, never shown a traceback
        complain(
            f"this is a defect of natsblob: {type(error).__name__}",
            "What is stored is safe. NATSBLOB_LOG_LEVEL=debug shows more, for a report.",
        )
        if os.environ.get("NATSBLOB_LOG_LEVEL") == "debug":
            traceback.print_exception(error)
        return Exit.FAILURE


async def _interruptible(command: Command) -> Exit | None:
    """Let an interrupt cancel the command, which tidies up, and a second one end the process at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if interrupted or task is None:
            os._exit(Exit.INTERRUPTED)
        interrupted = True
        loop.call_soon_threadsafe(task.cancel)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        return await command()
    finally:
        signal.signal(signal.SIGINT, before)


def told(error: BlobError) -> Exit:
    """Tell about an error on stderr; the exit code for it."""
    meaning = meaning_of(error)
    complain(error.message, meaning.advice)
    return meaning.exit


def leave(code: int) -> NoReturn:
    """End the process now. Everything that matters is closed; a thread may hang in a read or a write."""
    code = code or _flushed()
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
    os._exit(code)


def _flushed() -> int:
    """Write what help and the like have left in standard output; the exit code for how that went."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        return Exit.BROKEN_PIPE
    except (OSError, ValueError) as error:
        complain(f"standard output: {getattr(error, 'strerror', None) or error}")
        return Exit.FAILURE
    return Exit.OK
