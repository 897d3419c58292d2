"""Bad input over the wire: the answer that the protocol names, and a worker that is still there."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.payloads import pattern
from tests.integration.raw import CHUNK, Raw, Wire, answer, pieces, service

ABSENT = hashlib.sha256(b"nobody stores this").hexdigest()
NO_DIGESTS = [
    b"",
    b"abc",
    ABSENT.upper().encode(),
    ABSENT[:-1].encode(),
    ABSENT.encode() + b"0",
    ABSENT.encode() + b"\n",
    b" " + ABSENT.encode(),
    b"g" * 64,
    b"\xff" * 64,
    b"../" * 21 + b"x",
    "\N{ARABIC-INDIC DIGIT ZERO}".encode() * 64,
    b"\x00" * 64,
    b"sha256:" + ABSENT.encode(),
]
BOMBS = [
    b"[" * 1_000_000,
    b'{"digest":' * 50_000,
    b"{" * 100_000,
    b"1" * 100_000,
    b"[]{}",
    b"null",
    b"true",
    b'"text"',
    b"\x00",
    b"{",
]
MISTYPED = [
    b'{"digest": NaN}',
    b'{"digest": 1e999}',
    b'{"digest": ' + b"9" * 50_000 + b"}",
    b'{"digest": "\xff\xfe"}',
    b'{"digest": "\\ud800"}',
    b'{"digest": ["a"]}',
    b'{"digest": {"digest": {}}}',
]
NO_COUNTS: list[Any] = [-1, 1.5, "1", None, [], {}, 2**53 + 1, 10**30, True]


@pytest.fixture
async def raw(server: EmbeddedServer) -> AsyncIterator[Raw]:
    async with service(server.url) as client:
        yield client


@pytest.mark.parametrize("endpoint", ["get", "has", "stat", "delete"])
async def test_what_is_no_digest(raw: Raw, endpoint: str) -> None:
    for body in NO_DIGESTS:
        assert (await raw.ask(endpoint, body)).error["name"] == "bad_request", body
    await raw.still_answers()


@pytest.mark.parametrize(
    "endpoint", ["get", "has", "stat", "delete", "list", "put.open", "put.status", "put.commit", "put.abort"]
)
async def test_what_is_no_request(raw: Raw, endpoint: str) -> None:
    for body in BOMBS:
        assert (await raw.ask(endpoint, body)).error["name"] == "bad_request", body[:20]
    await raw.still_answers()


@pytest.mark.parametrize("endpoint", ["get", "put.open", "put.commit"])
async def test_a_field_that_is_no_digest(raw: Raw, endpoint: str) -> None:
    for body in MISTYPED:
        assert (await raw.ask(endpoint, body)).error["name"] == "bad_request", body[:20]
    await raw.still_answers()


async def test_numbers_that_count_nothing(raw: Raw) -> None:
    digest = await raw.put(pattern(3 * CHUNK))
    optional = {("get", "offset"), ("get", "length"), ("put.open", "size")}
    requests: list[tuple[str, dict[str, Any], list[str]]] = [
        ("get", {"digest": digest}, ["offset", "length"]),
        ("get", {"digest": digest, "mode": "stream"}, ["first", "count"]),
        ("list", {}, ["limit"]),
        ("put.open", {}, ["size"]),
        ("put.commit", {"upload": "A" * 22, "size": 1, "chunks": 1}, ["size", "chunks"]),
    ]
    for endpoint, body, fields in requests:
        for field in fields:
            for value in NO_COUNTS:
                if value is None and (endpoint, field) in optional:
                    continue
                reply = await raw.ask(endpoint, {**body, field: value})
                assert reply.code == 400, (endpoint, field, value)
    await raw.still_answers()


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("get", {"digest": ABSENT, "mode": "sideways"}),
        ("get", {"digest": ABSENT, "mode": "stream", "count": 0}),
        ("get", {"digest": ABSENT, "mode": "stream", "count": 100_000}),
        ("get", {"digest": ABSENT, "verify": "yes"}),
        ("get", {}),
        ("has", [ABSENT] * 1001),
        ("has", [ABSENT, "nonsense"]),
        ("has", [ABSENT, 7]),
        ("list", {"limit": 0}),
        ("list", {"limit": 1001}),
        ("list", {"prefix": "../"}),
        ("list", {"prefix": "A"}),
        ("list", {"prefix": "0" * 65}),
        ("list", {"after": "0"}),
        ("put.open", {"digest": "0"}),
        ("put.commit", {"upload": "A" * 22}),
        ("put.commit", {"upload": 7, "size": 1, "chunks": 1}),
        ("put.commit", {"upload": "A" * 22, "size": 1, "chunks": 1, "marks": {"every": 0, "seqs": []}}),
        ("put.commit", {"upload": "A" * 22, "size": 1, "chunks": 1, "marks": {"every": 1, "seqs": [-1]}}),
        (
            "put.commit",
            {"upload": "A" * 22, "size": 1, "chunks": 1, "marks": {"every": 1, "seqs": [0] * 5000}},
        ),
    ],
)
async def test_values_out_of_range(raw: Raw, endpoint: str, body: Any) -> None:
    assert (await raw.ask(endpoint, body)).error["name"] == "bad_request"


async def test_unknown_fields_and_repeated_keys_do_no_harm(raw: Raw) -> None:
    digest = await raw.put(b"here")
    body = f'{{"digest": "{ABSENT}", "digest": "{digest}", "colour": [1, {{}}]}}'.encode()
    assert (await raw.ask("get", body)).data == b"here"


@pytest.mark.parametrize("endpoint", ["get", "stat", "delete"])
async def test_what_is_not_there(raw: Raw, endpoint: str) -> None:
    assert (await raw.ask(endpoint, ABSENT.encode())).error["name"] == "blob_not_found"
    assert (await raw.ask("get", {"digest": ABSENT, "mode": "stream"})).code == 404


async def test_bytes_that_are_not_what_was_declared(raw: Raw) -> None:
    assert (await raw.ask("put", b"x", {"Blob-Digest": ABSENT})).error["name"] == "digest_mismatch"
    assert (await raw.ask("put", b"x", {"Blob-Digest": "short"})).error["name"] == "bad_request"
    assert await raw.names() == 0
    assert await raw.staged() == {}


async def test_ranges(raw: Raw) -> None:
    data = pattern(2 * CHUNK + 5)
    digest = await raw.put(data)
    size = len(data)
    for offset, length in [
        (0, 0),
        (1, CHUNK),
        (CHUNK - 1, 2),
        (size - 1, 9),
        (size, 1),
        (0, 2**53),
        (5, None),
    ]:
        reply = await raw.ask("get", {"digest": digest, "offset": offset, "length": length})
        end = None if length is None else offset + length
        assert reply.data == data[offset:end], (offset, length)
        assert (reply.headers["Blob-Offset"], reply.headers["Blob-Size"]) == (str(offset), str(size))
    beyond = await raw.ask("get", {"digest": digest, "offset": size + 1})
    assert beyond.error["name"] == "bad_range"
    assert beyond.error["details"]["size"] == size
    for more in ({}, {"verify": True}):
        assert (await raw.frames(digest, 3, 1, **more))[0].error["name"] == "bad_range"


async def test_a_blob_that_does_not_fit_one_reply(raw: Raw) -> None:
    limit = (await raw.ask("caps")).json["max_inline"]
    upload = await raw.upload(*pieces(pattern(limit + 1)))
    digest = (await upload.commit()).json["digest"]
    error = (await raw.ask("get", digest.encode())).error
    assert (error["name"], error["details"]["size"]) == ("too_large", limit + 1)
    assert error["details"]["mode"] == "stream"
    assert len((await raw.ask("get", {"digest": digest, "length": limit})).data) == limit


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"NATS/1.0\r\nno colon\r\n\r\n", id="no-colon"),
        pytest.param(b"NATS/1.0\r\n: nameless\r\n\r\n", id="no-name"),
        pytest.param(b"NATS/1.0\r\nA: \x00\x07\x1b\r\n\r\n", id="control-characters"),
        pytest.param(b"NATS/1.0\r\nA: a\nB: b\r\n\r\n", id="bare-newline"),
        pytest.param(b"NATS/1.0\r\nA: \xff\xfe\r\n\r\n", id="no-utf8"),
        pytest.param(b"NATS/1.0\r\nN\xc3\xa4me: a\r\n\r\n", id="name-beyond-ascii"),
        pytest.param(b"NATS/1.0\r\nA: a", id="no-end"),
        pytest.param(b"HTTP/1.1\r\nA: a\r\n\r\n", id="another-protocol"),
        pytest.param(b"\x00", id="one-byte"),
        pytest.param(b"NATS/1.0\r\nNatsblob-Malformed: 0\r\n\r\n", id="our-own-mark"),
        pytest.param(b"NATS/1.0\r\nA: " + b"a" * 100_000 + b"\r\n\r\n", id="large-value"),
        pytest.param(b"NATS/1.0\r\n" + b"A: a\r\n" * 150_000 + b"\r\n", id="many-lines"),
    ],
)
async def test_malformed_headers(raw: Raw, server: EmbeddedServer, block: bytes) -> None:
    reply = raw.nc.new_inbox()
    replies = await raw.listen(reply)
    async with Wire(server.url) as wire:
        for endpoint in ("caps", "put", "put.open"):
            await wire.publish(f"{raw.prefix}.{endpoint}", reply, block, b"{}")
            assert answer(await replies.next_msg(timeout=5)).error["name"] == "bad_request"
    await raw.still_answers()


@pytest.mark.parametrize(
    "traceparent", ["", "00-zz-zz-00", "x" * 4000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"]
)
async def test_a_malformed_traceparent_is_ignored(raw: Raw, traceparent: str) -> None:
    assert (await raw.ask("caps", headers={"traceparent": traceparent, "tracestate": "=,=="})).code == 0


async def test_reply_subjects_that_are_not_answered_to(raw: Raw) -> None:
    digest = await raw.put(pattern(CHUNK))
    own = f"$JS.API.STREAM.DELETE.{raw.stream}"
    replies = [own, f"$JS.API.STREAM.PURGE.{raw.stream}", "$SYS.REQ.SERVER.PING", f"{raw.prefix}.delete"]
    replies += ["", "_INBOX", "_INBOXX.a", "_INBOX.*", "_INBOX.>", "_INBOX.a.*.b", "_INBOX." + "x" * 4000]
    replies += [f"$O.{raw.bucket}.M.x", f"{raw.prefix}.chunk.{raw.bucket}.x"]
    bodies = {
        "get": json.dumps({"digest": digest, "mode": "stream"}),
        "put": "content",
        "put.open": "{}",
        "put.status": "[",
        "caps": "",
    }
    before = await raw.figures()
    messages = (await raw.js.stream_info(raw.stream)).state.messages
    for reply in replies:
        for endpoint, body in bodies.items():
            await raw.nc.publish(f"{raw.prefix}.{endpoint}", body.encode(), reply=reply)
        for verb in ("PING", "INFO", "STATS"):
            await raw.nc.publish(f"$SRV.{verb}.{raw.service}.{raw.ids[0]}", reply=reply)
    await raw.nc.flush()
    await raw.nc.flush()
    assert (await raw.js.stream_info(raw.stream)).state.messages == messages
    after = await raw.figures()
    assert after["dropped_replies"] - before["dropped_replies"] == len(replies) * (len(bodies) + 3)
    assert after["requests"] == before["requests"]
    await raw.still_answers()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"_INBOX." + "\U0001f600".encode() * 1000, id="1007-characters-of-4007-bytes"),
        pytest.param(b"_INBOX.\x01", id="control-character"),
        pytest.param(b"_INBOX.\xff\xfe", id="no-utf8"),
        pytest.param(b"_INBOX..a", id="empty-token"),
        pytest.param(b"_INBOX.a.", id="empty-last-token"),
    ],
)
async def test_reply_subjects_that_no_library_would_send(
    raw: Raw, server: EmbeddedServer, reply: bytes
) -> None:
    """The first of them, repeated behind a longer subject, had the server close the worker's connection."""
    digest = await raw.put(pattern(3 * CHUNK))
    before = await raw.figures()
    async with Wire(server.url) as wire:
        for body in (digest.encode(), b'{"digest":"%s","mode":"stream"}' % digest.encode()):
            await wire.send(b"PUB %s.get %s %d\r\n%s\r\n" % (raw.prefix.encode(), reply, len(body), body))
    after = await raw.figures()
    assert after["dropped_replies"] - before["dropped_replies"] == 2
    assert after["requests"] == before["requests"]
    await raw.still_answers()


