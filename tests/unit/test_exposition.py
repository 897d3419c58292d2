"""What a comparison of copies leaves for a collector of metrics."""

from __future__ import annotations

import asyncio
import os
import threading
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


async def test_each_copy_that_was_read_has_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "natsblob.prom"
    path.write_text("what an earlier run has left")
    await write(FOUND, path)
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
    assert await asyncio.to_thread(os.listdir, tmp_path) == [path.name]


async def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="natsblob"):
        await write(FOUND, tmp_path / "missing" / "natsblob.prom")


async def test_nothing_that_somebody_else_has_planted_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("not to be lost")
    path = tmp_path / "natsblob.prom"
    for name in (f"natsblob.prom.{os.getpid()}.{threading.get_ident()}", ".natsblob.prom.part"):
        (tmp_path / name).symlink_to("victim")
    await write(FOUND, path)
    assert (tmp_path / "victim").read_text() == "not to be lost"
    assert samples(path)


async def test_a_link_and_a_pipe_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    await write(FOUND, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "fifo")
    reading = asyncio.create_task(asyncio.to_thread((tmp_path / "fifo").read_bytes))
    await write(FOUND, tmp_path / "fifo")
    assert b"natsblob_compared_blobs" in await reading
    assert samples(tmp_path / "link")
