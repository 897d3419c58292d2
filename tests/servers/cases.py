"""Everything that a publisher can write above a message and that some nats-server understands.

The names are those of the constants in nats-server's source (`JS…` in server/stream.go and beside it), of all
versions from 2.11 on. A version that does not know one stores the message like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LONG: Final = "x" * 3_900


@dataclass(frozen=True, slots=True)
class Case:
    """One message. Words in braces, such as `{last}`, are filled in when it is sent."""

    group: str
    """The header that it is about."""
    value: str
    """How the table calls it."""
    block: str
    """Header lines; a first line of its own if it begins with `!`."""
    reply: str = ""
    """A reply subject that means something to the server; else an inbox."""

    @property
    def is_suspect(self) -> bool:
        """Whether it is known to stop a stream on some version."""
        return "expected-last-msg-id" in self.block.lower()


def _header(name: str, **values: str) -> list[Case]:
    """The header alone, with each of these values by the names that the table has for them."""
    return [Case(name, how, f"{name}: {value}\r\n") for how, value in values.items()]


_NUMBERS: Final = {
    "zero": "0",
    "negative": "-1",
    "too large": "18446744073709551616",
    "not a number": "x",
    "empty": "",
    "long": "9" * 3_900,
}

_CHECKS: Final = [
    *_header("Nats-Msg-Id", new="n-1", duplicate="{seen}", empty="", long=LONG),
    *_header("Nats-Expected-Stream", met="{stream}", unmet="OTHER", empty="", long=LONG),
    *_header("Nats-Expected-Last-Sequence", met="{last}", unmet="7777", **_NUMBERS),
    *_header("Nats-Expected-Last-Subject-Sequence", met="{of_subject}", unmet="7777", **_NUMBERS),
    *_header("Nats-Expected-Last-Msg-Id", unmet="never-seen", met="{seen}", empty="", long=LONG),
]

_OTHER_SUBJECT: Final = [
    Case(
        "Nats-Expected-Last-Subject-Sequence-Subject",
        how,
        f"Nats-Expected-Last-Subject-Sequence: {number}\r\n"
        f"Nats-Expected-Last-Subject-Sequence-Subject: {of}\r\n",
    )
    for how, number, of in (
        ("met", "0", "elsewhere.none"),
        ("unmet", "5", "elsewhere.none"),
        ("wildcard", "0", "h.>"),
        ("malformed", "0", "a..b"),
        ("empty", "0", ""),
        ("long", "0", LONG),
    )
] + _header("Nats-Expected-Last-Subject-Sequence-Subject", alone="elsewhere.none")

_EFFECTS: Final = [
    *_header("Nats-Rollup", subject="sub", all="all", malformed="x", empty=""),
    *_header("Nats-TTL", second="1s", never="never", zero="0", negative="-1s", malformed="x", large="9" * 30),
    *_header("Nats-Incr", one="+1", malformed="x", empty="", large="9" * 3_000),
    *_header("Nats-Counter-Sources", object="{{}}", malformed="x", nested='{{"a":{{"b":"1"}}}}'),
    *_header("Nats-Required-Api-Level", met="0", unmet="99", malformed="x", negative="-1", empty=""),
    *_header("Nats-Schedule", at="@at 2030-01-01T00:00:00Z", every="@every 1s", malformed="x", empty=""),
    *_header("Nats-Schedule-Target", alone="{subject}.t", wildcard="h.>", empty=""),
    *_header("Nats-Schedule-Source", alone="{subject}.s", wildcard="h.>", empty=""),
    *_header("Nats-Schedule-TTL", alone="1s", malformed="x"),
    *_header("Nats-Schedule-Time-Zone", alone="Europe/Berlin", malformed="../x"),
    *_header("Nats-Schedule-Rollup", alone="sub", malformed="x"),
    *_header("Nats-Schedule-Next", purge="purge", malformed="x"),
    *_header("Nats-Scheduler", alone="{subject}", wildcard="h.>", empty=""),
    *(
        Case("Nats-Schedule", how, f"Nats-Schedule: {when}\r\nNats-Schedule-Target: {target}\r\n{more}")
        for how, when, target, more in (
            ("at, target", "@at 2026-01-01T00:00:00Z", "{subject}.t", ""),
            ("every, target", "@every 1s", "{subject}.t", ""),
            ("to itself", "@at 2026-01-01T00:00:00Z", "{subject}", ""),
            ("unmet id", "@every 1s", "{subject}.t", "Nats-Expected-Last-Msg-Id: never-seen\r\n"),
            ("rollup", "@every 1s", "{subject}.t", "Nats-Schedule-Rollup: sub\r\nNats-Schedule-TTL: 1s\r\n"),
            ("purges", "@every 1s", "{subject}.t", "Nats-Schedule-Next: purge\r\nNats-Scheduler: h.x\r\n"),
        )
    ),
]

_BATCHES: Final = [
    Case("Nats-Batch-Id", how, block)
    for how, block in (
        ("alone", "Nats-Batch-Id: b0\r\n"),
        ("never ended", "Nats-Batch-Id: b1\r\nNats-Batch-Sequence: 1\r\n"),
        ("of one", "Nats-Batch-Id: b2\r\nNats-Batch-Sequence: 1\r\nNats-Batch-Commit: 1\r\n"),
        ("gap", "Nats-Batch-Id: b3\r\nNats-Batch-Sequence: 5\r\nNats-Batch-Commit: 1\r\n"),
        ("end without begin", "Nats-Batch-Id: b4\r\nNats-Batch-Sequence: 2\r\nNats-Batch-Commit: eob\r\n"),
        ("eob at once", "Nats-Batch-Id: b5\r\nNats-Batch-Sequence: 1\r\nNats-Batch-Commit: eob\r\n"),
        ("malformed sequence", "Nats-Batch-Id: b6\r\nNats-Batch-Sequence: x\r\n"),
        ("malformed commit", "Nats-Batch-Id: b7\r\nNats-Batch-Sequence: 1\r\nNats-Batch-Commit: x\r\n"),
        ("empty id", "Nats-Batch-Id: \r\nNats-Batch-Sequence: 1\r\nNats-Batch-Commit: 1\r\n"),
        ("path as id", "Nats-Batch-Id: ../../x\r\nNats-Batch-Sequence: 1\r\nNats-Batch-Commit: 1\r\n"),
        ("long id", f"Nats-Batch-Id: {LONG}\r\nNats-Batch-Sequence: 1\r\nNats-Batch-Commit: 1\r\n"),
        ("sequence alone", "Nats-Batch-Sequence: 1\r\n"),
        ("commit alone", "Nats-Batch-Commit: 1\r\n"),
    )
]

_MADE_BY_SERVERS: Final = [
    case
    for name in (
        "Nats-Stream-Source",
        "Nats-Stream-Identity",
        "Nats-Last-Consumer",
        "Nats-Last-Stream",
        "Nats-Last-Sequence",
        "Nats-Consumer-Stalled",
        "Nats-Response-Type",
        "Nats-Marker-Reason",
        "Nats-Msg-Size",
        "Nats-Pin-Id",
        "Nats-Pending-Bytes",
        "Nats-Pending-Messages",
        "Nats-Num-Pending",
        "Nats-UpTo-Sequence",
        "Nats-Subject",
        "Nats-Sequence",
        "Nats-Stream",
        "Nats-Time-Stamp",
        "Nats-Trace-Dest",
        "Nats-Trace-Hop",
        "Nats-Trace-Only",
        "Nats-Trace-Origin-Account",
        "Nats-Request-Info",
        "Nats-Server-Xkey",
        "Nats-No-Masking",
        "Nats-Service-Error-Code",
    )
    for case in _header(
        name, word="x", number="1", object='{{"reply":"a.b.1.ok.1.0.$FI"}}', subject="{subject}", empty=""
    )
]

_FAST: Final = [
    Case("fast batch (reply subject)", how, block, reply=f"{{inbox}}.{tail}.$FI")
    for how, tail, block in (
        ("begun", "f1.10.ok.1.0", ""),
        ("of one", "f2.10.fail.1.2", ""),
        ("gap", "f3.10.fail.9.1", ""),
        ("eob", "f4.10.ok.7.3", ""),
        ("ping", "f5.10.ok.1.4", ""),
        ("unmet id", "f6.10.fail.1.2", "Nats-Expected-Last-Msg-Id: never-seen\r\n"),
        ("unmet sequence", "f7.10.fail.1.2", "Nats-Expected-Last-Sequence: 7777\r\n"),
        ("malformed", "f8.x.x.x.x", ""),
    )
]

_BLOCKS: Final = [
    Case("header block", how, block)
    for how, block in (
        ("unmet id in lower case", "nats-expected-last-msg-id: never-seen\r\n"),
        ("unmet id without a space", "Nats-Expected-Last-Msg-Id:never-seen\r\n"),
        ("unmet id with a tab", "Nats-Expected-Last-Msg-Id:\tnever-seen\r\n"),
        (
            "met id, then unmet",
            "Nats-Expected-Last-Msg-Id: {seen}\r\nNats-Expected-Last-Msg-Id: never-seen\r\n",
        ),
        (
            "unmet id, then met",
            "Nats-Expected-Last-Msg-Id: never-seen\r\nNats-Expected-Last-Msg-Id: {seen}\r\n",
        ),
        ("unmet id behind a broken line", "no colon\r\nNats-Expected-Last-Msg-Id: never-seen\r\n"),
        ("unmet id behind a status", "!NATS/1.0 503\r\nNats-Expected-Last-Msg-Id: never-seen\r\n"),
        ("unmet id, duplicate", "Nats-Msg-Id: {seen}\r\nNats-Expected-Last-Msg-Id: never-seen\r\n"),
        ("unmet id and sequence", "Nats-Expected-Last-Sequence: 7777\r\nNats-Expected-Last-Msg-Id: no\r\n"),
        ("unmet id and rollup", "Nats-Rollup: sub\r\nNats-Expected-Last-Msg-Id: never-seen\r\n"),
        ("no version line", "!X-Y: z\r\n"),
        ("another version", "!NATS/9.9\r\nX-Y: z\r\n"),
        ("status", "!NATS/1.0 404 No Messages\r\n"),
        ("control characters", "X-Y: \x00\x01\x7f\r\n"),
        ("line feeds", "X-Y: a\nNats-Msg-Id: b\r\n"),
        ("many", "".join(f"X-{number}: y\r\n" for number in range(3_000))),
        ("large", f"X-Y: {'z' * 60_000}\r\n"),
    )
]

_CHECKED_IN_A_BATCH: Final = [
    Case(
        "in a batch of one",
        f"{case.group}: {case.value}",
        f"Nats-Batch-Id: c{number}\r\nNats-Batch-Sequence: 1\r\nNats-Batch-Commit: 1\r\n{case.block}",
    )
    for number, case in enumerate([*_CHECKS, *_OTHER_SUBJECT, *_EFFECTS])
]


def all_cases() -> Sequence[Case]:
    return [
        *_CHECKS,
        *_OTHER_SUBJECT,
        *_EFFECTS,
        *_BATCHES,
        *_CHECKED_IN_A_BATCH,
        *_MADE_BY_SERVERS,
        *_FAST,
        *_BLOCKS,
    ]
