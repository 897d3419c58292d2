"""The connection beneath the client library, against a server that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlparse

import pytest
from nats.errors import ProtocolError

from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.receive import LANDING
from natsblob.broker.transport import WRITE_AHEAD, BulkTransport
from natsblob.testing.servers import temporary_server


@contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


def ignore(*_: object) -> None:
    return


async def test_what_a_frozen_server_does_not_take_holds_up_nobody_who_ends() -> None:
    async with temporary_server() as server:
        transport = BulkTransport(ignore)
        await transport.connect(urlparse(server.url), LANDING, 5)
        assert (await transport.readline()).startswith(b"INFO ")
        with frozen(server):
            transport.writelines([bytes(1024 * 1024)] * 64)
            draining = asyncio.create_task(transport.drain())
            await asyncio.sleep(0)
            assert not draining.done()
            assert transport.unsent > WRITE_AHEAD
            transport.close()
            async with asyncio.timeout(10):
                await transport.wait_closed()
                with pytest.raises(ConnectionResetError):
                    await draining
        assert transport.at_eof()
        assert await transport.read(LANDING) == b""


async def test_a_server_that_ends_is_noticed_by_whoever_reads_and_writes() -> None:
    async with temporary_server() as server:
        transport = BulkTransport(ignore)
        await transport.connect(urlparse(server.url), LANDING, 5)
        await transport.readline()
        await server.kill()
        async with asyncio.timeout(10):
            assert await transport.read(LANDING) == b""
        assert transport.at_eof()
        transport.writelines([b"PING\r\n"])
        with pytest.raises(ConnectionResetError):
            await transport.drain()


async def test_what_makes_no_sense_ends_the_connection_with_a_reason() -> None:
    gone = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO {}\r\nMSG what\r\n")
        with suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        transport = BulkTransport(ignore)
        await transport.connect(urlparse(f"nats://{host}:{port}"), LANDING, 5)
        assert await transport.readline() == b"INFO {}\r\n"
        with pytest.raises(ProtocolError):
            await transport.read(LANDING)
        async with asyncio.timeout(10):
            await gone.wait()
