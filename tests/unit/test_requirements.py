"""Which streams can hold blobs, by their configuration."""

from __future__ import annotations

from typing import Any

import pytest

from natsblob.errors import SetupError
from natsblob.objectstore.info import Layout
from natsblob.objectstore.requirements import largest_chunk, problems, refuse_unfit

LAYOUT = Layout("b")
GOOD: dict[str, Any] = {
    "allow_direct": True,
    "discard": "new",
    "retention": "limits",
    "max_msgs_per_subject": -1,
    "subjects": ["$O.b.C.>", "$O.b.M.>"],
    "duplicate_window": 120_000_000_000,
}
SECOND = 1_000_000_000


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"discard": "old"},
        {"subjects": ["$O.b.>"]},
        {"subjects": ["$O.*.C.>", "$O.*.M.>", "else"]},
        {"subjects": [">"]},
        {"max_msgs_per_subject": 2**40},
        {"subject_transform": {"src": "blob.chunk.b.*", "dest": "$O.b.C.{{wildcard(1)}}"}},
        {"subject_transform": {"src": "$O.other.>", "dest": "x.>"}},
        {"compression": "s2", "metadata": {"a": "b"}, "max_age": 0, "max_consumers": -1},
    ],
)
def test_what_holds_blobs(changes: dict[str, Any]) -> None:
    assert list(problems(LAYOUT, {**GOOD, **changes})) == []


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("mirror", {"mirror": {"name": "OBJ_a"}, "subjects": None}),
        ("retention", {"retention": "interest"}),
        ("retention", {"retention": "workqueue"}),
        ("discard", {"discard": "old", "max_bytes": 10_000}),
        ("discard", {"discard": "old", "max_msgs": 10_000}),
        ("max_msgs_per_subject", {"max_msgs_per_subject": 1}),
        ("max_msg_size", {"max_msg_size": 4096}),
        ("allow_direct", {"allow_direct": False}),
        ("subjects", {"subjects": ["$O.b.C.>"]}),
        ("subjects", {"subjects": ["$O.b.C.*", "$O.b.M.>"]}),
        ("subjects", {"subjects": ["$O.b.C.x.>", "$O.b.M.>"]}),
        ("subjects", {"subjects": None}),
        ("subject_transform", {"subject_transform": {"src": ">", "dest": "x.>"}}),
        ("subject_transform", {"subject_transform": {"src": "", "dest": "x.>"}}),
        ("subject_transform", {"subject_transform": {"src": "$O.*.M.*", "dest": "x.{{wildcard(2)}}"}}),
        ("no_ack", {"no_ack": True}),
        ("persist_mode", {"persist_mode": "async"}),
        ("allow_msg_counter", {"allow_msg_counter": True}),
    ],
)
def test_what_breaks_blobs_is_refused(setting: str, changes: dict[str, Any]) -> None:
    found = list(problems(LAYOUT, {**GOOD, **changes}))
    assert (found[0].setting, found[0].is_fatal) == (setting, True)
    assert found[0].todo
    with pytest.raises(SetupError, match=setting):
        refuse_unfit(LAYOUT, {**GOOD, **changes})


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("sealed", {"sealed": True, "deny_purge": True, "deny_delete": True}),
        ("deny_purge", {"deny_purge": True}),
        ("deny_delete", {"deny_delete": True}),
        ("max_msg_size", {"max_msg_size": 131_072}),
        ("max_msgs", {"max_msgs": 100}),
        ("max_age", {"max_age": 3_600 * SECOND}),
        ("duplicate_window", {"duplicate_window": SECOND}),
        ("max_consumers", {"max_consumers": 3}),
        ("republish", {"republish": {"src": ">", "dest": "copy.>"}}),
        ("sources", {"sources": [{"name": "OBJ_a"}]}),
    ],
)
def test_what_somebody_should_know_is_named(setting: str, changes: dict[str, Any]) -> None:
    found = list(problems(LAYOUT, {**GOOD, **changes}))
    assert [(problem.setting, problem.is_fatal) for problem in found] == [(setting, False)]
    refuse_unfit(LAYOUT, {**GOOD, **changes})


def test_chunks_fit_the_largest_message() -> None:
    assert largest_chunk({"max_msg_size": 131_072}, 524_288) == 131_072 - 4096
    assert largest_chunk({"max_msg_size": -1}, 524_288) == largest_chunk({}, 524_288) == 524_288
    assert largest_chunk({"max_msg_size": 10**9}, 524_288) == 524_288
