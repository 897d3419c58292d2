"""Logging: events with fields, through the standard library, so that a program decides what becomes of them.

A library's user sees nothing of them unless the program configures `logging`; `configure_logging` is for
the commands and the workers of natsblob itself.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TextIO

import msgspec

if TYPE_CHECKING:
    from structlog.typing import Processor

Level = Literal["debug", "info", "warning", "error"]
Style = Literal["auto", "json", "console"]

_ROOT: Final = logging.getLogger("natsblob")
_ROOT.addHandler(logging.NullHandler())

_encoder = msgspec.json.Encoder(enc_hook=str)


class Event:
    """What happened, with its fields. As text it is one line, for programs with a format of their own."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        return " ".join((self.name, *(f"{name}={_shown(value)}" for name, value in self.fields.items())))


class Logger:
    """Writes events to the standard library's logger of a name. `bind` adds fields to all of them."""

    def __init__(self, name: str, **bound: Any) -> None:
        self._logger = logging.getLogger(name)
        self._bound = bound

    def bind(self, **fields: Any) -> Self:
        return type(self)(self._logger.name, **{**self._bound, **fields})

    def is_enabled_for(self, level: int) -> bool:
        return self._logger.isEnabledFor(level)

    def log(
        self, level: int, event: str, *, exc_info: Any = None, stacklevel: int = 2, **fields: Any
    ) -> None:
        if self._logger.isEnabledFor(level):
            written = Event(event, {**self._bound, **fields})
            self._logger.log(level, written, exc_info=exc_info, stacklevel=stacklevel)

    def debug(self, event: str, **fields: Any) -> None:
        self.log(logging.DEBUG, event, stacklevel=3, **fields)

    def info(self, event: str, **fields: Any) -> None:
        self.log(logging.INFO, event, stacklevel=3, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        self.log(logging.WARNING, event, stacklevel=3, **fields)

    def error(self, event: str, **fields: Any) -> None:
        self.log(logging.ERROR, event, stacklevel=3, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error, with the traceback of the exception that is being handled."""
        self.log(logging.ERROR, event, exc_info=True, stacklevel=3, **fields)


def get_logger(name: str) -> Logger:
    """The logger of a part of natsblob; `name` is `natsblob` or begins with `natsblob.`."""
    return Logger(name)


def configure_logging(level: Level = "info", style: Style = "auto", stream: TextIO | None = None) -> None:
    """Send the logs of natsblob and of its libraries to `stream`, standard error by default.

    `auto` is for people if the stream is a terminal, and one JSON object a line otherwise. Nothing is
    written if standard error is closed.
    """
    stream = stream or sys.stderr
    threshold = logging.getLevelNamesMapping()[level.upper()]
    handler: logging.Handler = logging.NullHandler()
    if stream is not None:
        handler = _StreamHandler(stream)
        handler.setFormatter(_Formatter(style, terminal=stream.isatty()))
    _ROOT.setLevel(threshold)
    # Libraries tell of every reconnection and retry in passing: from them only warnings are news.
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)


class _StreamHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream as long as somebody reads it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Formatter(logging.Formatter):
    """One line for each record: for people, or as JSON."""

    def __init__(self, style: Style, *, terminal: bool) -> None:
        import structlog

        super().__init__()
        self._renderer: list[Processor]
        if style == "console" or (style == "auto" and terminal):
            colors = terminal and not os.environ.get("NO_COLOR")
            # Its other way to show a traceback prints local variables, and so payloads and credentials.
            plain = structlog.dev.plain_traceback
            self._renderer = [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
        else:
            json = structlog.processors.JSONRenderer(serializer=_json)
            self._renderer = [structlog.processors.format_exc_info, json]

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        event = record.msg if isinstance(record.msg, Event) else Event(record.getMessage(), {})
        at = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        line: Any = {**event.fields, "event": event.name, "level": level, "timestamp": at}
        if record.exc_info:
            line["exc_info"] = record.exc_info
        for step in self._renderer:
            line = step(None, level, line)
        return str(line)


def _shown(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() else repr(text)


def _json(event: Any, **_: Any) -> str:
    return _encoder.encode(event).decode()
