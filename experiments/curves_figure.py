"""The table and the figure of a benchmark against length."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.curves import Point
from experiments.files import write_text
from hybrid.validation import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"prefill": "reading a prompt", "decode": "one more token", "train": "loss and gradient"}


def table(folder: Path, points: Sequence[Point]) -> Path:
    """folder/benchmark.csv, a row a point."""
    text = io.StringIO()
    rows = [point.row() for point in points]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()})
    path = folder / "benchmark.csv"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())
    return path


def written(folder: Path) -> list[Point]:
    """The points of folder/benchmark.csv, none where there is no such file."""
    path = folder / "benchmark.csv"
    if not path.is_file():
        return []
    readers: dict[str, Any] = {
        "length": int, "batch": int, "parameters": int, "peak_bytes": int, "seconds": float, "compile_seconds": float,
    }  # fmt: skip

    def point(row: dict[str, str]) -> Point:
        found: dict[str, Any] = {name: None if name in readers and not text else readers.get(name, str)(text)
                                 for name, text in row.items()}  # fmt: skip
        if found["work"] not in TITLES:
            raise ValueError(f"no work is called {found['work']!r}")
        return Point(**found)

    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [point(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            "--workdir", f"{str(path)!r} is not a table of this command ({error}); move it away"
        ) from None


def write(folder: Path, points: Sequence[Point], config: Path) -> Path:
    """folder/benchmark.png: seconds above, memory below, a column a work; the footer says where it is from."""
    from experiments.versions import versions

    found = versions()
    commit = found.get("commit", "")[:12] or f"code {found['code']}"
    footer = f"{config}, {commit}, jax {found['jax']}, {_machine()}"
    path = folder / "benchmark.png"
    draw(points, footer).savefig(path, dpi=150)
    return path


def draw(points: Sequence[Point], footer: str) -> Figure:
    """Curves of one arm have one colour and marker in all axes; a hollow ring is where a curve had to stop."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    from experiments.drawing import STYLE
    from experiments.palette import FAINT, looks

    works = list(dict.fromkeys(point.work for point in points))
    found = looks({point.arm: point.pattern or None for point in reversed(points)})
    arms = list(dict.fromkeys(point.arm for point in points))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, 3.1 * len(works)), 5.2), dpi=100, layout="constrained")
        axes = figure.subplots(2, len(works), squeeze=False, sharex=True)
        for column, work in enumerate(works):
            for row, (name, scale, label) in enumerate(ROWS):
                ax = axes[row][column]
                for arm in arms:
                    at = [p for p in points if p.arm == arm and p.work == work and p.seconds is not None]
                    look = found[arm]
                    xs, ys = [p.length for p in at], [getattr(p, name) / scale for p in at]
                    ax.plot(
                        xs, ys, color=look.colour, linestyle=look.dash, marker=look.marker, markersize=3.5,
                        linewidth=1.3, label=arm,
                    )  # fmt: skip
                ax.set_xscale("log", base=2)
                ax.set_yscale("log")
                ax.xaxis.set_major_formatter(FuncFormatter(_tokens))
                ax.xaxis.set_major_locator(LogLocator(base=4))
                unit = "s a token" if work == "decode" else "s"
                ax.set_ylabel(label.format(unit=unit))
                if row == 0:
                    ax.set_title(TITLES.get(work, work))
                else:
                    ax.set_xlabel("length, tokens")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
        figure.supxlabel(footer, fontsize=6.5, color=FAINT, x=0.995, ha="right")
    return figure


ROWS: tuple[tuple[str, Any, str], ...] = (
    ("seconds", 1.0, "time, {unit}"),
    ("peak_bytes", 2**30, "memory of the program, GiB"),
)


def _tokens(value: float, _: Any = None) -> str:
    """1024 -> 1k, 2^20 -> 1M."""
    for size, letter in ((2**20, "M"), (2**10, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _machine() -> str:
    import platform

    from experiments.environment import threads

    return f"{platform.machine()}, {threads()} threads"
