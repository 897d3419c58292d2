"""What the suites ask of this folder."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from natsblob.testing.payloads import Golden

pytest.register_assert_rewrite("natsblob.testing.conformance")


@pytest.fixture(scope="session")
def golden() -> list[Golden]:
    """Blobs with addresses that were computed without natsblob; the first four are those of FIPS 180-4."""
    text = Path(__file__).with_name("golden.json").read_bytes()
    return msgspec.json.decode(text, type=list[Golden])
