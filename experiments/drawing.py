"""What the figures of a study have in common: style, layout, ticks, cells. Figures are made without pyplot's state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

from experiments.palette import FAINT, GRID, INK, LIGHT, kind_colour
from experiments.results import Results, digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.0
"""Inches: a column of text."""
TOGETHER = 8
"""Arms that one pair of axes can show so that each is still told apart; more get axes of their own."""
COLUMNS = 4
"""Axes beside each other, where each arm has its own."""

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same pixels on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}


@contextmanager
def figure(
    results: Results, height: float, rows: int = 1, widths: Sequence[float] = (1.0,), shared: bool = False
) -> Iterator[tuple[Figure, list[Axes]]]:
    """(figure, its axes row by row), `height` inches of axes, with a footer that says which runs it shows.

    widths: of the columns, relative; shared: the axes have one scale, and labels at the outer ones alone.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=(WIDTH, height + 0.3), dpi=100, layout="constrained")
        grid = made.subplots(
            rows, len(widths), squeeze=False, sharex=shared, sharey=shared, gridspec_kw={"width_ratios": widths}
        )
        axes = list(grid.flat)
        for each in axes:
            each.tick_params(labelsize=7.5, labelcolor=INK, color=FAINT)
        done, ids = results.counts().get("done", 0), results.runs["id"].to_list()
        footer = f"study {results.study}: {done} of {len(ids)} runs done, runs {digest(ids)}"
        made.supxlabel(footer, fontsize=6.5, color=FAINT, x=0.995, ha="right")
        yield made, axes
        if not len(results.runs):
            axes[0].text(0.5, 0.5, "no runs yet", transform=axes[0].transAxes, ha="center", color=FAINT)


@contextmanager
def panels(
    results: Results, names: Sequence[str], xlabel: str, ylabel: str
) -> Iterator[tuple[Figure, dict[str, Axes]]]:
    """(figure, name -> axes to draw it on): one pair of axes for a few names, else one each on common scales."""
    if len(names) <= TOGETHER:
        with figure(results, height=2.9) as (made, (axes,)):
            axes.set(xlabel=xlabel, ylabel=ylabel)
            yield made, dict.fromkeys(names, axes)
        return
    rows = math.ceil(len(names) / COLUMNS)
    with figure(results, 0.4 + 1.15 * rows, rows=rows, widths=(1.0,) * COLUMNS, shared=True) as (made, axes):
        made.supylabel(ylabel, fontsize=8, color=INK)
        for i, each in enumerate(axes):
            each.set_visible(i < len(names))
            if i < len(names) <= i + COLUMNS:
                each.set_xlabel(xlabel, fontsize=7.5)
                each.tick_params(labelbottom=True)
        for name, each in zip(names, axes, strict=False):
            each.set_title(shortened(name, 24), fontsize=7.5)
        yield made, dict(zip(names, axes, strict=False))


def legend(axes: Axes) -> None:
    """Beside the axes, where it hides nothing; none where nothing has a name."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, [shortened(name, 28) for name in names], loc="center left", bbox_to_anchor=(1.01, 0.5),
            frameon=False, fontsize=7.5, handlelength=2.2,
        )  # fmt: skip


def shortened(name: str, length: int) -> str:
    """At most `length` characters, the middle left out."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - half]}…{name[-half:]}"


# --- ticks ------------------------------------------------------------------------------------------------------------


def log_axis(axes: Axes, values: Sequence[float], most: int = 6) -> None:
    """x is logarithmic with at least three ticks where the values are, at round numbers written as 20k, 1.5M, 3T."""
    from matplotlib.ticker import EngFormatter

    found = [value for value in values if value > 0]
    if found:
        low, high = min(found), max(found)
        margin = max((high / low) ** 0.04, 1.02) if high > low else 1.5
        low, high = low / margin, high * margin
        _logarithmic(axes, low, high, round_numbers(low, high, most), EngFormatter(sep=""))


def rate_axis(axes: Axes, rates: Sequence[float], most: int = 6) -> None:
    """x is logarithmic with the rates themselves as ticks, where they are few and not too close to each other."""
    found = sorted(set(rates))
    if found:
        low, high = found[0], found[-1]
        margin = max((high / low) ** 0.07, 1.2)
        steps = [math.log(b / a) for a, b in pairwise(found)]
        few = len(found) <= most and all(step >= math.log(high / low) / (2 * most) for step in steps)
        ticks = found if few else round_numbers(low, high, most)
        _logarithmic(axes, low / margin, high * margin, ticks, lambda value, _: f"{value:g}")


def _logarithmic(axes: Axes, low: float, high: float, ticks: Sequence[float], form: Any) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set(xscale="log", xlim=(low, high))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(form)


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """Between 3 and `most` round numbers from `low` to `high`, evenly spaced in their logarithm as far as that goes."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        ticks = [m * 10.0**e for e, m in product(decades, mantissas) if low <= m * 10.0**e <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / most)] if ticks else [low, high]


# --- marks ------------------------------------------------------------------------------------------------------------


def stripe(axes: Axes, sublayers: Sequence[tuple[str, ...]], y: float, depth: int, results: Results) -> None:
    """A row of cells, one a sublayer, in the colour of its kind, with its letter where there is room.

    Branches lie on each other. depth: cells that the widest row has.
    """
    gap = 0.04 if depth <= 40 else 0.0
    for x, symbols in enumerate(sublayers):
        height = 0.7 / len(symbols)
        for i, symbol in enumerate(symbols):
            at = y - 0.35 + (i + 0.5) * height
            colour = kind_colour(symbol, results.symbols)
            axes.barh(at, 1 - 2 * gap, left=x + gap, height=height, color=colour, linewidth=0)
            if depth <= 40:
                dark = INK if results.symbols.get(symbol, symbol) in LIGHT else "white"
                size = 6.5 if depth <= 16 else 5
                axes.text(x + 0.5, at, symbol, ha="center", va="center", fontsize=size, color=dark)
