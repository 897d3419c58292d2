"""Being asked to stop, and being asked again while tidying up."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

DEADLINE = 60.0

COMMAND = """
import asyncio
from natsblob.cli.running import leave, run

async def stubborn():
    try:
        print("begun", flush=True)
        await asyncio.sleep(3600)
    finally:
        print("tidying", flush=True)
        await asyncio.sleep(TIDYING)

leave(run(stubborn))
"""

SERVICE = """
import asyncio
from natsblob import supervisor

supervisor.AGAIN = AGAIN

async def stubborn():
    with supervisor.stop_signals() as stop:
        print("begun", flush=True)
        await stop.wait()
        print("tidying", flush=True)
        await asyncio.sleep(TIDYING)

asyncio.run(stubborn())
"""


def ended(program: str, *signals: signal.Signals) -> tuple[int, bytes]:
    """The exit code and complaints of a program that gets a signal for each line that it prints."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for number in signals:
            assert process.stdout.readline()
            process.send_signal(number)
        try:
            return process.wait(DEADLINE), process.stderr.read()
        finally:
            process.kill()


def test_a_command_tidies_up() -> None:
    code, said = ended(COMMAND.replace("TIDYING", "0"), signal.SIGINT)
    assert code == 130
    assert b"Traceback" not in said


def test_a_second_interrupt_is_not_waited_for() -> None:
    assert ended(COMMAND.replace("TIDYING", "3600"), signal.SIGINT, signal.SIGINT) == (130, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_service_drains_unless_it_is_asked_again(number: signal.Signals) -> None:
    patient = SERVICE.replace("TIDYING", "0").replace("= AGAIN", "= 0.5")
    assert ended(patient, number) == (0, b"")
    hurried = SERVICE.replace("TIDYING", "3600").replace("= AGAIN", "= 0.0")
    assert ended(hurried, number, signal.SIGTERM) == (128 + signal.SIGTERM, b"")


def test_the_same_signal_twice_at_a_time_is_one() -> None:
    launched = SERVICE.replace("TIDYING", "0.2").replace("= AGAIN", "= 3600")
    assert ended(launched, signal.SIGINT, signal.SIGINT) == (0, b"")
