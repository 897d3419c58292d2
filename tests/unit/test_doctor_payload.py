"""What doctor says of the largest message that a server takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from natsblob.broker.connection import Connection
from natsblob.chunking import DEFAULT_CHUNK_SIZE, LEAST_PAYLOAD
from natsblob.maintenance.doctor.check import Status
from natsblob.maintenance.doctor.server import check_payload


@pytest.mark.parametrize(
    ("limit", "status"),
    [
        (1024, Status.FAIL),
        (LEAST_PAYLOAD - 1, Status.FAIL),
        (LEAST_PAYLOAD, Status.WARN),
        (64 * 1024, Status.WARN),
        (1024 * 1024, Status.OK),
    ],
)
def test_small_ones_are_named(limit: int, status: Status) -> None:
    connection = cast("Connection", SimpleNamespace(max_payload=limit))
    assert check_payload(connection, DEFAULT_CHUNK_SIZE).status == status
