from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest

from natsblob import errors, tracing
from natsblob.config import Address
from natsblob.digest import Digest
from natsblob.errors import BlobError, InternalError, SetupError
from natsblob.logs import configure_logging, get_logger
from natsblob.metrics import Metrics, exposed
from natsblob.telemetry import Telemetry

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
DIGEST = Digest.of(b"natsblob")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # pytest's own, which configure_logging would close
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("natsblob").setLevel(logging.NOTSET)


@pytest.fixture
def log() -> io.StringIO:
    stream = io.StringIO()
    configure_logging(stream=stream)
    return stream


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def telemetry(metrics: Metrics, log: io.StringIO) -> Telemetry:
    return Telemetry(metrics, worker="w1")


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def count(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"natsblob_{name}", labels)


def test_a_request_is_one_line(telemetry: Telemetry, log: io.StringIO) -> None:
    with telemetry.request("put") as request:
        request.digest, request.size, request.bytes_in = DIGEST, 4096, 4096
    (line,) = lines(log)
    assert (line["event"], line["verb"], line["outcome"], line["worker"]) == ("request", "put", "ok", "w1")
    assert (line["size"], line["bytes_in"], line["id"]) == (4096, 4096, request.id)
    assert line["digest"] == DIGEST.short
    assert line["duration_ms"] >= 0
    assert DIGEST.hex not in log.getvalue()


def test_a_request_is_counted(telemetry: Telemetry, metrics: Metrics) -> None:
    with telemetry.request("get") as request:
        request.bytes_in, request.bytes_out = 3, 5
    assert count(metrics, "requests_total", verb="get", outcome="ok") == 1
    assert count(metrics, "request_seconds_count", verb="get") == 1
    assert (count(metrics, "received_bytes_total"), count(metrics, "sent_bytes_total")) == (3, 5)
    assert metrics.figures()["errors"] == 0


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (errors.BlobNotFoundError("no such blob"), "info"),
        (errors.UnavailableError("no leader"), "warning"),
        (errors.BlobCorruptError("no good copy"), "error"),
    ],
)
def test_an_error_of_the_tree_passes_and_is_named(
    telemetry: Telemetry, metrics: Metrics, log: io.StringIO, error: BlobError, level: str
) -> None:
    with pytest.raises(type(error)) as caught, telemetry.request("get"):
        raise error
    assert caught.value is error
    (line,) = lines(log)
    assert (line["outcome"], line["level"], line["reason"]) == (error.name, level, error.message)
    assert count(metrics, "requests_total", verb="get", outcome=error.name) == 1
    assert count(metrics, "errors_total", name=error.name) == 1


@pytest.mark.parametrize("defect", [ValueError("of the inside"), InternalError("of the inside")])
def test_a_defect_becomes_an_id_for_the_caller_and_a_traceback_for_the_log(
    telemetry: Telemetry, metrics: Metrics, log: io.StringIO, defect: Exception
) -> None:
    with pytest.raises(InternalError) as caught, telemetry.request("put"):
        raise defect
    (line,) = lines(log)
    assert caught.value.details["id"] == line["id"]
    assert "of the inside" not in caught.value.message
    assert "of the inside" in line["exception"]
    assert line["level"] == "error"
    assert count(metrics, "errors_total", name="internal") == 1


