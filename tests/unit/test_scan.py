"""Listing subjects in pages while some of them come and go."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from natsblob.broker import scan
from natsblob.broker.jetstream import JetStream
from natsblob.broker.scan import Subjects

PAGE = 10


class Server:
    """Answers with `PAGE` subjects at a time, and lets something happen before each answer but the first."""

    def __init__(self, subjects: set[str], meanwhile: Callable[[set[str]], object]) -> None:
        self.subjects = subjects
        self._meanwhile = meanwhile
        self.asked = 0

    async def call(self, _: str, body: dict[str, Any], kind: Any, **__: float) -> Any:
        if self.asked:
            self._meanwhile(self.subjects)
        self.asked += 1
        page = sorted(self.subjects)[body["offset"] :][:PAGE]
        state = {"subjects": dict.fromkeys(page, 2)}
        return msgspec.json.decode(json.dumps({"state": state, "total": len(self.subjects)}), type=kind)


def names(first: int, last: int) -> set[str]:
    return {f"s.{number:03}" for number in range(first, last)}


@pytest.mark.parametrize("back", [1, 4, 100])
@pytest.mark.parametrize("odd", ["", "\u00e9", 'a"b\\c', "<&>"])
@pytest.mark.parametrize("come", [0, 1, 7])
@pytest.mark.parametrize("go", [0, 1, 7])
async def test_what_stays_comes_once_and_in_order(
    go: int, come: int, odd: str, back: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_BACK", back)
    staying = names(100, 155) | ({odd} if odd else set())
    going, coming = sorted(names(0, 50)), sorted(names(50, 100))

    def meanwhile(subjects: set[str]) -> None:
        for _ in range(go):
            subjects.discard(going.pop(0) if going else "")
        for _ in range(come):
            subjects.add(coming.pop(0) if coming else "s.100")

    server = Server(staying | set(going), meanwhile)
    found = [each async for each in Subjects(cast(JetStream, server), "stream", ">")]
    assert [count for _, count in found] == [2] * len(found)
    listed = [subject for subject, _ in found]
    assert listed == sorted(set(listed))
    assert staying <= set(listed)
    assert server.asked < 100


async def test_nothing_is_listed_where_nothing_is() -> None:
    server = Server(set(), lambda subjects: None)
    assert [each async for each in Subjects(cast(JetStream, server), "stream", ">")] == []
