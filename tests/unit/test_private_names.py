"""The private names of nats-py that natsblob uses: another version may lack them (ADR 0004)."""

from __future__ import annotations

import ast
from pathlib import Path

from nats.aio.client import Client
from nats.aio.subscription import Subscription

from natsblob.broker import client

USED = {
    "_attempt_reconnect",
    "_cb",
    "_close",
    "_connect_command",
    "_connect_to_server",
    "_current_server",
    "_error_cb",
    "_id",
    "_max_payload",
    "_nkeys_seed_str",
    "_pending",
    "_pending_data_size",
    "_ping_interval_task",
    "_pings_outstanding",
    "_pongs",
    "_process_connect_init",
    "_process_err",
    "_process_info",
    "_process_op_err",
    "_process_pong",
    "_read_loop",
    "_remove_sub",
    "_send_ping",
    "_send_subscribe",
    "_send_unsubscribe",
    "_server_info",
    "_server_pool",
    "_setup_nkeys_connect",
    "_stop_processing",
    "_subs",
    "_transport",
    "_user_credentials",
}


def _private_names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Constant(value=str(name)):  # of `getattr`
                names.add(name)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def _library_names() -> set[str]:
    return {*dir(Client), *vars(Client()), *dir(Subscription), *Subscription.__init__.__code__.co_names}


def test_all_of_them_are_there_and_no_others_are_used() -> None:
    written = _private_names(Path(client.__file__))
    assert written & _library_names() == USED
