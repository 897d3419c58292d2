"""Contexts of the `nats` command line: where a server is and how to be let in, under a name.

They lie as JSON in `~/.config/nats/context/NAME.json` (or under `XDG_CONFIG_HOME`); `context.txt`
beside that folder names the selected one. They are read here, never written.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from natsblob.errors import SetupError


class _Context(msgspec.Struct):
    """The fields of a context file that matter here; empty means not set."""

    url: str = ""
    creds: str = ""
    nkey: str = ""
    user: str = ""
    password: str = ""
    token: str = ""
    cert: str = ""
    key: str = ""
    ca: str = ""
    tls_first: bool = False
    inbox_prefix: str = ""
    jetstream_domain: str = ""
    jetstream_api_prefix: str = ""
    nsc: str = ""
    socks_proxy: str = ""
    user_jwt: str = ""
    user_seed: str = ""
    windows_cert_store: str = ""


_UNSUPPORTED = ("jetstream_api_prefix", "nsc", "socks_proxy", "user_jwt", "user_seed", "windows_cert_store")


def selected(config_home: Path) -> str | None:
    """The name of the context that the `nats` command line has selected, if any."""
    try:
        return (config_home / "nats" / "context.txt").read_text().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(
            "the selected NATS context cannot be read; `nats context select` mends it"
        ) from error


def read(name: str, config_home: Path) -> dict[str, object]:
    """What the context says, under the names of natsblob's settings. `SetupError` where it cannot be used."""
    if not name or ".." in name or "/" in name or "\\" in name:
        raise SetupError(f"{name!r} cannot be the name of a NATS context")
    path = config_home / "nats" / "context" / f"{name}.json"
    try:
        context = msgspec.json.decode(path.read_bytes(), type=_Context)
    except FileNotFoundError as error:
        raise SetupError(
            f"there is no NATS context {name!r}; `nats context ls` shows which there are"
        ) from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SetupError(
            f"the NATS context {name!r} cannot be read: {path} is not what nats writes"
        ) from error
    for field in _UNSUPPORTED:
        if getattr(context, field):
            raise SetupError(f"the NATS context {name!r} uses {field}, which natsblob does not support")
    if "://" in context.creds:
        raise SetupError(
            f"the NATS context {name!r} keeps its credentials outside a file; give one with --creds FILE"
        )
    values: dict[str, object] = {
        "server": context.url,
        "creds": context.creds,
        "nkey": context.nkey,
        "user": context.user,
        "password": context.password,
        "token": context.token,
        "tls_cert": context.cert,
        "tls_key": context.key,
        "tls_ca": context.ca,
        "tls_first": context.tls_first,
        "inbox_prefix": context.inbox_prefix,
        "js_domain": context.jetstream_domain,
    }
    return {setting: value for setting, value in values.items() if value}
