"""Where settings come from, and which source outranks which."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from natsblob.config import contexts, values
from natsblob.config.files import read_small
from natsblob.config.model import AUTH, Settings, masked
from natsblob.config.servers import AddressError
from natsblob.errors import SetupError

_NAMES: Final = Settings.__struct_fields__
_PREFIX: Final = "NATSBLOB_"
_NATS_VARIABLES: Final = {
    "NATS_URL": "server",
    "NATS_CONTEXT": "context",
    "NATS_CREDS": "creds",
    "NATS_NKEY": "nkey",
    "NATS_USER": "user",
    "NATS_PASSWORD": "password",
    "NATS_TOKEN": "token",
    "NATS_CA": "tls_ca",
    "NATS_CERT": "tls_cert",
    "NATS_KEY": "tls_key",
    "NATS_TIMEOUT": "timeout",
}


class Shown(NamedTuple):
    """A line of `natsblob config show`."""

    name: str
    value: str | None
    """As it may be written in the configuration file, secrets masked; `None` if it is not set."""
    source: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in force, and of each that was set where its value came from."""

    settings: Settings
    sources: Mapping[str, str]

    def show(self) -> list[Shown]:
        """Every setting, in the order of the model."""
        return [
            Shown(name, values.written(name, getattr(self.settings, name)), self.sources.get(name, "default"))
            for name in _NAMES
        ]


class _Given(NamedTuple):
    value: object
    source: str
    base: Path
    """What a relative path is relative to."""


_Layer: TypeAlias = dict[str, _Given]


def load(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    home: Path | None = None,
    cwd: Path | None = None,
) -> Loaded:
    """The settings from all sources; `SetupError` names what is wrong, where it stands and what is allowed.

    Each source outranks those before it: defaults, the TOML file (`--config`, `NATSBLOB_CONFIG`,
    `./natsblob.toml`, `natsblob/config.toml` in the user's configuration), the NATS context that one
    of the others names, the `NATS_*` variables of the `nats` command line, `NATSBLOB_*` variables,
    flags. The context that the `nats` command line has selected counts only if nothing else names
    a server: a worker with a configuration of its own never follows an interactive choice.

    `flags` maps names of settings, and `config` for the file, to values; `None` means not given.
    """
    home = home or Path(environ.get("HOME") or "/")
    cwd = cwd or _current_directory()
    config_home = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    data_home = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")

    given = {name: value for name, value in (flags or {}).items() if value is not None}
    named = given.pop("config", None) or environ.get(f"{_PREFIX}CONFIG")
    layers = [
        _from_file(_config_file(str(named) if named else None, home, cwd, config_home)),
        _from_nats_variables(environ, cwd),
        _from_variables(environ, cwd),
        _from_flags(given, cwd),
    ]
    chosen = next((layer["context"].value for layer in reversed(layers) if "context" in layer), None)
    if chosen:
        layers.insert(1, _from_context(str(chosen), config_home, cwd, environ, home))
    elif not any(name in layer for layer in layers for name in ("server", "embedded")):
        selected = contexts.selected(config_home)
        layers.insert(0, _from_context(selected, config_home, cwd, environ, home) if selected else {})

    merged: _Layer = {"store_dir": _Given(data_home / "natsblob", "default", cwd)}
    for layer in layers:
        _overlay(merged, layer)
    if "disk" in merged and "backend" not in merged:
        merged["backend"] = _Given("disk", merged["disk"].source, cwd)
    sources = {name: item.source for name, item in merged.items()}
    settings = Settings(**{name: _parsed(name, item, home) for name, item in merged.items()})
    _check(settings, sources)
    return Loaded(settings, sources)


def _current_directory() -> Path:
    """Where relative paths begin; the empty path if that directory has been removed or is closed to us."""
    try:
        return Path.cwd()
    except OSError:
        return Path()


def _overlay(merged: _Layer, layer: _Layer) -> None:
    """Let `layer` outrank `merged`: a way to log in replaces the weaker ones, whichever they are.

    A password alone belongs to the user that a weaker source names.
    """
    for side in ("", "storage_"):
        methods = [f"{side}{name}" for name in AUTH]
        named = [name for name in methods if name in layer]
        if named and named != [f"{side}password"]:
            keep = f"{side}password" if f"{side}user" in layer else None
            for name in methods:
                if name != keep:
                    merged.pop(name, None)
    merged.update(layer)


def _config_file(named: str | None, home: Path, cwd: Path, config_home: Path) -> Path | None:
    if named:
        return cwd / values.expanded(named, home)
    places = (cwd / "natsblob.toml", config_home / "natsblob" / "config.toml")
    return next((place for place in places if _is_file(place)), None)


def _is_file(path: Path) -> bool:
    """Whether a file is there. In a directory that we may not look into there is none for us."""
    try:
        return path.is_file()
    except OSError:
        return False


