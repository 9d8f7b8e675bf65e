"""The figures of a study. Each function draws on a new figure and returns it with the data that it shows.

    figure, data = curves(results, x="flops")

Scores are those of the study (bits per byte, or nats per token), lower is better; intervals are 95 % over seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments import statistics
from experiments.palette import (
    ALARM,
    FAINT,
    GRID,
    INK,
    PLACEMENTS,
    arm_colours,
    kind_colour,
    mixers,
)
from experiments.results import Results, digest
from experiments.verdicts import confirmed, responses
from hybrid.pattern import expand

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.0
"""Inches: a column of text."""
SCORES = {"bits_per_byte": "bits per byte", "loss": "loss, nats per token"}
AXES = {"tokens": "tokens", "flops": "training FLOPs"}

STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "figure.dpi": 100,
    "savefig.dpi": 180,
}


def verdicts(results: Results) -> tuple[Figure, pl.DataFrame]:
    """Each arm as a stripe of its sublayers beside its test score with interval; the baseline is the dotted line."""
    data = results.table()
    rows = len(data)
    figure, (left, right) = _figure(0.62 + 0.27 * max(rows, 1), columns=(1.25, 1), results=results)
    depth = max((len(expand(pattern)) for pattern in data["pattern"]), default=1)
    for y, row in enumerate(data.iter_rows(named=True)):
        _stripe(left, row["pattern"], y, depth, results)
        if row["test"] is not None:
            colour = {"better": INK, "worse": INK}.get(row["verdict"], FAINT)
            _point(right, row["test"], y, row["low"], row["high"], colour)
            if row["verdict"] == "baseline":
                right.axvline(row["test"], color=FAINT, linewidth=0.8, linestyle=":")
        right.annotate(
            row["verdict"] or "no score", (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=7,
            color=INK if row["verdict"] in ("better", "worse") else FAINT,
        )  # fmt: skip
    left.set(xlim=(0, depth), ylim=(rows - 0.5, -0.5), yticks=range(rows), xlabel="sublayer")
    left.set_yticklabels(data["arm"].to_list())
    left.grid(False)
    left.spines[["bottom", "left"]].set_visible(False)
    left.tick_params(length=0)
    right.set(ylim=(rows - 0.5, -0.5), yticks=[], xlabel=f"test {SCORES[results.score]}, 95 % interval")
    right.spines["left"].set_visible(False)
    return figure, data


def curves(results: Results, x: str = "tokens") -> tuple[Figure, pl.DataFrame]:
    """Validation score against tokens or FLOPs at each arm's chosen setting: seeds thin, their mean thick."""
    column = f"validation_{results.score}"
    ids = confirmed(results).select("id")
    data = results.curves.join(ids, on="id", how="semi").filter(pl.col(column).is_not_null())
    data = data.select("arm", "seed", "id", "step", "tokens", "flops", column)
    figure, (axes,) = _figure(2.9, results=results)
    for arm, colour in _colours(results).items():
        mine = data.filter(pl.col("arm") == arm)
        for _, seed in mine.group_by("seed", maintain_order=True):
            axes.plot(seed[x], seed[column], color=colour, linewidth=0.6, alpha=0.45)
        mean = mine.group_by("step").agg(pl.col(x).mean(), pl.col(column).mean()).sort("step")
        if len(mean):
            axes.plot(mean[x], mean[column], color=colour, linewidth=1.6, marker="o", markersize=3, label=arm)
    axes.set(xlabel=AXES[x], ylabel=f"validation {SCORES[results.score]}")
    if len(data):
        axes.set(xscale="log", yscale="linear")
        _legend(axes)
    return figure, data


def response(results: Results) -> tuple[Figure, pl.DataFrame]:
    """Validation score against the learning rate of the tuning runs; ring: the chosen rate, red: at an edge."""
    column = f"validation_{results.score}"
    data = results.runs.filter(pl.col("stage") == "tune").select("arm", "learning_rate", "seed", "status", column)
    figure, (axes,) = _figure(2.9, results=results)
    colours = _colours(results)
    edges = dict(results.table().select("arm", "edge").iter_rows())
    for arm, (rates, scores) in responses(results).items():
        if not rates:
            continue
        axes.plot(rates, scores, color=colours[arm], marker="o", markersize=3.5, linewidth=1.2, label=arm)
        finite = [(score, rate) for rate, score in zip(rates, scores, strict=True) if score == score]
        if finite:
            score, rate = min(finite)
            ring = ALARM if edges[arm] else INK
            axes.plot([rate], [score], "o", markersize=8, markerfacecolor="none", markeredgecolor=ring)
        for rate, score in zip(rates, scores, strict=True):
            if score != score:
                place: Any = axes.get_xaxis_transform()
                axes.plot([rate], [0.98], "x", color=colours[arm], transform=place, clip_on=False)
    axes.set(xlabel="learning rate", ylabel=f"validation {SCORES[results.score]}")
    if len(data):
        axes.set_xscale("log")
        _legend(axes)
    note = [name for name in results.arms if edges.get(name)]
    if note:
        title = f"{len(note)} of {len(results.arms)} arms have their best rate at an edge of the grid (red rings)"
        axes.set_title(title, color=ALARM, fontsize=7.5)
    return figure, data


