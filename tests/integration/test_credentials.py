"""Files with credentials as editors, other systems and accidents leave them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from natsblob.broker.connection import Access, connect
from natsblob.errors import SetupError
from natsblob.testing.servers import temporary_server
from tests.integration.credentials import Operator, user_key

REWRITTEN: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda content: content,
    "CRLF": lambda content: content.replace(b"\n", b"\r\n"),
    "byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "trailing blanks": lambda content: content.replace(b"\n", b" \t\n"),
    "indented": lambda content: b"\n" + content.replace(b"\n", b"\n  "),
    "no newline at the end": lambda content: content.rstrip(b"\n"),
    "text around": lambda content: b"# user\n" + content + b"\n*** IMPORTANT ***\n",
}


async def lets_in(access: Access) -> None:
    connection = await connect(access)
    await connection.close()


@pytest.mark.parametrize("how", REWRITTEN)
async def test_credentials_are_read_as_they_were_meant(tmp_path: Path, how: str) -> None:
    operator = Operator()
    creds = operator.creds(tmp_path / "user.creds")
    creds.write_bytes(REWRITTEN[how](creds.read_bytes()))
    async with temporary_server(extra=operator.config()) as server:
        await lets_in(Access((server.url,), creds=str(creds)))


@pytest.mark.parametrize("how", [how for how in REWRITTEN if how != "text around"])
async def test_a_seed_is_read_as_it_was_meant(tmp_path: Path, how: str) -> None:
    key = user_key()
    seed = key.file(tmp_path / "user.nk")
    seed.write_bytes(REWRITTEN[how](seed.read_bytes() + b"\n"))
    async with temporary_server(extra=f"authorization {{ users: [ {{ nkey: {key.public} }} ] }}") as server:
        await lets_in(Access((server.url,), nkey=str(seed)))


async def test_a_user_without_a_password_has_an_empty_one() -> None:
    users = 'authorization { users: [ { user: "u", password: "" } ] }'
    async with temporary_server(extra=users) as server:
        await lets_in(Access((server.url,), user="u"))


@pytest.mark.parametrize("field", ["creds", "nkey"])
@pytest.mark.parametrize(
    "kind", ["missing", "directory", "empty", "other", "cut", "pipe", "huge", "seed or creds"]
)
async def test_what_cannot_be_used_is_named(tmp_path: Path, field: str, kind: str) -> None:
    path = tmp_path / "file"
    creds = Operator().creds(tmp_path / "whole").read_bytes()
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case "other":
            path.write_bytes(os.urandom(4096))
        case "cut":
            path.write_bytes(creds[:-90] if field == "creds" else user_key().seed[:-4])
        case "huge":
            path.write_bytes(b" " * (2 << 20))
        case "seed or creds":
            path.write_bytes(user_key().seed if field == "creds" else creds)
    with pytest.raises(SetupError) as caught:
        Access(**{field: str(path)}).options()  # type: ignore[arg-type]
    assert str(path) in caught.value.message
