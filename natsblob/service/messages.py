"""What passes between the worker, which knows NATS, and the handlers, which know stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from natsblob import telemetry
from natsblob.wire import Headers


def client_of(reply: str) -> str:
    """What the reply subjects of one client have in common: its inbox, without the token of the request.

    Clients whose inboxes have nothing else count as one, and so do those of all other accounts.
    """
    return reply.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Request:
    """A request to one endpoint. `reply` is where its answer goes; handlers only pass it on."""

    data: bytes
    headers: Headers
    reply: str
    noted: telemetry.Request
    deadline: asyncio.Timeout

    @property
    def client(self) -> str:
        return client_of(self.reply)

    def allow(self, seconds: float) -> None:
        """Move the deadline: what is asked for takes longer the larger it is."""
        when = self.deadline.when()
        if when is not None:
            self.deadline.reschedule(when + seconds)


@dataclass(frozen=True, slots=True)
class Reply:
    """One message of an answer."""

    data: bytes = b""
    headers: Headers = field(default_factory=dict)


Answer: TypeAlias = Reply | AsyncGenerator[Reply, None] | None
"""One message, several, or `None` if somebody else sends the answer."""
Handler: TypeAlias = Callable[[Request], Awaitable[Answer]]