def _from_file(path: Path | None) -> _Layer:
    if path is None:
        return {}
    try:
        table = tomllib.loads(read_small(path).decode())
    except OSError as error:
        raise SetupError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SetupError(f"the configuration {path} is not TOML: {error}") from error
    return {_known(name, str(path)): _Given(value, str(path), path.parent) for name, value in table.items()}


def _from_context(name: str, config_home: Path, cwd: Path, environ: Mapping[str, str], home: Path) -> _Layer:
    found = contexts.read(name, config_home, environ, home)
    return {setting: _Given(value, f"context {name}", cwd) for setting, value in found.items()}


def _from_nats_variables(environ: Mapping[str, str], cwd: Path) -> _Layer:
    """What the `nats` command line would take from the environment; an empty variable says nothing."""
    layer = {
        setting: _Given(environ[variable], variable, cwd)
        for variable, setting in _NATS_VARIABLES.items()
        if environ.get(variable)
    }
    if "user" in layer and "password" not in layer:  # to `nats`, a user without a password is a token
        layer["token"] = layer.pop("user")
    return layer


def _from_variables(environ: Mapping[str, str], cwd: Path) -> _Layer:
    layer: _Layer = {}
    for variable, value in environ.items():
        # Kubernetes sets NATSBLOB_PORT=tcp://… in every pod beside a Service that is called natsblob.
        if not variable.startswith(_PREFIX) or not value or value.startswith("tcp://"):
            continue
        name = variable.removeprefix(_PREFIX).lower()
        if name in _NAMES:
            layer[name] = _Given(value, variable, cwd)
        elif close := difflib.get_close_matches(name, _NAMES, 1, 0.85):
            # Others may have variables with this beginning; one that is nearly ours is a slip.
            meant = f"{_PREFIX}{close[0].upper()}"
            raise SetupError(f"{variable} is not a setting of natsblob; is {meant} meant?")
    return layer


def _from_flags(flags: Mapping[str, object], cwd: Path) -> _Layer:
    return {_known(name, _flag(name)): _Given(value, _flag(name), cwd) for name, value in flags.items()}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _known(name: str, source: str) -> str:
    if name in _NAMES:
        return name
    close = difflib.get_close_matches(name, _NAMES, 1)
    hint = f"is {close[0]} meant?" if close else "`natsblob config show` lists all"
    raise SetupError(f"{name} (from {source}) is not a setting of natsblob; {hint}")


def _parsed(name: str, given: _Given, home: Path) -> Any:
    try:
        return values.parse(name, given.value, base=given.base, home=home)
    except ValueError as error:
        said = repr(masked(name, given.value))
        why = f"; {error}" if isinstance(error, AddressError) else ""
        raise SetupError(
            f"{name} cannot be {said} (from {given.source}){why}; allowed: {values.allowed(name)}"
        ) from error


def _check(settings: Settings, sources: Mapping[str, str]) -> None:
    """Whatever concerns more than one setting."""

    def where(name: str) -> str:
        return f"{name} (from {sources.get(name, 'default')})"

    for side in ("", "storage_"):
        logins = [f"{side}{name}" for name in AUTH if name != "password"]
        used = [name for name in logins if getattr(settings, name) is not None]
        if len(used) > 1:
            raise SetupError(
                f"{where(used[0])} and {where(used[1])} are two ways to log in; give one of them"
            )
        # An address may carry user and password: then one that was meant for something else does no harm.
        in_address = any("@" in url for url in getattr(settings, f"{side}server") or ())
        password = getattr(settings, f"{side}password")
        if password is not None and used != [f"{side}user"] and (used or not in_address):
            raise SetupError(f"{where(f'{side}password')} needs {side}user, and no other way to log in")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        given, missing = ("tls_cert", "tls_key") if settings.tls_cert else ("tls_key", "tls_cert")
        raise SetupError(f"{where(given)} needs {missing} beside it")
    if settings.backend == "disk" and settings.disk is None:
        raise SetupError(f"{where('backend')} is disk: name the directory with --disk DIR")
    for name in ("disk", "disk_volume", "create_disk"):
        if settings.backend != "disk" and getattr(settings, name):
            raise SetupError(
                f"{where(name)} is of use to the disk backend only; {where('backend')} is another"
            )
    if settings.create_disk and settings.disk_volume is not None:
        raise SetupError(
            f"{where('create_disk')} makes a new volume, and {where('disk_volume')} wants one that is there"
        )
    if settings.chunk_size > settings.window_bytes:
        raise SetupError(
            f"{where('chunk_size')} is larger than {where('window_bytes')}; a window holds whole chunks"
        )
    if settings.embedded and sources.get("embedded") == "--embedded" and sources.get("server") == "--server":
        raise SetupError("--embedded starts a server and --server names another; give one of them")
