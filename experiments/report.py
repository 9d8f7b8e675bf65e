"""Writes what a study found: Markdown, figures and tables in FOLDER/report; prints the table.

    python -m experiments.report runs/quickstart
    python -m experiments.report runs/quickstart --baseline="mamba 3:1 even"
    python -m experiments.report runs/quickstart --save=results/quickstart

Reads run folders (or the compact form of results/NAME) as they are, also while a study is running. No jax.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commandline import Flag, main, usage
from hybrid.validation import ConfigError, nearest

if TYPE_CHECKING:
    from experiments.results import Results


def _text(name: str, text: str) -> str:
    if not text:
        raise ConfigError(name, "must be given a value")
    return text


FLAGS = {
    "baseline": Flag("ARM", _text, "compare with this arm instead of the study's baseline"),
    "save": Flag("FOLDER", _text, "keep the results there too: small files to commit, read like a study"),
}


def command(argv: list[str]) -> int:
    if any(word in ("--help", "-h", "--helpfull") for word in argv):
        print(usage(__doc__, FLAGS))
        return 0
    folder, given = _parse(argv)
    from experiments.results import load

    results = load(folder)
    if "baseline" in given:
        results = results.against(given["baseline"])
    if "save" in given and Path(given["save"]).resolve() == folder.resolve():
        raise ConfigError("--save", f"{given['save']!r} is the study itself; must be another folder")
    path = write(results)
    show(results)
    if "save" in given:
        print(f"saved: {results.save(given['save'])}")
    print(f"report: {path}")
    return 0


def _parse(argv: list[str]) -> tuple[Path, dict[str, str]]:
    """The study's folder and the flags that were given."""
    folders: list[str] = []
    given: dict[str, str] = {}
    for word in argv:
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("-"):
            folders.append(word)
        elif name not in FLAGS or not word.startswith("--"):
            allowed = [f"--{flag}" for flag in FLAGS]
            raise ConfigError(word, f"unknown flag{nearest('--' + name, allowed)} (allowed: {', '.join(allowed)})")
        elif not equals:
            raise ConfigError(f"--{name}", f"must be given a value, as --{name}={FLAGS[name].placeholder}")
        elif name in given:
            raise ConfigError(f"--{name}", f"is given twice ({given[name]!r} and {text!r}); give it once")
        else:
            given[name] = FLAGS[name].read(f"--{name}", text)
    if len(folders) != 1 or not folders[0]:
        shown = ", ".join(map(repr, folders)) or "nothing"
        raise ConfigError("folder", f"{shown} is not allowed; must be one study, such as runs/quickstart")
    return Path(folders[0]), given


def write(source: Results | Path) -> Path:
    """report/report.md in the study's folder, its figures and tables beside it; the path of the Markdown."""
    from experiments.figures import save
    from experiments.files import write_text
    from experiments.report_text import markdown

    results = _results(source)
    data = results.table()
    target = results.folder / "report"
    save(results, target)
    write_text(target / "table.csv", data.write_csv())
    write_text(target / "runs.csv", results.runs.write_csv())
    path = target / "report.md"
    write_text(path, "\n".join(markdown(results, data)) + "\n")
    return path


def show(source: Results | Path) -> None:
    """Prints the verdict table, what it says in words, the warnings and the paths of the figures."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from experiments.figures import FIGURES, SCORES
    from experiments.report_text import HEADER, STACK, cells, conclusion, warnings

    results = _results(source)
    data = results.table()
    table = Table(
        box=None, pad_edge=False, title=f"{results.study}: test {SCORES[results.score]}", title_justify="left"
    )
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
        path = results.folder / "report" / f"{name}.png"
        if path.exists():
            print(f"figure: {path}")


def _results(source: Results | Path) -> Results:
    from experiments.results import Results, load

    return source if isinstance(source, Results) else load(source)


if __name__ == "__main__":
    main(command)
