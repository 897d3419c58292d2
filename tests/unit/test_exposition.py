"""What a comparison of copies leaves for a collector of metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from natsblob.maintenance.exposition import write
from natsblob.maintenance.replicas import Comparison, Damage, Node

FOUND = Comparison(
    bucket="blobs",
    replicas=3,
    blobs=9,
    nodes=(
        Node("a", leader=True, read=True, messages=20),
        Node("b", leader=False, read=True, messages=20, lacking=4, damaged=2),
        Node("c", leader=False, read=False),
    ),
    damage=(Damage("x", ("b",), ("a",)), Damage("y", ("a", "b"), ())),
)


def samples(path: Path) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(path.read_text())
    return {(s.name, s.labels.get("server", "")): s.value for family in families for s in family.samples}


def test_each_copy_that_was_read_has_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "natsblob.prom"
    path.write_text("what an earlier run has left")
    write(FOUND, path)
    found = samples(path)
    assert found.pop(("natsblob_compared_timestamp_seconds", "")) > 0
    assert found == {
        ("natsblob_compared_blobs", ""): 9,
        ("natsblob_lost_blobs", ""): 1,
        ("natsblob_copy_read", "a"): 1,
        ("natsblob_copy_read", "b"): 1,
        ("natsblob_copy_read", "c"): 0,
        ("natsblob_copy_lacking_messages", "a"): 0,
        ("natsblob_copy_lacking_messages", "b"): 4,
        ("natsblob_copy_damaged_blobs", "a"): 0,
        ("natsblob_copy_damaged_blobs", "b"): 2,
    }
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="natsblob"):
        write(FOUND, tmp_path / "missing" / "natsblob.prom")
