"""Contexts of the `nats` command line: where a server is and how to be let in, under a name.

They lie as JSON in `~/.config/nats/context/NAME.json` (or under `XDG_CONFIG_HOME`); `context.txt`
beside that folder names the selected one. They are read here, never written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from natsblob.config.files import read_small
from natsblob.errors import SetupError


class _Context(msgspec.Struct):
    """The fields of a context file that matter here; empty means not set."""

    url: str | None = None
    creds: str | None = None
    nkey: str | None = None
    user: str | None = None
    password: str | None = None
    token: str | None = None
    cert: str | None = None
    key: str | None = None
    ca: str | None = None
    tls_first: bool | None = None
    inbox_prefix: str | None = None
    jetstream_domain: str | None = None
    jetstream_api_prefix: str | None = None
    nsc: str | None = None
    socks_proxy: str | None = None
    user_jwt: str | None = None
    user_seed: str | None = None
    windows_cert_store: str | None = None


_UNSUPPORTED: Final = ("nsc", "socks_proxy", "user_jwt", "user_seed", "windows_cert_store")
_API_OF_DOMAIN: Final = re.compile(r"\$JS\.([A-Za-z0-9_-]+)\.API")
_SCHEME: Final = re.compile(r"(data):|([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def selected(config_home: Path) -> str | None:
    """The name of the context that the `nats` command line has selected, if any."""
    try:
        return read_small(config_home / "nats" / "context.txt").decode().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, PermissionError) and not os.access(config_home / "nats", os.X_OK):
            return None  # another user's home, such as root's in a container
        raise SetupError(
            "the selected NATS context cannot be read; `nats context select` mends it"
        ) from error


def read(name: str, config_home: Path, environ: Mapping[str, str], home: Path) -> dict[str, object]:
    """What the context says, under the names of natsblob's settings. `SetupError` if it cannot be used."""
    context = _load(name, config_home)
    for field in _UNSUPPORTED:
        if getattr(context, field):
            raise SetupError(f"the NATS context {name!r} uses {field}, which natsblob does not support")
    refer = _References(name, environ, home)
    values: dict[str, object] = {
        "server": context.url,
        "creds": refer.path("creds", context.creds),
        "nkey": refer.path("nkey", context.nkey),
        "user": refer.text("user", context.user),
        "password": refer.text("password", context.password),
        "token": refer.text("token", context.token),
        "tls_cert": refer.path("cert", context.cert),
        "tls_key": refer.path("key", context.key),
        "tls_ca": refer.path("ca", context.ca),
        "tls_first": context.tls_first,
        "inbox_prefix": context.inbox_prefix,
        "js_domain": context.jetstream_domain or _domain(name, context.jetstream_api_prefix),
    }
    return {setting: value for setting, value in values.items() if value}


def _load(name: str, config_home: Path) -> _Context:
    if not name or ".." in name or set(name) & set("/\\\0"):
        raise SetupError(
            f"{name!r} cannot be the name of a NATS context; `nats context ls` shows which there are"
        )
    path = config_home / "nats" / "context" / f"{name}.json"
    try:
        return msgspec.json.decode(read_small(path), type=_Context)
    except FileNotFoundError as error:
        raise SetupError(
            f"there is no NATS context {name!r}; `nats context ls` shows which there are"
        ) from error
    except OSError as error:
        raise SetupError(f"the NATS context {name!r} cannot be read: {path}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SetupError(
            f"the NATS context {name!r} cannot be read: {path} is not what nats writes"
        ) from error


def _domain(name: str, api_prefix: str | None) -> str | None:
    """The JetStream domain that an API prefix stands for."""
    if not api_prefix or api_prefix == "$JS.API":
        return None
    found = _API_OF_DOMAIN.fullmatch(api_prefix)
    if not found:
        raise SetupError(
            f"the NATS context {name!r} uses jetstream_api_prefix {api_prefix!r}; "
            "natsblob supports that of a domain only"
        )
    return found[1]


class _References:
    """Values that say where something is to be taken from, as the `nats` command line resolves them."""

    def __init__(self, name: str, environ: Mapping[str, str], home: Path) -> None:
        self._name = name
        self._environ = environ
        self._home = home

    def path(self, field: str, value: str | None) -> str | None:
        """The file that a value names: `$NAME` in it is a variable; `~` is left to whoever reads paths."""
        if not value:
            return None
        match _scheme(value):
            case None:
                return self._expanded(field, value)
            case "file":
                return self._expanded(field, value[len("file://") :])
        raise self._unsupported(field, value, "; give a file")

    def text(self, field: str, value: str | None) -> str | None:
        """A value as it is, or from the variable or file that it names."""
        match _scheme(value or ""):
            case "env":
                return self._variable(field, (value or "")[len("env://") :])
            case "file":
                return self._content(field, self._expanded(field, (value or "")[len("file://") :]))
            case "op" | "nsc" | "data":
                raise self._unsupported(field, value or "")
        return value

    def _content(self, field: str, path: str) -> str:
        where = self._home / path[2:] if path.startswith("~/") else Path(path)
        try:
            return read_small(where).decode().rstrip("\r\n")
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise SetupError(
                f"the {field} of the NATS context {self._name!r} cannot be read from {where}"
            ) from error

    def _expanded(self, field: str, text: str) -> str:
        return _VARIABLE.sub(lambda found: self._variable(field, found[1] or found[2]), text)

    def _variable(self, field: str, variable: str) -> str:
        if not self._environ.get(variable):
            raise SetupError(
                f"the {field} of the NATS context {self._name!r} is in ${variable}, which is not set"
            )
        return self._environ[variable]

    def _unsupported(self, field: str, value: str, advice: str = "") -> SetupError:
        kind = f"{_scheme(value)}:"
        return SetupError(
            f"the {field} of the NATS context {self._name!r} is a reference ({kind}…), "
            f"which natsblob does not resolve{advice}"
        )


def _scheme(value: str) -> str | None:
    found = _SCHEME.match(value)
    return (found[1] or found[2]).lower() if found else None
