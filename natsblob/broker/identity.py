"""Files that show who connects and whom to trust: looked at before anything is sent.

The client library reads them while it connects, and says neither which of them is wrong nor why.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Final

import nkeys  # type: ignore[import-untyped]

from natsblob.errors import SetupError

_BLOCK: Final = re.compile(rb"-{3,}\s*BEGIN ([A-Z ]+?)\s*-{3,}\s+(\S+)\s+-{3,}\s*END")


def check_nkey(path: str) -> None:
    """`SetupError` unless the file has the seed of an NKEY, and nothing else."""
    _check_seed(_content("nkey", path).strip(), f"nkey: {path} is not the seed of an NKEY")


def check_creds(path: str) -> None:
    """`SetupError` unless the file has a JWT and a seed, as `nsc` writes them."""
    parts = {name.rpartition(b" ")[2]: value for name, value in _BLOCK.findall(_content("creds", path))}
    if not parts.keys() >= {b"JWT", b"SEED"}:
        raise SetupError(f"creds: {path} is not a credentials file, which has a JWT and a seed")
    _check_seed(parts[b"SEED"], f"creds: the seed in {path} is not one of an NKEY")


def tls_context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    """Trust in `ca`, by default in what the system trusts, and a certificate of our own, if given."""
    for name, path in (("tls_ca", ca), ("tls_cert", cert), ("tls_key", key)):
        if path is not None:
            _content(name, path)
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise SetupError(f"tls_ca: {ca} has no certificate in it") from error
    if cert is not None:
        try:
            # Never a question on the terminal: a key with a password of its own cannot be used.
            context.load_cert_chain(cert, key, password="")
        except ssl.SSLError as error:
            raise SetupError(
                f"tls_cert and tls_key: {cert} and {key} are no certificate and its key"
            ) from error
    return context


def _content(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SetupError(f"{name}: {path} cannot be read: {error.strerror}") from error


def _check_seed(seed: bytes, complaint: str) -> None:
    try:
        nkeys.from_seed(bytearray(seed)).wipe()
    except (nkeys.NkeysError, ValueError, TypeError) as error:
        raise SetupError(complaint) from error
