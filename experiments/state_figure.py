"""Score against bytes of state: what an architecture pays in memory while it decodes, and what it gets for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from experiments import drawing
from experiments.palette import FAINT, cells, looks
from experiments.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("arm", "pattern", "ratio", "attention", "mixers", "parameters", "flops_per_token", "state_bytes")
"""Of the data; test, low, high and n follow."""


def state(results: Results) -> tuple[Figure, pl.DataFrame]:
    """Test score with interval against state bytes at the trained length; beside it each arm's mark, stripe and name.

    The grey line joins the arms that no other beats with less state. Arms of equal state stand beside each other; those
    without a state or a score are left out.
    """
    data = results.table().select(*COLUMNS, "test", "low", "high", "n")
    data = data.filter(pl.col("test").is_not_null() & (pl.col("state_bytes") > 0))
    styles = looks(dict(data.select("arm", "pattern").iter_rows()), results.symbols)
    beside = pl.int_range(pl.len()).over("state_bytes") - (pl.len().over("state_bytes") - 1) / 2
    rows = max(len(data), 1)
    stacks = [cells(pattern) for pattern in data["pattern"]]
    depth = max(map(len, stacks), default=1) or 1
    with drawing.figure(results, max(2.9, 0.35 + 0.24 * rows), widths=(1.25, 1)) as (figure, (axes, names)):
        front = _front(data, results.about_score.smaller_is_better)
        axes.plot(front["state_bytes"], front["test"], color=FAINT, linewidth=0.8, zorder=1)
        for y, row in enumerate(data.with_columns(at=pl.col("state_bytes") * 1.025**beside).iter_rows(named=True)):
            look, at = styles[row["arm"]], row["at"]
            if row["low"] is not None:
                axes.plot([at, at], [row["low"], row["high"]], color=look.colour, linewidth=1.2, solid_capstyle="butt")
            axes.plot([at], [row["test"]], look.marker, color=look.colour, markersize=5.5, label=row["arm"])
            names.plot([-0.09 * depth], [y], look.marker, color=look.colour, markersize=5, clip_on=False)
            drawing.stripe(names, stacks[y], y, depth, results)
            place = ("axes fraction", "data")
            names.annotate(drawing.shortened(row["arm"], 22), (1.03, y), xycoords=place, va="center", fontsize=7)
        drawing.log_axis(axes, data["state_bytes"].to_list(), most=5)
        axes.set(xlabel="bytes of state of one sequence", ylabel=f"test {results.about_score.axis}")
        names.set(xlim=(-0.16 * depth, depth), ylim=(max(rows, 8) - 0.5, -0.5), xticks=[], yticks=[])
        names.grid(False)
        names.spines[["bottom", "left"]].set_visible(False)
    return figure, data


def _front(data: pl.DataFrame, smaller_is_better: bool) -> pl.DataFrame:
    """The rows that are better than all with less state, or as little."""
    ordered = data.sort("state_bytes", "test", descending=[False, not smaller_is_better])
    reached = pl.col("test").cum_min() if smaller_is_better else pl.col("test").cum_max()
    before = reached.shift(1)
    better = pl.col("test") < before if smaller_is_better else pl.col("test") > before
    return ordered.filter(before.is_null() | better)
