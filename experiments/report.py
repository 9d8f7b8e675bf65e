"""Writes what a study found: Markdown, figures and tables in FOLDER/report; prints the table.

    python -m experiments.report runs/quickstart
    python -m experiments.report runs/quickstart --baseline="mamba 3:1 even"
    python -m experiments.report runs/quickstart --axis=flops
    python -m experiments.report runs/quickstart --save=results/quickstart

Reads run folders (or the compact form of results/NAME) as they are, also while a study is running. No jax.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commandline import Flag, main, split, text_of
from hybrid.validation import ConfigError, unknown

if TYPE_CHECKING:
    from experiments.results import Results


CURVES = ("tokens", "flops", "seconds")
"""What curves can be drawn against; the first where nothing is asked."""
FLAGS = {
    "baseline": Flag("ARM", text_of, "compare with this arm instead of the study's baseline"),
    "axis": Flag("tokens|flops|seconds", text_of, "what curves are drawn against (tokens)"),
    "save": Flag("FOLDER", text_of, "keep the results there too: small files to commit, read like a study"),
}


def command(argv: list[str]) -> int:
    words, given = split(argv, __doc__, FLAGS, words=True)
    axis = given.get("axis", CURVES[0])
    if axis not in CURVES:
        raise unknown("--axis", axis, CURVES)
    if len(words) != 1 or not words[0]:
        shown = ", ".join(map(repr, words)) or "nothing"
        raise ConfigError("folder", f"{shown} is not allowed; must be one study, such as runs/quickstart")
    folder = Path(words[0])
    from experiments.results import load

    results = load(folder)
    if "baseline" in given:
        results = results.against(given["baseline"])
    if "save" in given and Path(given["save"]).resolve() == folder.resolve():
        raise ConfigError("--save", f"{given['save']!r} is the study itself; must be another folder")
    path = write(results, axis)
    show(results)
    if "save" in given:
        print(f"saved: {results.save(given['save'])}")
    print(f"report: {path}")
    return 0


def write(source: Results | Path, axis: str = CURVES[0]) -> Path:
    """report/report.md in the study's folder, its figures and tables beside it; the path of the Markdown.

    axis: one of CURVES, what curves are drawn against. Where arms read different data, each source has such a report in
    a folder of its own, and report.md holds their tables.
    """
    from experiments.report_text import markdown, overview

    results = _results(source)
    target, parts = results.folder / "report", _parts(results)
    if len(parts) == 1:
        return _write(results, target, markdown(results, results.table()), axis)
    for folder, part in parts.items():
        _write(part, target / folder, markdown(part, part.table()), axis)
    return _write(results, target, overview(results, parts))


def _parts(results: Results) -> dict[str, Results]:
    """Folder in report/ -> the part of one source; of a study of one source, or without runs, that itself."""
    parts = results.parts()
    if len(parts) <= 1:
        return {"": results}
    return {
        re.sub(r"[^\w.-]+", "-", source): dataclasses.replace(part, study=f"{part.study}: {source}")
        for source, part in parts.items()
    }


def _write(results: Results, target: Path, lines: Iterable[str], axis: str | None = None) -> Path:
    """report.md of these lines, the tables, and with an axis the figures."""
    from experiments.figures import save
    from experiments.files import write_text

    if axis is not None:
        save(results, target, axis)
    write_text(target / "table.csv", results.table().write_csv())
    write_text(target / "runs.csv", results.runs.write_csv())
    path = target / "report.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def show(source: Results | Path) -> None:
    """Prints the verdict table, what it says in words, the warnings and the paths of the figures; each source's own."""
    results = _results(source)
    for folder, part in _parts(results).items():
        _show(part, results.folder / "report" / folder)


def _show(results: Results, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from experiments.figures import FIGURES
    from experiments.report_text import HEADER, STACK, cells, conclusion, warnings

    data = results.table()
    title = f"{results.study}: test {results.about_score.axis}, {results.about_score.direction}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for i, name in enumerate(HEADER):
        table.add_column(name, overflow="fold", no_wrap=i != STACK)
    colours = {"better": "green", "worse": "red"}
    for *row, verdict in cells(data):
        table.add_row(*map(Text, row), Text(verdict, colours.get(verdict, "")))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    console.print(table)
    for line in (*conclusion(results, data), *warnings(results, data)):
        console.print(f"- {line.replace('**', '')}", soft_wrap=True)
    for name in FIGURES:
        path = folder / f"{name}.png"
        if path.exists():
            print(f"figure: {path}")


def _results(source: Results | Path) -> Results:
    from experiments.results import Results, load

    return source if isinstance(source, Results) else load(source)


if __name__ == "__main__":
    main(command)
