"""What a stream has to be like to hold blobs: one table, for workers and the doctor (ADR 0018).

Streams that other clients made, or that were edited, may drop what was acknowledged, refuse what has to be
stored, or keep it where nobody looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from natsblob.chunking import MESSAGE_RESERVE
from natsblob.config.quantity import NANOSECONDS, format_duration, format_size
from natsblob.errors import SetupError
from natsblob.objectstore.info import Layout

_LEAST_MESSAGE: Final = 64 * 1024
"""Bytes. Metadata of blobs with marks takes up to half of that."""
_LEAST_PER_SUBJECT: Final = 1 << 20
"""Chunks of one object."""
_LEAST_WINDOW: Final = 30.0
"""Seconds for which the server has to know a repeated message by its id."""
_LEAST_CONSUMERS: Final = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """What is amiss with a stream's configuration, what that means, and what to do about it."""

    setting: str
    """By the name that JetStream gives it."""
    is_fatal: bool
    """Whether blobs would break, or could not be stored or read at all: then no worker starts."""
    means: str
    todo: str


def problems(layout: Layout, config: Mapping[str, Any]) -> Iterator[Problem]:
    """What speaks against keeping blobs in this stream, the fatal ones first."""
    found = [
        Problem(setting, is_fatal, means, todo)
        for setting, applies, is_fatal, means, todo in (*_fatal(layout, config), *_passable(layout, config))
        if applies
    ]
    yield from sorted(found, key=lambda problem: not problem.is_fatal)


def refuse_unfit(layout: Layout, config: Mapping[str, Any]) -> None:
    """`SetupError` if blobs cannot be kept in this stream, with what to do about it."""
    for problem in problems(layout, config):
        if problem.is_fatal:
            raise SetupError(
                f"the bucket {layout.bucket} cannot be served ({problem.setting} of its stream): "
                f"{problem.means} {problem.todo}"
            )


def largest_chunk(config: Mapping[str, Any], wanted: int) -> int:
    """Bytes of the largest chunk, at most `wanted`, that the stream takes."""
    limit = config.get("max_msg_size", -1)
    return min(wanted, limit - MESSAGE_RESERVE) if limit > 0 else wanted


_Row = tuple[str, bool, bool, str, str]


def _fatal(layout: Layout, config: Mapping[str, Any]) -> list[_Row]:
    stream = layout.stream
    edit = f"nats stream edit {stream}"
    another = "Use another bucket: natsblob bucket create --bucket NAME, and --bucket NAME for workers."
    retention = config.get("retention", "limits")
    limits = [name for name in ("max_bytes", "max_msgs") if config.get(name, -1) > 0]
    each, size = config.get("max_msgs_per_subject", -1), config.get("max_msg_size", -1)
    subjects = config.get("subjects") or []
    wanted = (layout.all_chunks, layout.all_meta)
    missing = [one for one in wanted if not any(_covers(subject, one) for subject in subjects)]
    transform = config.get("subject_transform") or {}
    source, destination = transform.get("src") or ">", transform.get("dest", "")
    moves = bool(transform) and source != destination and _overlap(source, f"$O.{layout.bucket}.>")
    return [
        (
            "mirror",
            bool(config.get("mirror")),
            True,
            "It is a mirror, which takes no messages but those of its origin.",
            "Serve the bucket that it mirrors, with the credentials or the --js-domain that lead there.",
        ),
        (
            "retention",
            retention != "limits",
            True,
            f"Its retention is {retention}: what nobody consumes or somebody has read is removed.",
            another if retention == "workqueue" else f"Keep everything: {edit} --retention=limits.",
        ),
        (
            "discard",
            config.get("discard") == "old" and bool(limits),
            True,
            f"When it is full ({', '.join(limits)}), old chunks make room for new ones, and blobs break.",
            f"Let it refuse new ones instead: {edit} --discard=new.",
        ),
        (
            "max_msgs_per_subject",
            0 < each < _LEAST_PER_SUBJECT,
            True,
            f"It keeps {each} messages of a subject: chunks of large blobs are lost as they arrive.",
            f"Remove the limit: {edit} --max-msgs-per-subject=-1.",
        ),
        (
            "max_msg_size",
            0 < size < _LEAST_MESSAGE,
            True,
            f"It takes messages of {size} bytes at most; metadata may need {format_size(_LEAST_MESSAGE)}.",
            f"Remove the limit: {edit} --max-msg-size=-1.",
        ),
        (
            "allow_direct",
            not config.get("allow_direct"),
            True,
            "It allows no direct reads, which workers depend on.",
            f"Prepare it: natsblob bucket adopt --bucket {layout.bucket}.",
        ),
        (
            "subjects",
            bool(missing) and not config.get("mirror"),
            True,
            f"It does not take {' and '.join(missing)}, where the objects of a bucket lie.",
            f"Add what is missing: {edit} --subjects='{layout.all_chunks},{layout.all_meta}'.",
        ),
        (
            "subject_transform",
            moves,
            True,
            f"It stores {source} as {destination}, where nobody looks for objects.",
            f"Remove the transform: {edit}, or from the configuration that made the stream.",
        ),
        (
            "no_ack",
            bool(config.get("no_ack")),
            True,
            "It acknowledges nothing: no put would know whether it is stored.",
            f"Have it acknowledge: {edit} --ack.",
        ),
        (
            "persist_mode",
            config.get("persist_mode") == "async",
            True,
            "It acknowledges before it writes: what was acknowledged is lost when its server stops.",
            another,
        ),
        (
            "allow_msg_counter",
            bool(config.get("allow_msg_counter")),
            True,
            "It is a counter, which takes no other messages.",
            another,
        ),
    ]


