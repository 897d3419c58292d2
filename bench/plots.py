"""Plots of a run: throughput over the size of blobs, and requests per second over how many are under way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.profiles import KIB
from bench.results import Row
from natsblob.config.quantity import format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMALL = 4 * KIB


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the plots that the results allow, as PNG; `ImportError` where matplotlib is not installed."""
    written: list[Path] = []
    for deployment in dict.fromkeys(row.key.deployment for row in rows):
        name = f"r{deployment.replicas}-{deployment.sync}"
        for verb in ("put", "get"):
            chosen = [row for row in rows if row.key.deployment == deployment and row.key.verb == verb]
            serial = [row for row in chosen if row.key.workload.at_once == 1]
            small = [row for row in chosen if row.key.workload.size == _SMALL]
            title = f"{verb} ({deployment})"
            written += _plot(
                serial,
                lambda row: row.key.workload.size,
                lambda row: row.throughput,
                _sizes,
                f"{title}, one at a time",
                "MiB/s",
                folder / f"throughput-{verb}-{name}.png",
            )
            written += _plot(
                small,
                lambda row: row.key.workload.at_once,
                lambda row: row.rate,
                _lanes,
                f"{title}, {format_size(_SMALL)}",
                "blobs per second",
                folder / f"requests-{verb}-{name}.png",
            )
    return written


def _plot(
    rows: Sequence[Row],
    x: Callable[[Row], int],
    y: Callable[[Row], float],
    label_x: Callable[[Axes, Sequence[int]], None],
    title: str,
    unit: str,
    path: Path,
) -> list[Path]:
    """A line for each peer; nothing where there is only one point on the axis."""
    from matplotlib.figure import Figure

    points = sorted({x(row) for row in rows})
    if len(points) < 2:
        return []
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=x):
        lines[row.key.peer].append(row)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for peer, line in lines.items():
        axes.plot([x(row) for row in line], [y(row) for row in line], marker="o", label=peer)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    label_x(axes, points)
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return [path]


def _sizes(axes: Axes, points: Sequence[int]) -> None:
    axes.set_xticks(points, [format_size(size) for size in points])
    axes.set_xlabel("size of a blob")


def _lanes(axes: Axes, points: Sequence[int]) -> None:
    axes.set_xticks(points, [str(lanes) for lanes in points])
    axes.set_xlabel("at once")
