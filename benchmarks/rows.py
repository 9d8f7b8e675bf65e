"""A row of a benchmark: one figure, its bar and what it was measured with."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from benchmarks.measure import Times

SIGNS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Row:
    """`figure` in `unit`; `bar` such as ">= 10" is what it should be. low, high: quartiles over the rounds."""

    work: str
    """What is done, with its sizes: "selective scan, d_inner 512, N 16, L 2048, forward"."""
    against: str
    """The peer or the limit, "" where the figure is one of ours alone."""
    figure: float
    unit: str
    """"x as fast", "x the limit", "MiB", "s", "%" ..."""
    bar: str = ""
    low: float | None = None
    high: float | None = None
    ours: dict[str, float] = field(default_factory=dict)
    """Median milliseconds by each clock."""
    theirs: dict[str, float] = field(default_factory=dict)
    note: str = ""
    """What limits it, where it is not at its bar or at the machine's limit."""

    @property
    def holds(self) -> bool | None:
        """Whether the figure is at its bar; None without one."""
        if not self.bar:
            return None
        sign, value = self.bar.split()
        return bool(SIGNS[sign](self.figure, float(value)))

    def record(self) -> dict[str, Any]:
        return {**self.__dict__, "holds": self.holds}


def faster(work: str, against: str, ours: Times, theirs: Times, bar: str = "", note: str = "") -> Row:
    """The row that says how many times as fast ours is, by the clock, medians of paired rounds."""
    ratio = ours.faster_than(theirs)
    return Row(
        work, against, ratio.median, "x as fast", bar, ratio.low, ratio.high, ours.ms(), theirs.ms(), note
    )  # fmt: skip


def of_limit(work: str, limit: str, ours: Times, seconds: float, bar: str = "", note: str = "") -> Row:
    """The row that says how many times the machine's limit (seconds) ours takes."""
    ms = ours.ms()
    return Row(work, limit, ms["wall"] / 1e3 / seconds, "x the limit", bar, ours=ms, note=note)


def table(title: str, rows: Iterable[Row]) -> Table:
    """For a terminal."""
    shown = Table(title=title, title_justify="left")
    for heading in ("work", "against"):
        shown.add_column(heading, overflow="fold")
    for heading in ("figure", "quartiles", "bar", "ours ms (cpu, busiest)", "theirs ms (cpu, busiest)"):
        shown.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        shown.add_row(*cells(row))
    return shown


def cells(row: Row) -> tuple[str, ...]:
    """work, against, figure, quartiles, bar, ours, theirs, as text."""
    quartiles = "" if row.low is None or row.high is None else f"{number(row.low)} to {number(row.high)}"
    bar = row.bar if row.holds is not False else f"{row.bar} (missed)"
    return row.work, row.against, f"{number(row.figure)} {row.unit}", quartiles, bar, _ms(row.ours), _ms(row.theirs)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ms(clocks: dict[str, float]) -> str:
    if not clocks:
        return ""
    return f"{number(clocks['wall'])} ({number(clocks['cpu'])}, {number(clocks['busiest'])})"
