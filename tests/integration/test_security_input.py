"""What no client library sends, and what must reach neither a connection nor a log of the worker's."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest

from natsblob.broker.embedded import EmbeddedServer
from tests.integration.raw import Raw, Wire, answer, service

TRACE = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def raw(server: EmbeddedServer) -> AsyncIterator[Raw]:
    async with service(server.url) as client:
        yield client


@pytest.mark.parametrize("character", [bytes([code]) for code in range(1, 32) if code not in b"\t\n\r"])
async def test_a_reply_subject_with_a_control_character(
    raw: Raw, server: EmbeddedServer, character: bytes
) -> None:
    """nats-server passes them on. Some of them end a word in Python's eyes, and with it the connection."""
    before = await raw.figures()
    async with Wire(server.url) as wire:
        reply = b"_INBOX.a%sb" % character
        await wire.send(b"PUB %s.caps %s 0\r\n\r\n" % (raw.prefix.encode(), reply))
    after = await raw.figures()
    assert after["dropped_replies"] - before["dropped_replies"] == 1
    assert after["requests"] == before["requests"]


@pytest.mark.parametrize("state", [b"a=\x1b[2J", b"\x1b]0;title\x07", b"a\xc2\x9bm"])
async def test_a_header_does_not_write_to_the_terminal_of_an_operator(
    raw: Raw, server: EmbeddedServer, state: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reply = raw.nc.new_inbox()
    replies = await raw.nc.subscribe(reply)
    block = b"NATS/1.0\r\n%s\r\ntracestate: %s\r\n\r\n" % (TRACE, state)
    with caplog.at_level(logging.DEBUG):
        async with Wire(server.url) as wire:
            await wire.publish(f"{raw.prefix}.caps", reply, block)
            assert answer(await replies.next_msg(timeout=5)).error["name"] == "bad_request"
    assert all(text.isprintable() for text in caplog.messages)