async def test_a_sealed_bucket_can_be_read_and_nothing_else(server: EmbeddedServer) -> None:
    async with service(server.url) as raw:
        data = pattern(3 * CHUNK)
        digest = await raw.put(data)
        upload = await raw.upload(b"staged")
        config = (await raw.js.stream_info(raw.stream)).config
        config.sealed = True
        await raw.js.update_stream(config)
        assert (await raw.ask("put", b"new")).error["name"] == "conflict"
        assert (await raw.ask("delete", digest.encode())).error["name"] == "conflict"
        assert (await upload.commit()).error["name"] == "conflict"
        assert (await raw.ask("put", data)).json["digest"] == digest
        assert (await raw.ask("get", digest.encode())).data == data
        assert (await raw.ask("has", digest.encode())).json["exists"] is True


async def test_a_storm_of_nonsense(raw: Raw) -> None:
    endpoints = ["put", "get", "has", "stat", "list", "delete", "caps"]
    endpoints += ["put.open", "put.status", "put.commit", "put.abort"]
    bodies = [b"\x00" * 100, b"{}", b"[]", b"0" * 64, b'{"upload": "%s"}' % (b"B" * 22)]
    replies = await asyncio.gather(*(raw.ask(name, body) for name in endpoints for body in bodies))
    assert {reply.code for reply in replies} <= {0, 400, 404, 408, 429}
    await raw.still_answers()
