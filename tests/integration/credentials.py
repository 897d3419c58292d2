"""Certificates, NKEYs and JWTs for tests, made on the spot as an operator would with openssl and nsc."""

from __future__ import annotations

import datetime as dt
import json
import os
from base64 import b32encode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address
from pathlib import Path
from time import time
from typing import Any, Final

import nkeys  # type: ignore[import-untyped]
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY: Final = dt.timedelta(days=1)
_ANY: Final = -1


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority of its own, and what it signs."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        own = _unsigned(self._name, self._name, self._key.public_key(), -1, 1).add_extension(
            constraints, critical=True
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(_pem(own.sign(self._key, hashes.SHA256())))

    def signed(
        self,
        name: str,
        *,
        address: str = "127.0.0.1",
        days: tuple[int, int] = (-1, 1),
        password: bytes | None = None,
    ) -> Pair:
        """A certificate for `address`, valid from and to so many days from now; its key behind a password."""
        locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternative = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(address))])
        cert = _unsigned(subject, self._name, key.public_key(), *days).add_extension(
            alternative, critical=False
        )
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pair.cert.write_bytes(_pem(cert.sign(self._key, hashes.SHA256())))
        form = serialization.PrivateFormat.PKCS8
        pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))
        return pair


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: int, end: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start * _DAY)
        .not_valid_after(now + end * _DAY)
    )


def _pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


class Nkey:
    """A key pair of NATS: `public` names it, `seed` is the secret."""

    def __init__(self, kind: int) -> None:
        self.seed = bytes(nkeys.encode_seed(os.urandom(32), kind))
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public = bytes(self._pair.public_key).decode()

    def sign(self, data: bytes) -> bytes:
        return bytes(self._pair.sign(data))

    def file(self, path: Path) -> Path:
        path.write_bytes(self.seed)
        return path


def user_key() -> Nkey:
    return Nkey(nkeys.PREFIX_BYTE_USER)


class Operator:
    """An operator with one account, which has JetStream, and the system account; and users of the account."""

    def __init__(self) -> None:
        self._key = Nkey(nkeys.PREFIX_BYTE_OPERATOR)
        self._account, self._system = (Nkey(nkeys.PREFIX_BYTE_ACCOUNT) for _ in range(2))

    def config(self) -> str:
        """For the configuration of nats-server."""
        limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _ANY)
        storage = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), _ANY)
        accounts = {
            self._account.public: {"limits": {**limits, **storage, "wildcards": True}},
            self._system.public: {"limits": {**limits, "wildcards": True}},
        }
        signed = {
            name: self._jwt(self._key, name, {**claims, "type": "account"})
            for name, claims in accounts.items()
        }
        own = self._jwt(
            self._key, self._key.public, {"type": "operator", "system_account": self._system.public}
        )
        preload = "\n".join(f"  {name}: {jwt}" for name, jwt in signed.items())
        return (
            f"operator: {own}\nsystem_account: {self._system.public}\n"
            f"resolver: MEMORY\nresolver_preload {{\n{preload}\n}}\n"
        )

    def creds(self, path: Path, *, seconds: float = 3600, key: Nkey | None = None) -> Path:
        """A credentials file for a new user whose JWT ends in so many seconds; `key` signs in its place."""
        user = user_key()
        claims = {"type": "user", "pub": {}, "sub": {}, "subs": _ANY, "data": _ANY, "payload": _ANY}
        jwt = self._jwt(self._account, user.public, claims, expires=int(time() + seconds))
        seed = (key or user).seed.decode()
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
        return path

    def _jwt(self, issuer: Nkey, subject: str, nats: dict[str, Any], expires: int = 0) -> str:
        claims: dict[str, Any] = {
            "iat": int(time()),
            "iss": issuer.public,
            "sub": subject,
            "name": subject[:8],
        }
        if expires:
            claims["exp"] = expires
        claims["nats"] = {**nats, "version": 2}
        claims["jti"] = b32encode(sha256(json.dumps(claims).encode()).digest()).decode().rstrip("=")
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        body = ".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
        return f"{body}.{_base64(issuer.sign(body.encode()))}"


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")