def placement(results: Results) -> tuple[Figure, pl.DataFrame]:
    """Test score with interval against the share of attention; the marker says where the attention stands."""
    kept = confirmed(results)
    column = f"test_{results.score}"
    rows = []
    for arm in results.arms:
        mine = kept.filter((pl.col("arm") == arm) & (pl.col("status") == "done"))
        if not len(mine):
            continue
        first = mine.row(0, named=True)
        found = statistics.interval(mine[column].to_list())
        base = "".join(sorted(set(mixers(first["pattern"], results.symbols)) - {"A", "B"}))
        rows.append(
            {
                "arm": arm, "ratio": first["ratio"], "placement": first["placement"] or "", "base": base,
                "test": found.mean, "low": found.low if found.n > 1 else None,
                "high": found.high if found.n > 1 else None, "n": found.n,
            }
        )  # fmt: skip
    schema = {"arm": pl.String, "ratio": pl.Float64, "placement": pl.String, "base": pl.String, "test": pl.Float64,
              "low": pl.Float64, "high": pl.Float64, "n": pl.Int64}  # fmt: skip
    data = pl.DataFrame(rows, schema=schema, orient="row")
    figure, (axes,) = _figure(2.9, results=results)
    colours = _colours(results)
    spread = _side_by_side(data)
    for row in data.iter_rows(named=True):
        at = row["ratio"] + spread[row["arm"]]
        if row["low"] is not None:
            axes.plot([at, at], [row["low"], row["high"]], color=colours[row["arm"]], linewidth=1)
        marker = PLACEMENTS.get(row["placement"], "o")
        axes.plot([at], [row["test"]], marker, color=colours[row["arm"]], markersize=5.5, label=row["arm"])
    axes.set(xlabel="share of mixers that are attention", ylabel=f"test {SCORES[results.score]}", xlim=(-0.06, 1.06))
    if len(data):
        _legend(axes)
    return figure, data


FIGURES = {
    "verdicts": verdicts,
    "placement": placement,
    "response": response,
    "curves_tokens": lambda results: curves(results, "tokens"),
    "curves_flops": lambda results: curves(results, "flops"),
}
"""File name -> function, in the order of the report."""


def save(results: Results, folder: Path) -> list[Path]:
    """Draws every figure into `folder`: NAME.png, with its data beside it as NAME.csv."""
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        figure, data = draw(results)
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
        plt.close(figure)
        data.write_csv(folder / f"{name}.csv")
        paths.append(folder / f"{name}.png")
    return paths


def _figure(height: float, results: Results, columns: tuple[float, ...] = (1.0,)) -> tuple[Figure, list[Axes]]:
    """A figure a column wide with its axes side by side, and a footer that says which runs made it."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(columns), figsize=(WIDTH, height + 0.35), layout="constrained", squeeze=False,
            gridspec_kw={"width_ratios": columns},
        )  # fmt: skip
        ids = results.runs["id"].to_list()
        done = results.counts().get("done", 0)
        footer = f"study {results.study}: {done} of {len(ids)} runs done, runs {digest(ids)}"
        figure.supxlabel(footer, fontsize=6.5, color=FAINT, x=0.995, ha="right")
    return figure, list(axes[0])


def _legend(axes: Axes) -> None:
    """Beside the axes, where it hides nothing."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=7.5, handlelength=1.6)


def _colours(results: Results) -> dict[str, str]:
    patterns = dict(results.runs.select("arm", "pattern").unique("arm", maintain_order=True).iter_rows())
    return arm_colours(patterns, results.symbols)


def _stripe(axes: Axes, pattern: str, y: float, depth: int, results: Results) -> None:
    """A row of cells, one a sublayer, in the colour of its kind and with its letter where there is room."""
    for i, symbol in enumerate(expand(pattern)):
        colour = kind_colour(symbol, results.symbols)
        axes.barh(y, 0.92, left=i + 0.04, height=0.7, color=colour)
        if depth <= 40:
            dark = symbol not in ("-", "S")
            axes.text(i + 0.5, y, symbol, ha="center", va="center", fontsize=6.5, color="white" if dark else INK)


def _point(axes: Axes, value: float, y: float, low: float | None, high: float | None, colour: str) -> None:
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=colour, linewidth=1.4, solid_capstyle="butt")
    axes.plot([value], [y], "o", color=colour, markersize=4.5)


def _side_by_side(data: pl.DataFrame, gap: float = 0.018) -> dict[str, float]:
    """Arm -> a shift along the ratio, so that arms of one ratio do not lie on each other."""
    shifts = {}
    for _, group in data.group_by("ratio", maintain_order=True):
        for i, arm in enumerate(group["arm"]):
            shifts[arm] = (i - (len(group) - 1) / 2) * gap
    return shifts
