"""The ADR-32 face of a worker: who it is, what it listens to, and how it has been doing."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from natsblob.broker.connection import Connection
from natsblob.broker.message import Message
from natsblob.service.messages import Reply
from natsblob.service.replies import Replies

_TYPE: Final = "io.nats.micro.v1"
_SEMVER: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class Endpoint(msgspec.Struct):
    """One endpoint and its figures; times are nanoseconds."""

    name: str
    subject: str
    queue_group: str
    num_requests: int = 0
    num_errors: int = 0
    last_error: str = ""
    processing_time: int = 0

    def served(self, nanoseconds: int, error: str = "") -> None:
        """Count a request that has ended, with the error that it ended in, if any."""
        self.num_requests += 1
        self.processing_time += nanoseconds
        if error:
            self.num_errors += 1
            self.last_error = error


class Discovery:
    """Answers PING, INFO and STATS on `$SRV` for one worker."""

    def __init__(
        self,
        name: str,
        worker: str,
        version: str,
        description: str,
        endpoints: list[Endpoint],
        figures: Callable[[], dict[str, float]],
        metadata: dict[str, str],
    ) -> None:
        semver = _SEMVER.match(version)
        self._identity: dict[str, Any] = {
            "name": name,
            "id": worker,
            "version": semver.group() if semver else "0.0.0",
            "metadata": metadata,
        }
        self._name = name
        self._worker = worker
        self._description = description
        self._endpoints = endpoints
        self._figures = figures
        self._started = datetime.now(UTC)

    def ping(self) -> dict[str, Any]:
        return {"type": f"{_TYPE}.ping_response", **self._identity}

    def info(self) -> dict[str, Any]:
        return {
            "type": f"{_TYPE}.info_response",
            **self._identity,
            "description": self._description,
            "endpoints": [
                {"name": e.name, "subject": e.subject, "queue_group": e.queue_group, "metadata": {}}
                for e in self._endpoints
            ],
        }

    def stats(self) -> dict[str, Any]:
        """Figures by endpoint; the worker's own are the `data` of the first."""
        endpoints = [
            {
                **msgspec.to_builtins(endpoint),
                "average_processing_time": endpoint.processing_time // max(1, endpoint.num_requests),
            }
            for endpoint in self._endpoints
        ]
        endpoints[0]["data"] = self._figures()
        return {
            "type": f"{_TYPE}.stats_response",
            **self._identity,
            "started": self._started.isoformat().replace("+00:00", "Z"),
            "endpoints": endpoints,
        }

    @asynccontextmanager
    async def answering(self, connection: Connection, replies: Replies) -> AsyncIterator[None]:
        """Answer discovery requests while the context lasts."""
        async with AsyncExitStack() as subscriptions:
            for verb, answer in {"PING": self.ping, "INFO": self.info, "STATS": self.stats}.items():
                for scope in ("", f".{self._name}", f".{self._name}.{self._worker}"):
                    handler = _answering(answer, replies)
                    await subscriptions.enter_async_context(
                        connection.subscribe(f"$SRV.{verb}{scope}", handler)
                    )
            yield


def _answering(answer: Callable[[], dict[str, Any]], replies: Replies) -> Callable[[Message], None]:
    def handle(message: Message) -> None:
        if replies.allows(message.reply):
            replies.answer_now(message.reply, Reply(msgspec.json.encode(answer())))

    return handle
