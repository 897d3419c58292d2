from __future__ import annotations

import hashlib

import pytest

from natsblob.digest import Digest, Hasher
from natsblob.errors import BadRequestError

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
EMPTY_ADR20 = "SHA-256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU="


def test_the_digest_of_nothing_is_the_known_one() -> None:
    digest = Digest.of(b"")
    assert str(digest) == digest.hex == EMPTY
    assert digest == Digest.parse(EMPTY)
    assert digest.adr20() == EMPTY_ADR20
    assert EMPTY.startswith(digest.short)


@pytest.mark.parametrize(
    "text",
    [
        "",
        EMPTY[:-1],
        EMPTY + "0",
        EMPTY.upper(),
        EMPTY + "\n",
        " " + EMPTY[1:],
        EMPTY[:-1] + "g",
        EMPTY[:-1] + "٣",  # a digit, but not one of ours
        "../" * 21 + "a",
    ],
)
def test_an_address_is_exactly_64_lower_case_hex_digits(text: str) -> None:
    with pytest.raises(BadRequestError):
        Digest.parse(text)


@pytest.mark.parametrize("text", [EMPTY_ADR20, EMPTY_ADR20.rstrip("=")])
def test_an_object_store_digest_is_read_with_and_without_padding(text: str) -> None:
    assert Digest.from_adr20(text) == Digest.of(b"")


@pytest.mark.parametrize(
    "text",
    [
        "",
        EMPTY,
        "SHA-512=" + EMPTY_ADR20.removeprefix("SHA-256="),
        "SHA-256=",
        EMPTY_ADR20[:-2],
        "SHA-256=" + "!" * 43,
        EMPTY_ADR20[:20] + "!" + EMPTY_ADR20[20:],
        "SHA-256=" + "é" * 43,
        "SHA-256=\ud800",
    ],
)
def test_a_malformed_object_store_digest_is_a_bad_request(text: str) -> None:
    with pytest.raises(BadRequestError):
        Digest.from_adr20(text)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_digest_has_32_bytes(length: int) -> None:
    with pytest.raises(BadRequestError):
        Digest(bytes(length))


def test_digests_order_as_their_addresses_do() -> None:
    digests = [Digest.of(bytes([n])) for n in range(50)]
    assert [str(digest) for digest in sorted(digests)] == sorted(map(str, digests))


def test_a_hasher_computes_the_digest_of_what_flowed_past() -> None:
    hasher = Hasher()
    hasher.update(b"ab")
    assert hasher.digest() == Digest.of(b"ab")
    hasher.update(memoryview(b"c"))
    hasher.update(bytearray())
    assert (hasher.digest().raw, hasher.size) == (hashlib.sha256(b"abc").digest(), 3)
