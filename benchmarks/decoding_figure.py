"""Draws docs/images/decoding.png, with its numbers in decoding.csv beside it, from the newest kept figures.

    python -m benchmarks decoding && python -m benchmarks.decoding_figure

Above, tokens a second of one row against the context; below, the bytes of its state.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.decoding import PATTERNS
from benchmarks.history import ROOT, all_kept

FOLDER = ROOT / "docs" / "images"
WORK = re.compile(
    r"decode, (?P<model>.+), batch (?P<batch>\d+), context (?P<context>\d+)(?P<k>k?), state (?P<mib>\S+) MiB"
)


class Point(NamedTuple):
    model: str
    context: int
    batch: int
    tokens_per_second: float
    state_mib: float


def points(rows: list[dict[str, Any]]) -> list[Point]:
    """Of the rows of the suite, those that are on a curve."""
    found = []
    for row in rows:
        match = WORK.fullmatch(row["work"])
        if match and row["unit"] == "tokens/s":
            context = int(match["context"]) * (1024 if match["k"] else 1)
            mib = float(match["mib"].replace(",", ""))
            found.append(Point(match["model"], context, int(match["batch"]), row["figure"], mib))
    return found


def draw(found: list[Point], footer: str, folder: Path = FOLDER) -> None:
    """Writes decoding.csv and decoding.png into the folder."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    from experiments.drawing import STYLE, WIDTH, legend, log_axis
    from experiments.palette import FAINT, INK, looks

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "decoding.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Point._fields)
        writer.writerows(found)
    alone = [point for point in found if point.batch == 1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.6), dpi=100, layout="constrained")
        speed, state = figure.subplots(2, 1, sharex=True)
        for name, look in looks(PATTERNS).items():
            mine = sorted(point for point in alone if point.model == name)
            contexts = [point.context for point in mine]
            style: dict[str, Any] = {
                "color": look.colour, "linestyle": look.dash, "marker": look.marker, "markersize": 4, "linewidth": 1.4,
            }  # fmt: skip
            if name.startswith("window"):  # yellow is faint on white
                style |= {"markeredgecolor": INK, "markeredgewidth": 0.5}
            speed.plot(contexts, [point.tokens_per_second for point in mine], label=name, **style)
            state.plot(contexts, [point.state_mib for point in mine], **style)
        log_axis(speed, [point.context for point in alone])
        speed.set(ylabel="tokens a second", yscale="log")
        state.set(ylabel="state of a row, MiB", yscale="log", xlabel="context, tokens")
        for axes in (speed, state):
            axes.tick_params(labelsize=7.5, labelcolor=INK, color=FAINT)
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        state.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        legend(speed)
        figure.supxlabel(footer, fontsize=6.5, color=FAINT, x=0.995, ha="right")
        figure.savefig(folder / "decoding.png", metadata={"Software": None})


def main() -> None:
    kept = [one for one in all_kept() if "decoding" in one["suites"]]
    if not kept:
        raise SystemExit("error: nothing is kept of the suite: python -m benchmarks decoding")
    newest = kept[-1]
    suite, machine = newest["suites"]["decoding"], newest["machine"]
    footer = (
        f"batch 1, float32, equal parameters; {machine['processor']}, 2 threads; commit {newest['commit']}, "
        f"{suite['measured']}"
    )
    draw(points(suite["rows"]), footer)


if __name__ == "__main__":
    main()
