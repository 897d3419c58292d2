"""Addresses of servers: what is one, and what stands in it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natsblob.config.servers import AddressError, login_in, server_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("host", "nats://host"),
        ("host:4222", "nats://host:4222"),
        ("nats://host:4222/", "nats://host:4222"),
        ("TLS://host", "tls://host"),
        ("127.0.0.1:65535", "nats://127.0.0.1:65535"),
        ("[::1]", "nats://[::1]"),
        ("nats://[fe80::1%eth0]:4222", "nats://[fe80::1%eth0]:4222"),
        ("nats://u:p%40ss@[::1]:1", "nats://u:p%40ss@[::1]:1"),
        ("my_nats.default.svc.cluster.local.", "nats://my_nats.default.svc.cluster.local."),
        ("bücher.test:4222", "nats://bücher.test:4222"),
        ("1and1.test", "nats://1and1.test"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert server_url(text) == url
    assert server_url(url) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "nats://",
        "nats:///",
        "nats://:4222",
        "nats://@host",
        "nats://:password@host",
        "nats://user@",
        "nats://host:",
        "nats://host:port",
        "nats://host:0",
        "nats://host:65536",
        "nats://host:99999999999999999999999",
        "nats://host:-1",
        "nats://host:4222:4222",
        "nats://host:٤٢٢٢",
        "nats://::1",
        "nats://::1:4222",
        "::1",
        "nats://[::1",
        "nats://[::1]4222",
        "nats://[host]:4222",
        "nats://[]:4222",
        "nats://127.0.0.1.1",
        "nats://127.0.0.256",
        "4222",
        "nats://a..b",
        "nats://.a",
        "nats://" + "a" * 64,
        "nats://" + "a." * 127 + "a",
        "nats://a b",
        " nats://a",
        "nats://a\n",
        "nats://a\x00",
        "nats://host/path",
        "nats://host?tls=true",
        "nats://u:p/w@host",
        "nats://u:%ff@host",
        "http://host",
        "ws://host",
        "wss://host:443",
        "nats://nats://host",
        "//host",
        "nats://ho*st",
        "nats://\udcff",
    ],
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        server_url(text)


def test_a_refusal_does_not_repeat_a_password() -> None:
    for url in ("nats://u:hunter2@h/", "nats://u:hunter2/@h", "nats://u:hunter2@h:x", "nats://:hunter2@h"):
        with pytest.raises(AddressError) as caught:
            server_url(f"{url}:")
        assert "hunter2" not in str(caught.value)


@given(st.text())
def test_no_text_is_more_than_refused(text: str) -> None:
    with suppress(AddressError):
        assert server_url(server_url(text)) == server_url(text)


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("nats://host", None),
        ("nats://u:p@host", ("u", "p")),
        ("nats://u:p%40ss%2Fword@host", ("u", "p@ss/word")),
        ("nats://u%3A:p:q@host", ("u:", "p:q")),
        ("nats://u:@host", ("u", "")),
        ("nats://s3cr3t%2B@host", ("s3cr3t+", None)),
        ("nats://%C3%BC:%F0%9F%94%91@host", ("ü", "🔑")),
        ("nats://u:100%@host", ("u", "100%")),
    ],
)
def test_what_stands_before_the_at_is_decoded(url: str, login: tuple[str, str | None] | None) -> None:
    assert login_in(url) == login
