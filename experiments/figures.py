"""The figures of a study. Each function draws a new figure and returns it with the data that it shows.

    figure, data = curves(results, x="flops")

Scores are those of the study (experiments.scores says which way is better); intervals are 95 % over seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments import drawing
from experiments.palette import ALARM, FAINT, INK, OTHERS, PLACEMENTS, Look, base, cells, looks
from experiments.results import Results
from experiments.scores import best
from experiments.state_figure import state
from experiments.verdicts import confirmed, edges, responses
from hybrid.pattern import SYMBOLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {"tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds of training, without compilation"}
"""What curves are drawn against."""


def verdicts(results: Results) -> tuple[Figure, pl.DataFrame]:
    """Each arm as a stripe of its sublayers beside its test score with interval; the baseline is the dotted line."""
    data = results.table()
    rows = len(data)
    stacks = [cells(pattern) for pattern in data["pattern"]]
    depth = max(map(len, stacks), default=0) or 1
    with drawing.figure(results, 0.55 + 0.26 * max(rows, 1), widths=(1.2, 1)) as (figure, (left, right)):
        for y, row in enumerate(data.iter_rows(named=True)):
            drawing.stripe(left, stacks[y], y, depth, results)
            colour = INK if row["verdict"] in ("better", "worse") else FAINT
            if row["low"] is not None:
                right.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.4, solid_capstyle="butt")
            if row["test"] is not None:
                fill = "white" if row["verdict"] == "undecided" else colour
                right.plot([row["test"]], [y], "o", color=colour, markersize=4.5, markerfacecolor=fill)
            if row["verdict"] == "baseline":
                right.axvline(row["test"], color=FAINT, linewidth=0.8, linestyle=":")
            word, place = row["verdict"] or "no verdict", ("axes fraction", "data")
            right.annotate(word, (1.02, y), xycoords=place, va="center", fontsize=7, color=colour)
        limits: Any = (rows - 0.5, -0.5) if rows else (0.5, -0.5)
        left.set(xlim=(0, depth), ylim=limits, xticks=[], yticks=range(rows), xlabel=_letters(results, stacks))
        left.xaxis.label.set_fontsize(7)
        left.set_yticklabels([drawing.shortened(arm, 28) for arm in data["arm"]])
        left.grid(False)
        left.spines[["bottom", "left"]].set_visible(False)
        left.tick_params(length=0)
        right.set(ylim=limits, yticks=[], xlabel=f"test {results.about_score.axis}, 95 % interval")
        right.locator_params(axis="x", nbins=5)
        right.spines["left"].set_visible(False)
    return figure, data


def placement(results: Results) -> tuple[Figure, pl.DataFrame]:
    """Test score with interval against the share of attention; lines join arms whose attention is placed alike."""
    data = _by_ratio(results)
    patterns = {name: group["pattern"][0] for (name,), group in data.group_by("series", maintain_order=True)}
    styles = looks(patterns, results.symbols)
    with drawing.figure(results, 2.9) as (figure, (axes,)):
        for (name,), group in data.group_by("series", maintain_order=True):
            look = _placed(styles[str(name)], group)
            at = group["ratio"] + group["shift"]
            for x, low, high in zip(at, group["low"], group["high"], strict=True):
                if low is not None:
                    axes.plot([x, x], [low, high], color=look.colour, linewidth=1.2, solid_capstyle="butt")
            axes.plot(
                at, group["test"], color=look.colour, marker=look.marker, markersize=5.5, linewidth=0.9,
                linestyle=look.dash if len(group) > 1 else "none", label=name,
            )  # fmt: skip
        axes.set(xlabel="share of mixers that are attention", ylabel=f"test {results.about_score.axis}")
        ratios = sorted(set(data["ratio"]))
        if ratios:
            margin = max(0.06 * max(ratios[-1] - ratios[0], 0.25), 1.5 * max(map(abs, data["shift"])))
            axes.set_xlim(ratios[0] - margin, ratios[-1] + margin)
            if all(b - a > 0.07 * (ratios[-1] - ratios[0]) for a, b in pairwise(ratios)):
                axes.set_xticks(ratios, [str(Fraction(ratio).limit_denominator(512)) for ratio in ratios])
        drawing.legend(axes)
    return figure, data.drop("shift")


def response(results: Results) -> tuple[Figure, pl.DataFrame]:
    """Score that rates are chosen by against the learning rate, of the tuning runs; ring: the best, red: at an edge.
    Where a rate was tried on several seeds the line is their mean, and dots are the seeds."""
    column, about = results.selection, results.about_score
    data = results.runs.filter(pl.col("stage") == "tune").select("arm", "learning_rate", "seed", "status", column)
    found = {arm: rows for arm, rows in responses(results).items() if rows[0]}
    styles, at_edge = _arm_looks(results, found), edges(results)
    crosses: Counter[tuple[int, float]] = Counter()
    ylabel = f"{results.select_on} {about.axis}"
    with drawing.panels(results, list(found), "learning rate", ylabel) as (figure, panel):
        for arm, (rates, scores) in found.items():
            axes, look = panel[arm], styles[arm]
            _line(axes, rates, scores, look, label=arm)
            seeds = data.filter((pl.col("arm") == arm) & pl.col(column).is_not_null())
            if seeds.select("learning_rate", "seed").n_unique() > seeds["learning_rate"].n_unique():
                axes.plot(seeds["learning_rate"], seeds[column], ".", color=look.colour, markersize=3, alpha=0.6)
            score = best((score for score in scores if not math.isnan(score)), about.smaller_is_better)
            if score is not None:
                rate = rates[scores.index(score)]
                ring = ALARM if at_edge[arm] else INK
                axes.plot([rate], [score], "o", markersize=8, markerfacecolor="none", markeredgecolor=ring)
            for rate, score in zip(rates, scores, strict=True):
                if math.isnan(score):
                    crosses[id(axes), rate] += 1
                    up = 1.02 - 0.05 * crosses[id(axes), rate]
                    axes.plot([rate], [up], "x", color=look.colour, transform=axes.get_xaxis_transform(), clip_on=False)
        for axes in dict.fromkeys(panel.values()):
            axes.margins(y=0.14)  # room for the rings
            drawing.rate_axis(axes, [rate for rates, _ in found.values() for rate in rates], _ticks(panel))
        edged = [arm for arm in found if at_edge[arm]]
        if edged:
            text = f"{len(edged)} of {len(found)} arms have their best rate at an edge of the grid (red rings)"
            figure.suptitle(text, color=ALARM, fontsize=7.5, x=0.01, ha="left")
        _one_legend(panel)
    return figure, data


def curves(results: Results, x: str = "tokens") -> tuple[Figure, pl.DataFrame]:
    """Validation score against tokens, FLOPs or seconds at each arm's chosen setting: seeds thin, their mean thick.

    Seconds are tokens at the run's median speed, so that what else the machine did in between does not bend a curve.
    """
    column = f"validation_{results.score}"
    ids = confirmed(results).select("id")
    data = results.curves.join(ids, on="id", how="semi", maintain_order="left")
    speeds = results.runs.select("id", "tokens_per_second")
    data = data.join(speeds, on="id", how="left", maintain_order="left")
    data = data.with_columns((pl.col("tokens") / pl.col("tokens_per_second")).alias("seconds"))
    data = data.filter(pl.col(column).is_not_null() & pl.col(x).is_not_null())
    data = _with_mean(data.select("arm", "seed", "id", "status", "step", *AXES, column), column)
    arms = [arm for arm in results.arms if arm in set(data["arm"])]
    means = {arm: _means(data.filter((pl.col("arm") == arm) & pl.col("mean").is_not_null())) for arm in arms}
    styles = _arm_looks(results, arms)
    with drawing.panels(results, arms, AXES[x], f"validation {results.about_score.axis}") as (figure, panel):
        for arm in arms:
            axes, look = panel[arm], styles[arm]
            if len(set(panel.values())) > 1:
                for other in arms:
                    axes.plot(means[other][x], means[other]["mean"], color=OTHERS, linewidth=0.8, zorder=1)
            for _, seed in data.filter(pl.col("arm") == arm).group_by("id", maintain_order=True):
                axes.plot(seed[x], seed[column], color=look.colour, linewidth=0.6, alpha=0.5)
            _line(axes, means[arm][x], means[arm]["mean"], look, label=arm)
        for axes in dict.fromkeys(panel.values()):
            drawing.log_axis(axes, data[x].to_list(), _ticks(panel))
        _one_legend(panel)
    return figure, data


FIGURES = {
    "verdicts": verdicts,
    "state": state,
    "placement": placement,
    "response": response,
    "curves": curves,
}
"""File name -> function, in the order of the report."""


def save(results: Results, folder: Path, axis: str = "tokens") -> list[Path]:
    """Draws every figure into `folder`: NAME.png, with its data beside it as NAME.csv. Equal results, equal bytes.

    axis: one of AXES, what curves are drawn against.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        figure, data = draw(results, axis) if draw is curves else draw(results)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=160, metadata={"Software": None})
        data.write_csv(folder / f"{name}.csv")
    return paths


