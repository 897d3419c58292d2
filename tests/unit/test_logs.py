"""What a program that uses natsblob as a library sees of its logs: nothing, unless it asks."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from natsblob.logs import Event, configure_logging, get_logger

LOGS = """
import natsblob
from natsblob.logs import get_logger
for level in ("debug", "info", "warning", "error"):
    getattr(get_logger("natsblob.part"), level)("event", field=1)
"""
GLOBALS = """
import asyncio, logging, signal, sys, warnings
def state():
    root = logging.getLogger()
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    hooks = (sys.excepthook, sys.unraisablehook, sys.stdout, sys.stderr, asyncio.get_event_loop_policy())
    return list(root.handlers), root.level, logging.getLoggerClass(), handlers, list(warnings.filters), hooks
before = state()
import natsblob
assert state() == before
assert "structlog" not in sys.modules and "rich" not in sys.modules
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_nothing_is_written_unless_the_program_configures_logging() -> None:
    ran = run(LOGS)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_events_go_where_the_program_sends_its_logs() -> None:
    ran = run(f"import logging; logging.basicConfig(format='%(name)s %(module)s %(message)s'){LOGS}")
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == ["natsblob.part <string> event field=1"] * 2


def test_importing_natsblob_changes_nothing_in_the_process() -> None:
    ran = run(GLOBALS)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_a_field_cannot_begin_a_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("natsblob.part").warning("event", reason="one\ntwo")
    (message,) = caplog.messages
    assert "\n" not in message


def test_an_exception_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError
    except ValueError:
        get_logger("natsblob.part").exception("event")
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.msg, Event)


def test_logging_with_standard_error_closed_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # pytest's own, which configure_logging would close
    monkeypatch.setattr(sys, "stderr", None)
    try:
        configure_logging()
        get_logger("natsblob.part").error("event")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("natsblob").setLevel(logging.NOTSET)
