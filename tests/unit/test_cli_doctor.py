"""What the doctor concludes from what a server says of a bucket."""

from __future__ import annotations

from typing import Any

import pytest

from natsblob.broker.jetstream import ClusterState, Replica, StreamInfo, StreamState
from natsblob.maintenance.doctor import Status
from natsblob.maintenance.doctor.storage import check_bucket, check_publishers, check_replicas
from natsblob.maintenance.doctor.stream import check_stream
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.info import Layout

GOOD: dict[str, Any] = {
    "allow_direct": True,
    "discard": "new",
    "max_age": 0,
    "max_bytes": -1,
    "max_msgs_per_subject": -1,
    "num_replicas": 1,
    "storage": "file",
    "subjects": ["$O.b.C.>", "$O.b.M.>"],
    "metadata": {"natsblob.uploads": "direct"},
}


def bucket_check(**changes: Any) -> Status:
    info = StreamInfo({**GOOD, **changes}, StreamState(bytes=950))
    return check_bucket(Bucket(jetstream=None, name="b", prefix="blob"), info).status  # type: ignore[arg-type]


def test_a_bucket_of_natsblob_is_in_order() -> None:
    assert bucket_check() is Status.OK


@pytest.mark.parametrize(
    "changes",
    [
        {"storage": "memory"},
        {"max_bytes": 1000},
        {"allow_rollup_hdrs": True},
        {"subject_transform": {"src": "blob.chunk.b.*", "dest": "$O.b.C.{{wildcard(1)}}"}},
        {"subject_transform": {"src": "other.chunk.b.*", "dest": "$O.b.C.{{wildcard(1)}}"}},
    ],
)
def test_what_somebody_should_know_warns(changes: dict[str, Any]) -> None:
    assert bucket_check(**changes) is Status.WARN


def test_each_setting_that_is_amiss_is_named_and_the_worst_comes_first() -> None:
    info = StreamInfo({**GOOD, "max_age": 1, "max_msgs_per_subject": 1}, StreamState())
    found = check_stream(Layout("b"), info)
    assert [check.status for check in found] == [Status.FAIL, Status.WARN]
    assert [check.status for check in check_stream(Layout("b"), StreamInfo(GOOD, StreamState()))] == [
        Status.OK
    ]


@pytest.mark.parametrize(
    ("mode", "replicas", "version", "status"),
    [
        ("direct", 3, (2, 14, 0), Status.WARN),
        ("direct", 3, (2, 15, 1), Status.WARN),
        ("direct", 1, (2, 15, 1), Status.OK),
        ("direct", 3, (2, 12, 8), Status.OK),
        ("direct", 3, (2, 15, 2), Status.OK),
        ("relayed", 3, (2, 15, 1), Status.OK),
    ],
)
def test_a_server_that_one_header_stops_warns_where_others_may_send_it(
    mode: str, replicas: int, version: tuple[int, int, int], status: Status
) -> None:
    config = {**GOOD, "num_replicas": replicas, "metadata": {"natsblob.uploads": mode}}
    one = Bucket(jetstream=None, name="b", prefix="blob")  # type: ignore[arg-type]
    assert check_publishers(one, StreamInfo(config, StreamState()), version).status is status


def replicas_check(
    wanted: int, *, current: int, behind: int = 0, offline: int = 0, leader: str = "n1"
) -> Status:
    followers = [
        *(Replica(f"c{number}", current=True) for number in range(current)),
        *(Replica(f"b{number}") for number in range(behind)),
        *(Replica(f"o{number}", current=True, offline=True) for number in range(offline)),
    ]
    cluster = ClusterState(name="east", leader=leader, replicas=followers)
    return check_replicas(StreamInfo({"num_replicas": wanted}, StreamState(), cluster)).status


@pytest.mark.parametrize("wanted", [3, 5])
def test_an_odd_number_of_current_replicas_is_in_order(wanted: int) -> None:
    assert replicas_check(wanted, current=wanted - 1) is Status.OK


@pytest.mark.parametrize("wanted", [1, 2, 4])
def test_replicas_that_withstand_less_than_they_cost_warn(wanted: int) -> None:
    assert replicas_check(wanted, current=wanted - 1) is Status.WARN


def test_one_copy_on_a_single_server_is_what_there_can_be() -> None:
    assert check_replicas(StreamInfo({"num_replicas": 1}, StreamState(), None)).status is Status.OK


def test_a_replica_that_lags_or_is_away_warns() -> None:
    assert replicas_check(3, current=1, behind=1) is Status.WARN
    assert replicas_check(3, current=1, offline=1) is Status.WARN


def test_without_a_leader_it_fails() -> None:
    assert replicas_check(3, current=2, leader="") is Status.FAIL
