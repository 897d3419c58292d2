"""Monitoring pages of servers, over HTTP: what answers at a wrong address is told apart, within seconds."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import urllib.error
import urllib.request
from time import monotonic
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from natsblob.maintenance.doctor.ask import PATIENCE
from natsblob.wire import NOT_DECODED

_BLOCK: Final = 64 * 1024

T = TypeVar("T")


class MonitorError(Exception):
    """There is no such page; the text says what there is instead."""


def monitor_url(text: str) -> str:
    """The address of a server's monitoring, with its scheme; `ValueError` if it can be none."""
    url = text if "://" in text else f"http://{text}"
    complaint = f"{text!r} is no monitoring address, such as http://host:8222"
    try:
        parsed = urlsplit(url)
        whole = parsed.hostname and parsed.port != 0 and not parsed.query and not parsed.fragment
    except ValueError as error:
        raise ValueError(complaint) from error
    if (
        text.isdecimal()
        or parsed.scheme not in ("http", "https")
        or not whole
        or not url.isprintable()
        or " " in url
    ):
        raise ValueError(complaint)
    return url.rstrip("/")


async def page(url: str, path: str, kind: type[T], *, most: int) -> T:
    """The page `path` of the monitoring at `url`, of at most `most` bytes; else `MonitorError`, soon."""
    try:
        async with asyncio.timeout(PATIENCE + 1.0):  # for a name that is looked up for long
            data = await asyncio.to_thread(_fetched, f"{url}/{path}", most)
    except TimeoutError:
        raise MonitorError(f"no answer within {PATIENCE:g} s") from None
    try:
        return msgspec.json.decode(data, type=kind)
    except NOT_DECODED:
        raise MonitorError("something else than a nats-server answers there") from None


def _fetched(url: str, most: int) -> bytes:
    until = monotonic() + PATIENCE
    try:
        with _OPENER.open(url, timeout=PATIENCE) as answer:
            data = bytearray()
            while block := answer.read1(_BLOCK):
                data += block
                if len(data) > most:
                    raise MonitorError(f"it answers more than {most} bytes")
                if monotonic() > until:
                    raise TimeoutError
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MonitorError(_reason(error)) from error
    return bytes(data)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        elsewhere = "; it points elsewhere, so give the server's own address"
        return f"it answers {error.code}{elsewhere if 300 <= error.code < 400 else ''}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    match cause:
        case TimeoutError():
            return f"no answer within {PATIENCE:g} s"
        case http.client.BadStatusLine() if str(cause).startswith("INFO"):
            return "that is the port for clients; the one for monitoring is often 8222"
        case http.client.HTTPException():
            return "what answers there does not speak HTTP"
        case ssl.SSLError():
            return f"TLS fails: {cause.reason or cause}"
        case OSError():
            return cause.strerror or str(cause)
    return str(cause)


class _Staying(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else than where it was sent."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(_Staying)