# --- data of the figures ----------------------------------------------------------------------------------------------


def _by_ratio(results: Results) -> pl.DataFrame:
    """An arm a row: share of attention, test score with interval, the series it belongs to and its place beside others.

    A series holds the arms of one base whose attention is placed by one word; arms without such a word, pure ones, and
    those that share both with another arm (they differ in something else) are series of their own.
    """
    table = results.table().filter(pl.col("test").is_not_null() & pl.col("ratio").is_not_null())
    schema = {"arm": pl.String, "pattern": pl.String, "ratio": pl.Float64, "placement": pl.String}
    numbers = {"test": pl.Float64, "low": pl.Float64, "high": pl.Float64, "n": pl.Int64}
    data = table.select(*schema, *numbers)
    under = [base(pattern, results.symbols) for pattern in data["pattern"]]
    mixed = [bool(low and word and ratio > 0) for low, word, ratio in zip(under, data["placement"], data["ratio"])]  # noqa: B905
    bases = {low for low, is_mixed in zip(under, mixed, strict=True) if is_mixed}
    words = [f"{low} {word}" if len(bases) > 1 else word for low, word in zip(under, data["placement"], strict=True)]
    taken = Counter(zip(words, data["ratio"], strict=True))
    series = [
        word if is_mixed and taken[word, ratio] == 1 else arm
        for arm, word, ratio, is_mixed in zip(data["arm"], words, data["ratio"], mixed, strict=True)
    ]
    data = data.with_columns(pl.Series("series", series, dtype=pl.String))
    ratios = sorted(set(data["ratio"]))
    crowd = max(Counter(data["ratio"]).values(), default=1)
    nearest = min((b - a for a, b in pairwise(ratios)), default=1.0)
    beside = pl.int_range(pl.len()).over("ratio") - (pl.len().over("ratio") - 1) / 2
    return data.with_columns((beside * min(0.018, 0.7 * nearest / crowd)).alias("shift"))


