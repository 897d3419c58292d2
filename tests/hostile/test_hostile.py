"""A sample of `make hostile`: whatever a publisher of chunks does, everybody reads what is committed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.servers import EmbeddedCluster
from tests.hostile.cells import BLOCKS, MODES, Cell, all_cells
from tests.hostile.run import Report, run_cells

SAMPLE = 13
SAMPLE_OF_THREE = 61
"""Each nth cell, at R1 and at R3: prime to the number of modes, so that every mode is among them."""


def sample(every: int) -> Sequence[Cell]:
    return all_cells()[::every]


def test_there_are_enough_cells_and_each_is_another_one() -> None:
    cells = all_cells()
    assert len({cell.name for cell in cells}) == len({cell.data for cell in cells}) == len(cells) >= 2_000
    for cell in cells[::17]:
        assert cell.messages("A" * 22)
    assert len(BLOCKS) > 100


@pytest.mark.parametrize("every", [SAMPLE, SAMPLE_OF_THREE])
def test_a_sample_has_all_modes_and_kinds(every: int) -> None:
    chosen = sample(every)
    assert {cell.mode for cell in chosen} == set(MODES)
    assert {cell.kind for cell in chosen} >= {"header", "content", "extra"}


def judge(report: Report, cells: Sequence[Cell]) -> None:
    assert len(report.results) == len(cells)
    assert not report.bad, "\n".join(report.lines())
    outcomes = {result.outcome for result in report.results}
    assert {"committed", "bad_request"} <= outcomes


async def test_what_is_committed_can_be_read(server: EmbeddedServer) -> None:
    cells = sample(SAMPLE)
    judge(await run_cells(server.url, 1, cells, None), cells)


@pytest.mark.cluster
async def test_what_is_committed_can_be_read_from_three_copies(cluster: EmbeddedCluster) -> None:
    cells = sample(SAMPLE_OF_THREE)
    judge(await run_cells(cluster.urls[0], 3, cells, None), cells)
