"""Where a server is and how to be let in, as the address says it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer, free_port
from natsblob.errors import BadRequestError
from natsblob.testing.servers import temporary_server
from tests.integration.cli_process import Cli

LOGIN = 'authorization { user: "u", password: "p@ss/wörd" }'
TOKEN = 'authorization { token: "t/0@ken" }'


@pytest.mark.parametrize(("auth", "userinfo"), [(LOGIN, "u:p%40ss%2Fw%C3%B6rd"), (TOKEN, "t%2F0%40ken")])
async def test_what_an_address_has_to_log_in_with_is_decoded(auth: str, userinfo: str) -> None:
    async with temporary_server(extra=auth) as server:
        access = Access((server.url.replace("//", f"//{userinfo}@"),))
        connection = await connect(access)
        assert connection.url == server.url
        await connection.close()


async def test_each_server_is_given_its_own_login(server: EmbeddedServer) -> None:
    async with temporary_server(extra=LOGIN) as second:
        urls = (
            f"nats://a:b@127.0.0.1:{free_port()}",
            second.url.replace("//", "//u:p%40ss%2Fw%C3%B6rd@"),
        )
        for _ in range(3):  # the order of servers is left to chance
            async with await connect(Access(urls)) as connection:
                assert connection.url == second.url


async def test_silent_servers_leave_time_for_the_one_that_answers(server: EmbeddedServer) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        silences = tuple(f"nats://127.0.0.1:{port}" for _ in range(3))
        async with await connect(Access((*silences, server.url))) as connection:
            assert connection.url == server.url


@pytest.mark.parametrize("url", ["nats://host:port", "nats://::1:4222", "ws://host", ""])
async def test_a_malformed_address_is_the_callers_mistake(url: str) -> None:
    with pytest.raises(BadRequestError):
        await connect(Access((url,)))


@pytest.mark.parametrize(
    "url", ["nats://", "nats://a:b:c", "a:1,,b:2", "a:1,", "nats://a b", "http://a", "ws://a", "a:0"]
)
async def test_a_malformed_address_is_wrong_usage(tmp_path: Path, url: str) -> None:
    cli = Cli(tmp_path)
    for arguments in (["ls", "--server", url], ["serve", "--server", url], ["doctor", "--server", url]):
        ran = await asyncio.to_thread(cli, *arguments)
        assert ran.code == 2
        assert "Traceback" not in ran.err
