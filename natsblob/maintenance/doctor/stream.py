"""Whether the bucket's stream is configured so that blobs can be kept in it."""

from __future__ import annotations

from natsblob.broker.jetstream import StreamInfo
from natsblob.maintenance.doctor.check import Check, Status
from natsblob.objectstore.info import Layout
from natsblob.objectstore.requirements import problems


def check_stream(layout: Layout, info: StreamInfo) -> list[Check]:
    """A check for each setting that is amiss, the worst first; one that all is well if none is."""
    found = [
        Check(
            name="stream",
            status=Status.FAIL if problem.is_fatal else Status.WARN,
            found=f"{layout.stream}: {problem.setting}",
            means=problem.means,
            todo=problem.todo,
        )
        for problem in problems(layout, info.config)
    ]
    return found or [
        Check(
            name="stream",
            status=Status.OK,
            found=f"{layout.stream}: configured for blobs",
            means="It keeps what it has acknowledged, and refuses what it has no room for.",
        )
    ]
