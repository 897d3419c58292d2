"""What people are shown."""

from __future__ import annotations

import pytest
from rich.console import Console

from natsblob.cli.diagnosis import described
from natsblob.cli.terminal import Stdout, bytes_of, complain, printable, say
from natsblob.maintenance.doctor import Check, Status


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes_are_rounded_to_a_unit(size: int, text: str) -> None:
    assert bytes_of(size) == text


@pytest.mark.parametrize("hostile", ["\x1b]0;title\x07", "\x1b[2J", "a\rb", "\x9b1m", "\u202eabc"])
def test_nothing_that_others_say_steers_the_terminal(hostile: str) -> None:
    assert printable(hostile).isprintable()


def test_words_stay_as_they_are() -> None:
    assert printable("grüß dich, natsblob") == "grüß dich, natsblob"


FORGED = ["a\nb", "a\r\nb", "a\x85b", "a\u2028b", "a\x0bb", "a\udc80\nb"]


@pytest.mark.parametrize("name", FORGED)
def test_a_name_forges_no_second_line_of_an_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    complain(f"{name}: no such file")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", FORGED)
def test_a_name_forges_no_second_line_for_people(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"12 B in {name}")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", FORGED)
async def test_a_name_forges_no_second_line_of_a_result(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    out = Stdout()
    await out.line(f"description  {name}")
    await out.flush()
    assert len(capfd.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("name", FORGED)
def test_a_name_forges_no_line_of_a_check(name: str) -> None:
    check = Check(name="bucket", status=Status.FAIL, found=name, means=name, todo=name)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(described(check))
    assert len(captured.get().splitlines()) == 3
