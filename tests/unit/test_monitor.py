"""What answers at the address of a monitoring page: a page, or something to tell apart from one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from natsblob.maintenance.doctor import monitor
from natsblob.maintenance.doctor.monitor import MonitorError, monitor_url, page

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


class Varz(msgspec.Struct):
    server_id: str


@asynccontextmanager
async def answering(data: bytes, *, endless: bool = False, silent: bool = False) -> AsyncIterator[str]:
    """The address of a server that answers everybody with `data`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(65_536)
            writer.write(data)
            while endless:
                writer.write(b" " * 1024)
                await writer.drain()
            if silent:
                await reader.read()
        except ConnectionError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_page_is_read() -> None:
    async with answering(HEAD + b'{"server_id": "A", "more": 1}') as url:
        assert (await page(url, "varz", Varz, most=100)).server_id == "A"


@pytest.mark.parametrize(
    "data",
    [
        b'INFO {"server_id": "A"}\r\n',
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hosts\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        HEAD + b"<html>",
        HEAD + b"{}",
        HEAD + b"[]",
        HEAD + b'{"server_id": 1}',
        HEAD + b"\xff",
        HEAD + b"[" * 90,
        HEAD + b'{"server_id": "' + b"A" * 100 + b'"}',
    ],
)
async def test_anything_else_is_told_apart(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(monitor, "PATIENCE", 0.5)
    async with answering(data) as url:
        with pytest.raises(MonitorError):
            await page(url, "varz", Varz, most=100)
        with pytest.raises(MonitorError):
            await page(url.replace("http:", "https:"), "varz", Varz, most=100)


@pytest.mark.parametrize("behaviour", [{"endless": True}, {"silent": True}])
@pytest.mark.parametrize("data", [b"", HEAD, HEAD + b"{"])
async def test_nothing_is_waited_for_long_or_read_without_end(
    monkeypatch: pytest.MonkeyPatch, data: bytes, behaviour: dict[str, bool]
) -> None:
    monkeypatch.setattr(monitor, "PATIENCE", 0.2)
    async with answering(data, **behaviour) as url:
        with pytest.raises(MonitorError):
            async with asyncio.timeout(30):
                await page(url, "varz", Varz, most=1_000_000)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("host:8222", "http://host:8222"),
        ("http://host:8222/", "http://host:8222"),
        ("https://[::1]:8222", "https://[::1]:8222"),
        ("http://host/base/", "http://host/base"),
    ],
)
def test_addresses_of_monitoring(text: str, url: str) -> None:
    assert monitor_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["", "nats://host:4222", "file:///etc/hosts", "http://", "http://host:port", "http://[::1", "http://a b"],
)
def test_what_can_be_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="monitoring address"):
        monitor_url(text)