async def test_a_cancelled_request_stays_cancelled(
    telemetry: Telemetry, metrics: Metrics, log: io.StringIO
) -> None:
    entered = asyncio.Event()

    async def handler() -> None:
        with telemetry.request("get"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(handler())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lines(log)[0]["outcome"] == "cancelled"


async def test_requests_at_once_do_not_mix(telemetry: Telemetry, log: io.StringIO) -> None:
    async def handler(size: int) -> None:
        headers = {"traceparent": f"00-{size:032x}-b7ad6b7169203331-01"}
        with telemetry.request("get", headers) as request:
            await asyncio.sleep(0)
            request.size = size
            passed_on: dict[str, str] = {}
            tracing.inject(passed_on)
            assert passed_on["traceparent"].split("-")[1] == f"{size:032x}"

    await asyncio.gather(*(handler(size) for size in range(1, 20)))
    assert {(line["size"], int(line["trace_id"], 16)) for line in lines(log)} == {
        (n, n) for n in range(1, 20)
    }


def test_the_trace_is_passed_on_within_a_request_only(telemetry: Telemetry, log: io.StringIO) -> None:
    with telemetry.request("put", {"traceparent": TRACEPARENT}):
        inside: dict[str, str] = {}
        tracing.inject(inside)
    outside: dict[str, str] = {}
    tracing.inject(outside)
    assert (inside, outside) == ({"traceparent": TRACEPARENT}, {})
    assert lines(log)[0]["trace_id"] == TRACE_ID


@pytest.mark.parametrize(
    "value", ["", "junk", TRACEPARENT.replace("00-", "ff-", 1), "00-" + "0" * 32 + "-1-1"]
)
def test_a_malformed_trace_is_ignored(telemetry: Telemetry, log: io.StringIO, value: str) -> None:
    with telemetry.request("put", {"traceparent": value}):
        pass
    assert "trace_id" not in lines(log)[0]


def test_refusals_and_dropped_replies_are_counted_by_reason(metrics: Metrics) -> None:
    metrics.refused("requests")
    metrics.refused("bytes")
    metrics.dropped("not_allowed")
    metrics.in_flight(lambda: 3, lambda: 7)
    assert count(metrics, "refusals_total", reason="bytes") == 1
    assert count(metrics, "dropped_replies_total", reason="not_allowed") == 1
    figures = metrics.figures()
    assert (figures["refusals"], figures["dropped_replies"]) == (2, 1)
    assert (figures["requests_in_flight"], figures["bytes_in_flight"]) == (3, 7)


def test_workers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.refused("bytes")
    assert other.figures()["refusals"] == 0


async def test_metrics_are_served_until_the_context_ends(metrics: Metrics) -> None:
    metrics.served("put", "ok", 0.001, 10, 0)
    async with exposed(metrics, Address("127.0.0.1", 0)) as address:
        text = await asyncio.to_thread(scrape, address)
        assert 'natsblob_requests_total{outcome="ok",verb="put"} 1.0' in text
        assert "process_resident_memory_bytes" in text
    with pytest.raises(OSError):
        await asyncio.to_thread(scrape, address)


def scrape(address: Address) -> str:
    with urlopen(f"http://{address}/metrics", timeout=10) as response:
        text: str = response.read().decode()
    return text


async def test_an_address_in_use_is_a_setup_error(metrics: Metrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(SetupError):
            async with exposed(metrics, address):
                pytest.fail("served at an address in use")


def test_lines_below_the_level_are_not_written(metrics: Metrics) -> None:
    stream = io.StringIO()
    configure_logging("warning", stream=stream)
    with Telemetry(metrics, worker="w1").request("has"):
        pass
    assert stream.getvalue() == ""
    assert metrics.figures()["requests"] == 1


def test_warnings_of_libraries_are_written_in_the_same_form(log: io.StringIO) -> None:
    logging.getLogger("library").warning("lost %s", "connection")
    logging.getLogger("library").info("detail")
    (line,) = lines(log)
    assert (line["event"], line["level"]) == ("lost connection", "warning")


def test_people_at_a_terminal_get_text_and_nobody_gets_local_variables(metrics: Metrics) -> None:
    stream = Terminal()
    configure_logging(stream=stream)

    def store(payload: bytes) -> None:
        raise ValueError(len(payload))

    secret = bytes.fromhex("7061796c6f6164").ljust(9, b"!")
    with pytest.raises(InternalError), Telemetry(metrics, worker="w1").request("put"):
        store(secret)
    written = stream.getvalue()
    assert "ValueError" in written
    assert secret.decode() not in written
    with pytest.raises(json.JSONDecodeError):
        json.loads(written)


def test_what_json_has_no_form_for_is_logged_as_text(log: io.StringIO) -> None:
    get_logger("natsblob.part").info("event", digest=DIGEST)
    assert lines(log)[0]["digest"] == DIGEST.hex
