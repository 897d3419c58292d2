"""Text on terminals and in locales that lack characters of it: replaced, so that nothing fails."""

from __future__ import annotations

import codecs
import io
from typing import Final, TextIO

SHOW: Final = "natsblob.show"
"""Name of the way to encode text of which some characters are not in the encoding."""

_PLAIN: Final = {"✓": "+", "✗": "x", "→": "->", "…": "...", "—": "-", "“": '"', "”": '"'}
_SURROGATES: Final = range(0xDC80, 0xDD00)
"""Bytes of names that are no text, as Python has them."""


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    shown = bytearray()
    for char in error.object[error.start : error.end]:
        number = ord(char)
        shown += bytes([number - 0xDC00]) if number in _SURROGATES else _PLAIN.get(char, "?").encode()
    return bytes(shown), error.end


codecs.register_error(SHOW, _shown)


def show_all(*streams: TextIO | None) -> None:
    """Let the streams take any text."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SHOW)


def shown(text: str, stream: TextIO) -> bytes:
    """The text in the encoding of the stream."""
    return text.encode(stream.encoding or "utf-8", errors=SHOW)
