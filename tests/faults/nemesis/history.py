"""What clients began and what they heard, one JSON line for each, flushed before anything else happens."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec

Kind = Literal["put", "get", "has"]

OK: Final = "ok"
CANCELLED: Final = "cancelled"
UNANSWERED: Final = "unanswered"
WRONG: Final = "wrong bytes"
NOT_FOUND: Final = "blob_not_found"


HISTORIES: Final = "client*.jsonl"


def history_of(directory: Path, client: int) -> Path:
    return directory / f"client{client}.jsonl"


def content(blob: str, size: int) -> bytes:
    """The bytes of a blob, from its name: nobody has to keep them to know whether they are right."""
    return random.Random(blob).randbytes(size)


class Operation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One call of one client. Times are seconds of the machine's monotonic clock, the same for all processes.

    `outcome` is `OK`, the name of an error, or one of the words above; empty while there is none.
    `NOT_FOUND` is also the outcome of a `has` that said no.
    """

    id: str
    kind: Kind
    blob: str
    size: int = 0
    began: float
    ended: float = 0.0
    outcome: str = ""
    detail: str = ""

    @property
    def is_acknowledged(self) -> bool:
        return self.outcome == OK


class Recorder:
    """Writes a history. Each operation has a line when it begins, and again when it has ended."""

    def __init__(self, path: Path, client: int) -> None:
        self._file = path.open("ab", buffering=0)
        self._client = client
        self._count = 0

    def begin(self, kind: Kind, blob: str, size: int) -> Operation:
        self._count += 1
        name = f"{self._client}.{self._count}"
        operation = Operation(id=name, kind=kind, blob=blob, size=size, began=time.monotonic())
        self._write(operation)
        return operation

    def end(self, operation: Operation, outcome: str, detail: str = "") -> None:
        operation.ended = time.monotonic()
        operation.outcome = outcome
        operation.detail = detail
        self._write(operation)

    def close(self) -> None:
        self._file.close()

    def _write(self, operation: Operation) -> None:
        self._file.write(msgspec.json.encode(operation) + b"\n")


class Tail:
    """Reads a history while it is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._open: dict[str, Operation] = {}

    def ended(self) -> list[Operation]:
        """The operations that have ended since the last call."""
        found = []
        for operation in self._lines():
            if operation.outcome:
                self._open.pop(operation.id, None)
                found.append(operation)
            else:
                self._open[operation.id] = operation
        return found

    @property
    def unfinished(self) -> list[Operation]:
        """Those that had begun and not ended by the last call of `ended`."""
        return list(self._open.values())

    def _lines(self) -> Iterable[Operation]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._position += len(whole) + len(newline)
        for line in whole.splitlines():
            yield msgspec.json.decode(line, type=Operation)
