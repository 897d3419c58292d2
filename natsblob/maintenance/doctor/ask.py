"""Asking a server or a service in ways that must not fail, whatever the credentials allow."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import Final

from natsblob.broker.connection import Connection
from natsblob.broker.message import Message
from natsblob.errors import DeadlineError, NoRespondersError, NotAllowedError
from natsblob.wire import Headers

PATIENCE: Final = 2.0
"""Seconds for one answer."""
NOTHING: Final = "natsblob-doctor"
"""Names no object, upload or inbox: what is asked about it has no effect."""
_PAUSE: Final = 0.3
"""Seconds without a further answer after which the last one is taken to be in."""


class Reach(Enum):
    ANSWERED = "answered"
    NOBODY = "nobody"
    """Asking is allowed, and nobody listens there."""
    REFUSED = "refused"
    """These credentials may not ask there."""
    SILENT = "silent"
    """Asking is allowed, and no answer came in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    reach: Reach
    message: Message | None = None


async def ask(
    connection: Connection, subject: str, body: bytes = b"", headers: Headers | None = None
) -> Answer:
    """The answer to one request, within `PATIENCE`."""
    try:
        message = await connection.request(subject, body, headers=headers, timeout=PATIENCE)
    except NoRespondersError:
        return Answer(Reach.NOBODY)
    except NotAllowedError:
        return Answer(Reach.REFUSED)
    except DeadlineError:
        return Answer(Reach.SILENT)
    return Answer(Reach.ANSWERED, message)


async def hears(connection: Connection, subject: str) -> bool:
    """Whether these credentials may subscribe to a subject; to be tried on one that nobody uses."""
    try:
        async with connection.subscribe(subject, lambda _: None):
            return True
    except NotAllowedError:
        return False


async def gather(connection: Connection, subject: str, body: bytes = b"") -> list[Message]:
    """What everybody who listens on `subject` answers, within `PATIENCE`; empty if nobody does."""
    answers: list[Message] = []
    arrived = asyncio.Event()

    def take(message: Message) -> None:
        if message.status is None:
            answers.append(message)
        arrived.set()

    with connection.inbox(take) as reply:
        await connection.publish(subject, body, reply=reply)
        try:
            async with asyncio.timeout(PATIENCE):
                await arrived.wait()
                while answers and arrived.is_set():
                    arrived.clear()
                    await _set_within(arrived, _PAUSE)
        except TimeoutError:
            pass
    return answers


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
