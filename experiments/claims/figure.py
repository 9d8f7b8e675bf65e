"""The figure of a claim: a row a statement, ours with its interval, and the range that counts as agreement."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.drawing import STYLE, WIDTH
from experiments.palette import ALARM, FAINT, GRID, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.claims.claim import Claim, Finding
    from experiments.results import Results

COLOURS = {"agrees": "#0072B2", "disagrees": ALARM, "undecided": FAINT}
MARKERS = {"agrees": "o", "disagrees": "X", "undecided": "s"}


def figure(claim: Claim, findings: Sequence[Finding], results: Results | None) -> Figure:
    """Rows that are exact are drawn relative to what was published; those of a study in the units of its score."""
    import matplotlib
    from matplotlib.figure import Figure

    relative = results is None
    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=(WIDTH, 0.9 + 0.32 * max(len(findings), 1)), dpi=100, layout="constrained")
        axes = made.subplots()
        ends = [value for finding in findings for value in _values(finding, relative)]
        low, high = min(ends, default=0.0), max(ends, default=1.0)
        if relative:
            low, high = min(low, 0.9), max(high, 1.1)
        margin = 0.08 * max(high - low, 1e-3)
        low, high = low - margin, high + margin
        for y, finding in enumerate(findings):
            _row(axes, y, finding, relative, (low, high))
        axes.set(xlim=(low, high), ylim=(len(findings) - 0.4, -0.6), yticks=range(len(findings)))
        axes.set_yticklabels([textwrap.fill(finding.statement, 34) for finding in findings])
        axes.tick_params(axis="y", length=0, labelsize=7)
        axes.tick_params(axis="x", labelsize=7.5, labelcolor=INK, color=FAINT)
        axes.grid(False, axis="y")
        units = list(dict.fromkeys(finding.unit for finding in findings if finding.unit))
        axes.set_xlabel("ours over published" if relative else "; ".join(units), fontsize=7.5)
        axes.set_title(f"{claim.name} (grey: counts as agreement)", fontsize=8)
        made.supxlabel(_footer(results), fontsize=6.5, color=FAINT, x=0.995, ha="right")
    return made


def _row(axes, y: int, finding: Finding, relative: bool, limits: tuple[float, float]) -> None:
    colour = COLOURS[finding.verdict]
    base = finding.allowed[0] if relative and finding.allowed and finding.allowed[0] else 1.0
    if finding.allowed is not None:
        low, high = (min(max(end / base, limits[0]), limits[1]) for end in finding.allowed)
        axes.barh(y, max(high - low, 0.004 * (limits[1] - limits[0])), left=low, height=0.62, color=GRID, zorder=0)
    if finding.low is not None and finding.high is not None and finding.low < finding.high:
        axes.plot([finding.low / base, finding.high / base], [y, y], color=colour, linewidth=1.4)
    at = finding.ours / base if finding.ours is not None else (1.0 if finding.text else None)
    if at is not None:
        axes.plot([at], [y], MARKERS[finding.verdict], color=colour, markersize=5)
    place = ("axes fraction", "data")
    axes.annotate(finding.verdict, (1.02, y), xycoords=place, va="center", fontsize=7, color=colour)


def _values(finding: Finding, relative: bool) -> list[float]:
    if relative:
        base = finding.allowed[0] if finding.allowed and finding.allowed[0] else 1.0
        return [1.0] if finding.ours is None else [1.0, finding.ours / base]
    allowed = [end for end in finding.allowed or () if math.isfinite(end)]
    return [value for value in (finding.ours, finding.low, finding.high, *allowed) if value is not None]


def _footer(results: Results | None) -> str:
    if results is None:
        return "computed, nothing is trained"
    from experiments.results import digest

    done, ids = results.counts().get("done", 0), results.runs["id"].to_list()
    return f"study {results.study}: {done} of {len(ids)} runs done, runs {digest(ids)}"
