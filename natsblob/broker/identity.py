"""Files that show who connects and whom to trust: looked at before anything is sent.

The client library reads them while it connects, and says neither which of them is wrong nor why.
"""

from __future__ import annotations

import re
import ssl
from typing import Final

import nkeys  # type: ignore[import-untyped]

from natsblob.config.files import read_small
from natsblob.errors import SetupError

_BLOCK: Final = re.compile(rb"-{3,}\s*BEGIN ([A-Z ]+?)\s*-{3,}\s+(\S+)\s+-{3,}\s*END")
_USER_SEED: Final = re.compile(rb"SU[A-Z2-7]{56}")


def read_nkey(path: str) -> str:
    """The seed of an NKEY that the file has. `SetupError` unless that is all it has."""
    content = _content("nkey", path)
    if b"BEGIN NATS USER JWT" in content:
        raise SetupError(f"nkey: {path} is a credentials file: name it with creds")
    return _checked(content.strip(), f"nkey: {path} is not the seed of an NKEY")


def read_creds(path: str) -> str:
    """The JWT and the seed in a file, as `nsc` writes them; `SetupError` unless it has both."""
    content = _content("creds", path)
    parts = {name.rpartition(b" ")[2]: value for name, value in _BLOCK.findall(content)}
    if not parts.keys() >= {b"JWT", b"SEED"}:
        hint = "; it has a seed only: name it with nkey" if _USER_SEED.fullmatch(content.strip()) else ""
        raise SetupError(f"creds: {path} is not a credentials file, which has a JWT and a seed{hint}")
    seed = _checked(parts[b"SEED"], f"creds: the seed in {path} is not one of an NKEY")
    try:
        token = parts[b"JWT"].decode("ascii")
    except UnicodeDecodeError as error:
        raise SetupError(f"creds: the JWT in {path} is none") from error
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


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
        return read_small(path)
    except OSError as error:
        raise SetupError(f"{name}: {path} cannot be read: {error.strerror}") from error


def _checked(seed: bytes, complaint: str) -> str:
    """The seed as text, if it is one."""
    try:
        nkeys.from_seed(bytearray(seed)).wipe()
        return seed.decode("ascii")
    except (nkeys.NkeysError, ValueError, TypeError) as error:
        raise SetupError(complaint) from error
