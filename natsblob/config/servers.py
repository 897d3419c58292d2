"""Addresses of NATS servers as people write them: checked whole, before anything is asked of a network."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, NamedTuple
from urllib.parse import unquote

DEFAULT_PORT: Final = 4222
_SCHEMES: Final = ("nats", "tls")
_LABEL: Final = re.compile(r"[^\s\x00-\x2c/:-@\[-^`{-\x7f]{1,63}")
"""A part of a name: letters of any script, digits, `-` and `_`."""
_LONGEST_HOST: Final = 253


class AddressError(ValueError):
    """Text that is no address of a server. The message never repeats it: it may hold a password."""


class Login(NamedTuple):
    """What stands before the @ of an address, decoded."""

    user: str
    password: str | None
    """`None` if there is no colon: then `user` is a token."""


def server_url(text: str) -> str:
    """The address with its scheme, such as `nats://host:4222`; `AddressError` says what is wrong with it."""
    if not text.isprintable() or " " in text:
        raise AddressError("an address has no spaces or control characters")
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "nats", text
    scheme = scheme.lower()
    if scheme in ("ws", "wss"):
        raise AddressError("WebSocket is not supported; name the port for clients, nats:// or tls://")
    if scheme not in _SCHEMES:
        raise AddressError("an address begins with nats:// or tls://")
    rest = rest.removesuffix("/")
    if set(rest) & set("/?#"):
        raise AddressError(
            "nothing follows the port, and in a password %2F stands for /, %3F for ? and %23 for #"
        )
    userinfo, at, place = rest.rpartition("@")
    if at:
        _decoded(userinfo)
    host, port = _split(place)
    _check_host(host)
    _check_port(port)
    return f"{scheme}://{rest}"


def login_in(url: str) -> Login | None:
    """The user and password, or the token, that stand in an address."""
    userinfo, at, _ = url.partition("://")[2].rpartition("@")
    return _decoded(userinfo) if at else None


def _decoded(userinfo: str) -> Login:
    user, colon, password = userinfo.partition(":")
    try:
        login = Login(unquote(user, errors="strict"), unquote(password, errors="strict") if colon else None)
    except UnicodeDecodeError as error:
        raise AddressError("a user or password that is percent-encoded is UTF-8") from error
    if not login.user:
        raise AddressError("there is no user before the @")
    return login


def _split(place: str) -> tuple[str, str | None]:
    """The host, without its brackets, and the port."""
    if place.startswith("["):
        host, bracket, after = place[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise AddressError("an IPv6 address stands in brackets: nats://[::1]:4222")
        _check_ipv6(host)
        return "", after[1:] if after else None
    host, colon, port = place.partition(":")
    if ":" in port:
        raise AddressError("an IPv6 address stands in brackets: nats://[::1]:4222")
    if not host:
        raise AddressError("there is no host in it")
    return host, port if colon else None


def _check_ipv6(text: str) -> None:
    try:
        IPv6Address(text)
    except AddressValueError as error:
        raise AddressError("what stands in brackets is no IPv6 address") from error


def _check_host(host: str) -> None:
    """Whether `host` can be a name or an IPv4 address; empty if the address is an IPv6 one."""
    if not host:
        return
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdecimal():
        try:
            IPv4Address(host)
        except AddressValueError as error:
            raise AddressError("the host is neither a name nor an IPv4 address") from error
        return
    try:
        encoded = host.encode("idna")
    except UnicodeError as error:
        raise AddressError("the host is no name: its parts have 1 to 63 characters") from error
    if len(encoded) > _LONGEST_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise AddressError("the host is no name: letters, digits, - and _, with dots between")


def _check_port(port: str | None) -> None:
    if port is not None and not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65_535):
        raise AddressError("a port is a number from 1 to 65535")
