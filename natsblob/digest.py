"""The address of a blob: the SHA-256 of its bytes, parsed once at the edge and a type from there on."""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, urlsafe_b64encode
from functools import total_ordering
from typing import Self

from natsblob.errors import BadRequestError

_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ADR20_PREFIX = "SHA-256="


@total_ordering
class Digest:
    """A SHA-256 value. `str(digest)` is the address: 64 lower-case hex digits. Immutable.

    No dataclass on purpose: msgspec would write one as a JSON object, past the hooks of `natsblob.wire`.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 32:
            raise BadRequestError("a digest is 32 bytes")
        self._raw = raw

    @property
    def raw(self) -> bytes:
        return self._raw

    @classmethod
    def parse(cls, text: str) -> Self:
        """The digest written as exactly 64 lower-case hex digits; `BadRequestError` otherwise."""
        if not _HEX.fullmatch(text):
            raise BadRequestError("a digest is exactly 64 lower-case hex digits")
        return cls(bytes.fromhex(text))

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Self:
        """The address of `data`."""
        return cls(hashlib.sha256(data).digest())

    @classmethod
    def from_adr20(cls, text: str) -> Self:
        """The digest as an Object Store writes it (`SHA-256=<base64url>`, ADR-20)."""
        if not text.startswith(_ADR20_PREFIX):
            raise BadRequestError("an object digest begins with SHA-256=")
        encoded = text.removeprefix(_ADR20_PREFIX)
        try:
            return cls(b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True))
        except ValueError as error:
            raise BadRequestError("an object digest is base64url after SHA-256=") from error

    def adr20(self) -> str:
        """As an Object Store writes it: `SHA-256=` and padded base64url."""
        return _ADR20_PREFIX + urlsafe_b64encode(self.raw).decode()

    @property
    def hex(self) -> str:
        return self.raw.hex()

    @property
    def short(self) -> str:
        """The first 12 hex digits, for logs and progress bars; never an address."""
        return self.raw.hex()[:12]

    def __str__(self) -> str:
        return self.raw.hex()

    def __eq__(self, other: object) -> bool:
        return self._raw == other._raw if isinstance(other, Digest) else NotImplemented

    def __lt__(self, other: Digest) -> bool:
        return self._raw < other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return f"Digest({self.short}…)"


class Hasher:
    """Computes a `Digest` as bytes flow past.

    `update` releases the interpreter lock for large blocks, so it may run in a thread beside I/O;
    calls must not overlap.
    """

    __slots__ = ("_sha", "size")

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._sha.update(data)
        self.size += len(data)

    def digest(self) -> Digest:
        """The digest of everything so far; more may follow."""
        return Digest(self._sha.digest())
