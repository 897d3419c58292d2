"""ADR-32 as `nats micro` sees it: every answer has the form that NATS documents, and the figures count."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.maintenance.doctor.service import Responders
from tests.integration.raw import TIMEOUT, Raw, service

WORKERS = 3
ENDPOINTS = {"put", "get", "has", "stat", "list", "delete", "caps"}
ENDPOINTS |= {"put_open", "put_status", "put_commit", "put_abort"}

# What ADR-32 and NATS's reference say of the answers, written down anew.
NAME = {"type": "string", "pattern": r"^[a-zA-Z0-9_-]+$"}
TEXT = {"type": "string", "minLength": 1}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
NUMBER = {"type": "integer", "minimum": 0}
IDENTITY = {
    "name": NAME,
    "id": TEXT,
    "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$"},
    "metadata": STRINGS,
}


def response(kind: str, **properties: Any) -> dict[str, Any]:
    complete = {"type": {"const": f"io.nats.micro.v1.{kind}_response"}, **IDENTITY, **properties}
    return {"type": "object", "required": list(complete), "properties": complete}


def listed(**properties: Any) -> dict[str, Any]:
    complete = {"name": NAME, "subject": TEXT, "queue_group": TEXT, **properties}
    items = {"type": "object", "required": list(complete), "properties": complete}
    return {"type": "array", "items": items, "minItems": 1}


SCHEMAS = {
    "PING": response("ping"),
    "INFO": response("info", description={"type": "string"}, endpoints=listed(metadata=STRINGS)),
    "STATS": response(
        "stats",
        started={"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"},
        endpoints=listed(
            num_requests=NUMBER,
            num_errors=NUMBER,
            last_error={"type": "string"},
            processing_time=NUMBER,
            average_processing_time=NUMBER,
        ),
    ),
}


@pytest.fixture
async def raw(fresh_server: EmbeddedServer) -> AsyncIterator[Raw]:
    """On a server of its own: discovery asks every service there is."""
    async with service(fresh_server.url, workers=WORKERS) as client:
        yield client


async def answers(raw: Raw, subject: str, count: int) -> list[Msg]:
    """The first `count` answers to one request."""
    inbox = raw.nc.new_inbox()
    subscription = await raw.nc.subscribe(inbox)
    await raw.nc.publish(subject, reply=inbox)
    found = [await subscription.next_msg(timeout=TIMEOUT) for _ in range(count)]
    await subscription.unsubscribe()
    return found


async def stats(raw: Raw) -> dict[str, dict[str, Any]]:
    """The figures of each endpoint, added up over the workers."""
    total: dict[str, dict[str, Any]] = {}
    for message in await answers(raw, f"$SRV.STATS.{raw.service}", WORKERS):
        for endpoint in json.loads(message.data)["endpoints"]:
            into = total.setdefault(endpoint["name"], {"num_requests": 0, "num_errors": 0, "errors": []})
            into["num_requests"] += endpoint["num_requests"]
            into["num_errors"] += endpoint["num_errors"]
            into["errors"] += [endpoint["last_error"]] if endpoint["last_error"] else []
    return total


@pytest.mark.parametrize("verb", list(SCHEMAS))
async def test_every_worker_answers_in_form(raw: Raw, verb: str) -> None:
    await raw.ask("get", b"bad")
    for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{raw.service}"):
        found = [json.loads(message.data) for message in await answers(raw, subject, WORKERS)]
        for body in found:
            jsonschema.validate(body, SCHEMAS[verb])
        assert {body["id"] for body in found} == set(raw.ids)
    for worker_id in raw.ids:
        (message,) = await answers(raw, f"$SRV.{verb}.{raw.service}.{worker_id}", 1)
        body = json.loads(message.data)
        jsonschema.validate(body, SCHEMAS[verb])
        assert body["id"] == worker_id


async def test_info_lists_the_endpoints_where_they_listen(raw: Raw) -> None:
    (message, *_) = await answers(raw, f"$SRV.INFO.{raw.service}", WORKERS)
    endpoints = json.loads(message.data)["endpoints"]
    assert {endpoint["name"] for endpoint in endpoints} == ENDPOINTS
    assert len({endpoint["queue_group"] for endpoint in endpoints}) == 1
    for endpoint in endpoints:
        assert endpoint["subject"] == f"{raw.prefix}.{endpoint['name'].replace('_', '.')}"


async def test_figures_count_requests_and_errors(raw: Raw) -> None:
    before = await stats(raw)
    digest = await raw.put(b"counted")
    await asyncio.gather(*(raw.ask("get", digest.encode()) for _ in range(9)))
    for _ in range(3):
        await raw.ask("get", b"no digest")
    after = await stats(raw)
    assert after["get"]["num_requests"] - before["get"]["num_requests"] == 12
    assert after["get"]["num_errors"] - before["get"]["num_errors"] == 3
    assert set(after["get"]["errors"]) == {"bad_request"}
    assert after["put"]["num_requests"] - before["put"]["num_requests"] == 1
    assert after["put"]["num_errors"] == 0
    figures = await raw.figures()
    assert figures["requests"] == 13
    assert figures["errors"] == 3
    assert figures["received_bytes"] == 7
    assert figures["sent_bytes"] == 9 * 7


async def test_requests_spread_over_the_workers(raw: Raw) -> None:
    await asyncio.gather(*(raw.ask("caps") for _ in range(60)))
    served = []
    for message in await answers(raw, f"$SRV.STATS.{raw.service}", WORKERS):
        endpoints = {endpoint["name"]: endpoint for endpoint in json.loads(message.data)["endpoints"]}
        served.append(endpoints["caps"]["num_requests"])
    assert sum(served) == 60
    assert min(served) > 0


async def test_nobody_else_is_answered_for(raw: Raw) -> None:
    for subject in ("$SRV.PING.other", f"$SRV.INFO.{raw.service}.nobody"):
        with pytest.raises(NoRespondersError):
            await raw.nc.request(subject, timeout=TIMEOUT)


async def test_two_prefixes_are_two_services(raw: Raw, fresh_server: EmbeddedServer) -> None:
    prefixes = ["blob", "a.b", "a_b", "a-b", "a_.b", "a._b"]
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(service(fresh_server.url, prefix=one)) for one in prefixes]
        found = [json.loads(one.data) for one in await answers(raw, "$SRV.INFO", WORKERS + len(prefixes))]
        assert len({info["name"] for info in found}) == 1 + len(prefixes)
        for info in found:
            jsonschema.validate(info, SCHEMAS["INFO"])
        for other in (raw, *others):
            own = [info for info in found if info["name"] == other.service]
            assert {info["id"] for info in own} == set(other.ids)
            assert {(info["metadata"]["prefix"], info["metadata"]["bucket"]) for info in own} == {
                (other.prefix, other.bucket)
            }
            assert all(other.bucket in info["description"] for info in own)


async def test_the_doctor_counts_the_workers_under_its_prefix(raw: Raw, fresh_server: EmbeddedServer) -> None:
    async with (
        service(fresh_server.url, prefix="blob") as other,
        await connect(Access((fresh_server.url,))) as connection,
    ):
        for one in (raw, other):
            found = await Responders.find(connection, one.prefix)
            assert found.versions.total() == len(one.ids)
            assert found.elsewhere == len(raw.ids) + len(other.ids) - len(one.ids)
