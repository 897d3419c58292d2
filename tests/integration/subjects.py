"""What a stream has, for tests to look at."""

from __future__ import annotations

from natsblob.broker.jetstream import JetStream
from natsblob.broker.scan import Subjects


async def subjects_of(jetstream: JetStream, stream: str, pattern: str) -> dict[str, int]:
    """How many messages each subject that matches `pattern` has."""
    return {subject: count async for subject, count in Subjects(jetstream, stream, pattern)}