def _passable(layout: Layout, config: Mapping[str, Any]) -> list[_Row]:
    edit = f"nats stream edit {layout.stream}"
    age = config.get("max_age", 0) / NANOSECONDS
    window = config.get("duplicate_window", 0) / NANOSECONDS
    size, messages = config.get("max_msg_size", -1), config.get("max_msgs", -1)
    consumers = config.get("max_consumers", -1)
    republish = config.get("republish") or {}
    is_sealed = bool(config.get("sealed"))
    return [
        (
            "sealed",
            is_sealed,
            False,
            "It is sealed: blobs can be read and never again put or deleted.",
            "Use another bucket for new blobs: --bucket NAME.",
        ),
        (
            "deny_purge",
            bool(config.get("deny_purge")) and not is_sealed,
            False,
            "It denies purges: blobs can be put and read, and what is deleted or abandoned keeps its room.",
            "That cannot be changed. For blobs that are deleted use another bucket: --bucket NAME.",
        ),
        (
            "deny_delete",
            bool(config.get("deny_delete")) and not is_sealed,
            False,
            "It denies deletes of single messages: what others leave under odd names cannot be collected.",
            "That cannot be changed, and harms no blob.",
        ),
        (
            "max_msg_size",
            size >= _LEAST_MESSAGE,
            False,
            f"It takes messages of up to {size} bytes: chunks are made to fit when a worker starts.",
            f"Restart the workers after a change; or remove the limit: {edit} --max-msg-size=-1.",
        ),
        (
            "max_msgs",
            messages > 0 and config.get("discard") != "old",
            False,
            f"It takes {messages} messages; then puts are refused. Each blob has two or more.",
            f"Limit bytes rather than messages: {edit} --max-msgs=-1.",
        ),
        (
            "max_age",
            age > 0,
            False,
            f"Blobs vanish when they are older than {format_duration(age)}.",
            f"If that is not meant: {edit} --max-age=0.",
        ),
        (
            "duplicate_window",
            0 < window < min(_LEAST_WINDOW, age or _LEAST_WINDOW),
            False,
            f"It knows repeated messages for {format_duration(window)} only: slow uploads are written anew.",
            f"Let it know them for two minutes: {edit} --dupe-window=2m.",
        ),
        (
            "max_consumers",
            0 < consumers < _LEAST_CONSUMERS,
            False,
            f"It allows {consumers} consumers: commits may be slower, and copies may not be comparable.",
            f"Remove the limit: {edit}, or make the bucket anew.",
        ),
        (
            "republish",
            bool(republish),
            False,
            f"What is stored is also sent to {republish.get('dest', '')}: whoever listens there sees it.",
            "Fine if that is meant.",
        ),
        (
            "sources",
            bool(config.get("sources")),
            False,
            "It takes over messages of other streams: objects come and change as they do there.",
            "Fine if that is meant.",
        ),
    ]


def _covers(pattern: str, wanted: str) -> bool:
    """Whether a subject pattern matches all that `wanted`, a pattern that ends in `>`, matches."""
    return _matches(pattern.split("."), wanted.split("."), wholly=True)


def _overlap(one: str, other: str) -> bool:
    """Whether some subject matches both patterns."""
    return _matches(one.split("."), other.split("."), wholly=False)


def _matches(one: list[str], other: list[str], *, wholly: bool) -> bool:
    for index, part in enumerate(one):
        if part == ">":
            return index < len(other)
        if index == len(other):
            return False
        if other[index] == ">":
            return not wholly
        if part != other[index] and part != "*" and (wholly or other[index] != "*"):
            return False
    return len(one) == len(other)
