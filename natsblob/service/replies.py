"""Where a worker publishes to, and where it does not (`docs/protocol.md`, "reply subjects")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from natsblob import wire
from natsblob.broker.connection import Connection
from natsblob.chunking import MESSAGE_RESERVE
from natsblob.errors import BlobError
from natsblob.metrics import Metrics
from natsblob.service.messages import Reply

LONGEST: Final = 1024
"""Bytes of a reply subject. A delegated read repeats it behind a longer subject than the client's own, and
the server closes connections over control lines that are too long."""
_PLAIN: Final = re.compile(r"[^\s\x00-\x1f\x7f\ufffd*>.]+(\.[^\s\x00-\x1f\x7f\ufffd*>.]+)*")
"""A subject that can be published to as it came: no wildcard, no empty token, and it was UTF-8."""


class Replies:
    """Answers requests on the connection that they came on.

    A reply subject is chosen by the client, and the worker may be allowed to publish more than the client.
    So it answers only to prefixes that belong to clients; the rest is dropped and counted.
    """

    def __init__(self, connection: Connection, metrics: Metrics, prefixes: Sequence[str]) -> None:
        self._connection = connection
        self._metrics = metrics
        self._prefixes = tuple(prefixes)

    def allows(self, subject: str) -> bool:
        """Whether `subject` may be answered to; counted as dropped if not."""
        if (
            subject.startswith(self._prefixes)
            and len(subject.encode()) <= LONGEST
            and _PLAIN.fullmatch(subject) is not None
        ):
            return True
        self._metrics.dropped("reply_subject" if subject else "no_reply_subject")
        return False

    @property
    def room(self) -> int:
        """Bytes that fit one reply beside its headers, whatever these are, as the server has it now."""
        return max(0, self._connection.max_payload - MESSAGE_RESERVE)

    def fits(self, reply: Reply) -> bool:
        return self._connection.carries(len(reply.data), reply.headers)

    async def send(self, subject: str, reply: Reply) -> None:
        """Publish one message of an answer, waiting while the connection is behind."""
        await self._connection.publish(subject, reply.data, headers=reply.headers or None)

    def refuse(self, subject: str, error: BlobError) -> None:
        """Answer with an error, at once."""
        self.answer_now(subject, Reply(*wire.encode_error(error)))

    def answer_now(self, subject: str, reply: Reply) -> None:
        """Answer at once and without waiting; if the connection has no room, nothing is sent."""
        try:
            self._connection.publish_now(subject, reply.data, headers=reply.headers or None)
        except BlobError as trouble:
            self._metrics.dropped(trouble.name)
