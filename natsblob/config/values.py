"""Values of settings as people write them, to and from what the model holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
from msgspec import Meta

from natsblob.config.model import Settings, masked, path_hook
from natsblob.config.quantity import format_duration, format_size, parse_duration, parse_size
from natsblob.config.servers import server_url


def parse(name: str, value: object, *, base: Path, home: Path) -> Any:
    """The value of setting `name`, in range and of its type; `ValueError` otherwise.

    Relative paths are taken from `base`, and `~` is `home`.
    """
    try:
        kind = _kind(name)
        if isinstance(value, str) and kind != "path":
            value.encode()  # text that is no UTF-8 has a meaning in paths only
        plain = _plain(kind, value, base, home)
        return msgspec.convert(plain, _hints()[name], strict=False, dec_hook=path_hook)
    except (TypeError, msgspec.ValidationError) as error:
        raise ValueError(str(error)) from error


def allowed(name: str) -> str:
    """What setting `name` may be, in words."""
    hint, meta = _hints()[name], _meta(name)
    if meta is None:
        return f"one of {', '.join(get_args(hint))}" if get_args(hint) else "true or false"
    return meta.description or f"{written(name, meta.ge)} to {written(name, meta.le)}"


def written(name: str, value: Any) -> str | None:
    """The value as it may be written in a configuration, secrets masked; `None` if there is none."""
    if value is None:
        return None
    match _kind(name):
        case "duration":
            return format_duration(value)
        case "size":
            return format_size(value)
        case "list" | "servers":
            return ",".join(masked(name, value))
    return str(value).lower() if isinstance(value, bool) else str(masked(name, value))


def _plain(kind: str, value: object, base: Path, home: Path) -> object:
    """What msgspec can check against the type of a setting."""
    match kind, value:
        case "duration", str() | int() | float():
            return parse_duration(value)
        case "size", str() | int() | float():
            return parse_size(value)
        case "path", str() | Path():
            return str(_path(str(value), base, home))
        case "address", str():
            host, _, port = value.rpartition(":")
            if not host or not (port.isascii() and port.isdecimal()):
                raise ValueError("an address is HOST:PORT")
            return {"host": host.strip("[]"), "port": int(port)}
        case "list", str():
            return [part.strip() for part in value.split(",")]
        case "servers", str():
            return [server_url(part.strip()) for part in value.split(",")]
        case "servers", list() | tuple():
            return [server_url(part.strip()) if isinstance(part, str) else part for part in value]
    return value


def _path(text: str, base: Path, home: Path) -> Path:
    if not text or "\0" in text:
        raise ValueError("a path is not empty")
    path = base / expanded(text, home)
    os.fsencode(path)  # fails for what the locale has no bytes for
    if not path.is_absolute():
        raise ValueError("the current directory has been removed")
    return path


def expanded(text: str, home: Path) -> Path:
    """The path, with `~` at its start as `home`."""
    return home / text[2:] if text.startswith("~/") else Path(text)


@cache
def _hints() -> Mapping[str, Any]:
    return get_type_hints(Settings, include_extras=True)


@cache
def _meta(name: str) -> Meta | None:
    """What the model says about a setting; for an optional one it stands inside the union."""
    hint = _hints()[name]
    parts = (hint, *get_args(hint))
    found = (meta for part in parts for meta in getattr(part, "__metadata__", ()) if isinstance(meta, Meta))
    return next(found, None)


def _kind(name: str) -> str:
    meta = _meta(name)
    return str((meta.extra or {}).get("kind", "plain")) if meta else "plain"
