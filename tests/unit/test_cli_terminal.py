"""What people are shown."""

from __future__ import annotations

import pytest

from natsblob.cli.terminal import bytes_of, complain, printable


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


def test_words_and_lines_stay_as_they_are() -> None:
    assert printable("grüß dich,\nnatsblob") == "grüß dich,\nnatsblob"


@pytest.mark.parametrize("name", ["a\nb", "a\r\nb", "a\x85b", "a\u2028b", "a\x0bb", "a\udc80\nb"])
def test_a_name_forges_no_second_line_of_an_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    complain(f"{name}: no such file")
    assert len(capsys.readouterr().err.splitlines()) == 1