def _with_mean(data: pl.DataFrame, column: str) -> pl.DataFrame:
    """Adds `mean`, over an arm's seeds that are done (over all, where none is), at the steps that each of them has."""
    done = pl.col("status") == "done"
    counted = done | ~done.any().over("arm")
    seeds = pl.col("id").filter(counted).n_unique()
    here = pl.col(column).filter(counted)
    there = (here.len().over("arm", "step") == seeds.over("arm")) & counted
    return data.with_columns(pl.when(there).then(here.mean().over("arm", "step")).alias("mean"))


def _means(data: pl.DataFrame) -> pl.DataFrame:
    """One row a step of one arm: its mean score, where the seeds stand on average (in seconds they differ)."""
    return data.group_by("step").agg(*(pl.col(name).mean() for name in AXES), pl.col("mean").first()).sort("step")


# --- marks ------------------------------------------------------------------------------------------------------------


def _line(axes: Axes, x: Any, y: Any, look: Look, label: str) -> None:
    size = 3.2 if len(x) <= 12 else 0
    axes.plot(
        x, y, color=look.colour, linestyle=look.dash, linewidth=1.4, marker=look.marker, markersize=size, label=label
    )


def _placed(look: Look, series: pl.DataFrame) -> Look:
    """Placed attention has the marker of its word."""
    word = series["placement"][0]
    return look._replace(marker=PLACEMENTS.get(word, look.marker)) if word else look


def _arm_looks(results: Results, drawn: Collection[str]) -> dict[str, Look]:
    """How the arms are drawn; alike where each of those that are drawn has axes of its own."""
    arms = results.runs.unique("arm", keep="first", maintain_order=True).select("arm", "pattern")
    if len(drawn) > drawing.TOGETHER:
        return dict.fromkeys(arms["arm"], Look(INK, "solid", "o"))
    return looks(dict(arms.iter_rows()), results.symbols)


def _letters(results: Results, stacks: list[list[tuple[str, ...]]]) -> str:
    """What the letters of the stripes mean, in lines that fit below them."""
    used = dict.fromkeys(symbol for stack in stacks for cell in stack for symbol in cell)
    names = [f"{symbol} {_kind(results.symbols.get(symbol, symbol))}" for symbol in used]
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + len(name) < 32:
            lines[-1] += f"   {name}"
        else:
            lines.append(name)
    return "\n".join(lines)


def _kind(symbol: str) -> str:
    return SYMBOLS.get(symbol, symbol).replace("_", " ")


def _ticks(panel: dict[str, Axes]) -> int:
    """How many ticks there is room for."""
    return 6 if len(set(panel.values())) <= 1 else 3


def _one_legend(panel: dict[str, Axes]) -> None:
    """Panels of one arm say its name above them."""
    if len(set(panel.values())) == 1:
        drawing.legend(next(iter(panel.values())))
