"""Examining a deployment: each check says what was found, what that means and what to do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import perf_counter

from natsblob.broker.connection import Access, connect
from natsblob.broker.jetstream import JetStream
from natsblob.client import connect as connect_client
from natsblob.errors import BlobError, NotAllowedError
from natsblob.maintenance.doctor.ask import Reach
from natsblob.maintenance.doctor.check import Check, Status
from natsblob.maintenance.doctor.copies import check_copies
from natsblob.maintenance.doctor.server import check_fsync, check_payload, check_version
from natsblob.maintenance.doctor.service import Responders, check_front, check_responders, check_round_trip
from natsblob.maintenance.doctor.storage import check_storage
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.info import Layout

__all__ = ["Check", "Deployment", "Status", "examine"]

_PATIENCE = 5.0
"""Seconds for which a call to JetStream is repeated: the doctor is to tell, not to wait."""
_TRIAL_PATIENCE = 10.0
"""Seconds for each step of the round trip. An election takes 4 to 9."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is to be examined, and with whose eyes."""

    client: Access
    """As a client of the service has it."""
    storage: Access
    """As a worker has it; the same as `client` if nothing else is known."""
    prefix: str
    bucket: str
    js_domain: str | None
    chunk_size: int
    timeout: float
    monitors: tuple[str, ...] = ()
    """Monitoring addresses of servers, such as http://host:8222."""
    embedded_name: str = ""
    """The name that an embedded server on this machine would have."""


async def examine(deployment: Deployment) -> AsyncGenerator[Check, None]:
    """Look at everything that can be seen, and try a small random blob. Nothing else is changed."""
    async with AsyncExitStack() as stack:
        started = perf_counter()
        try:
            connection = await stack.enter_async_context(await connect(deployment.client))
            await connection.flush()
        except BlobError as error:
            yield _no_connection(error)
            return
        yield Check(
            name="connection",
            status=Status.OK,
            found=f"{connection.url} in {(perf_counter() - started) * 1000:.0f} ms",
            means="The server answers and lets these credentials in.",
        )
        yield check_version(connection)
        yield check_payload(connection, deployment.chunk_size)
        responders = await Responders.find(connection, deployment.prefix)
        if responders.caps is None or responders.caps.backend == "jetstream":
            yield await check_fsync(connection, deployment.monitors, deployment.embedded_name)
            async for check in _examine_storage(deployment, stack):
                yield check
            copies = await check_copies(connection, deployment.monitors, Layout(deployment.bucket).stream)
            if copies is not None:
                yield copies
        if responders.answer.reach is Reach.REFUSED:
            yield await check_front(connection, deployment.prefix)
            return
        answered = check_responders(responders, deployment.bucket)
        yield answered
        if answered.status is not Status.FAIL:
            blobs = await stack.enter_async_context(
                connect_client(
                    deployment.client,
                    prefix=deployment.prefix,
                    timeout=min(deployment.timeout, _TRIAL_PATIENCE),
                )
            )
            async for check in check_round_trip(blobs, connection, deployment.prefix):
                yield check


async def _examine_storage(deployment: Deployment, stack: AsyncExitStack) -> AsyncIterator[Check]:
    try:
        connection = await stack.enter_async_context(await connect(deployment.storage))
    except BlobError as error:
        yield _no_connection(error, name="storage")
        return
    jetstream = JetStream(connection, domain=deployment.js_domain, patience=_PATIENCE)
    api = f"$JS.{deployment.js_domain}.API" if deployment.js_domain else "$JS.API"
    async for check in check_storage(jetstream, Bucket(jetstream, deployment.bucket, deployment.prefix), api):
        yield check


def _no_connection(error: BlobError, name: str = "connection") -> Check:
    refused = isinstance(error, NotAllowedError)
    return Check(
        name=name,
        status=Status.FAIL,
        found=error.message,
        means="Nothing further can be examined from here. What is stored is safe.",
        todo="Give credentials that this server accepts: --creds FILE or --context NAME."
        if refused
        else "Start the server, or correct --server, and look for a firewall between.",
    )
