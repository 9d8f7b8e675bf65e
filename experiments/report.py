"""Writes what a study found: Markdown, figures and tables in FOLDER/report; prints the table.

    python -m experiments.report runs/quickstart

Reads run folders (or the compact form of results/NAME) as they are, also while a study is running. No jax.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from experiments.commandline import main
from experiments.figures import FIGURES, SCORES, save
from experiments.files import write_text
from experiments.results import Results, digest, load
from hybrid.validation import ConfigError

CAPTIONS = {
    "verdicts": "Every arm's sublayers and its test score with a 95 % interval over seeds; dotted: the baseline.",
    "placement": "Test score against the share of attention; the marker says where the attention stands.",
    "response": "Validation score against the learning rate; ring: the chosen rate (red: at an edge of the grid), "
    "cross: diverged.",
    "curves_tokens": "Validation score against tokens at the chosen rate; thin: one seed, thick: their mean.",
    "curves_flops": "The same against the operations of training.",
}


def command(argv: list[str]) -> int:
    if any(word in ("--help", "-h") for word in argv):
        print((__doc__ or "").strip())
        return 0
    if len(argv) != 1 or argv[0].startswith("-"):
        given = " ".join(argv) or "nothing"
        raise ConfigError("folder", f"{given!r} is not allowed; give one study, such as runs/quickstart")
    path = write(Path(argv[0]))
    show(Path(argv[0]))
    print(f"report: {path}")
    return 0


def write(folder: Path) -> Path:
    """FOLDER/report/report.md with its figures and tables beside it; the path of the Markdown."""
    results = load(folder)
    target = folder / "report"
    save(results, target)
    results.table().write_csv(target / "table.csv")
    results.runs.write_csv(target / "runs.csv")
    path = target / "report.md"
    write_text(path, "\n".join(markdown(results)) + "\n")
    return path


def show(folder: Path) -> None:
    """Prints the verdict table, the warnings and the figures' paths."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    results = load(folder)
    data = results.table()
    header, rows = _cells(results, data)
    table = Table(*header, title=f"{results.study}: test {SCORES[results.score]}", title_justify="left", box=None)
    for row in rows:
        style = {"better": "green", "worse": "red", "undecided": "dim"}.get(row[-1], "")
        table.add_row(*row[:-1], Text(row[-1], style=style))
    wide = None if sys.stdout.isatty() else 160
    console = Console(width=wide)
    console.print(table)
    for line in warnings(results, data):
        console.print(f"- {line}", highlight=False)
    for name in FIGURES:
        if (folder / "report" / f"{name}.png").exists():
            print(f"figure: {folder / 'report' / f'{name}.png'}")


def markdown(results: Results) -> Iterator[str]:
    """The lines of the report."""
    data = results.table()
    header, rows = _cells(results, data)
    yield f"# {results.study}"
    yield ""
    yield from conclusion(results, data)
    yield ""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(f"`{cell}`" if i == 1 else cell for i, cell in enumerate(row)) + " |"
    yield ""
    yield from _how(results)
    for line in warnings(results, data):
        yield f"- {line}"
    yield ""
    for name in FIGURES:
        yield f"![{name}]({name}.png)"
        yield ""
        yield f"*{CAPTIONS[name]}* Data: [{name}.csv]({name}.csv)"
        yield ""
    yield from _budgets(results, data)
    yield from _failures(results)
    yield from _again(results)


def conclusion(results: Results, data: pl.DataFrame) -> Iterator[str]:
    """What the study says, in words."""
    decided = data.filter(pl.col("verdict").is_in(["better", "worse"]))
    undecided = data.filter(pl.col("verdict") == "undecided")
    unit = SCORES[results.score]
    for row in decided.sort("difference").iter_rows(named=True):
        size = f"{abs(row['difference']):.3f} {unit}"
        yield f"**{row['arm']}** is {row['verdict']} than {results.baseline} by {size} (p < 0.05 over the table, Holm)."
    if len(undecided):
        names = ", ".join(undecided["arm"].to_list())
        yield f"Undecided against {results.baseline} at this size and number of seeds: {names}."
    if not len(decided) and not len(undecided):
        yield "No arm has been compared yet."


def warnings(results: Results, data: pl.DataFrame) -> list[str]:
    """What a reader must know before believing the table."""
    found = []
    for edge, word in (("low", "lowest"), ("high", "highest"), ("both", "only")):
        arms = data.filter(pl.col("edge") == edge)["arm"].to_list()
        if arms:
            found.append(
                f"the best learning rate is the {word} of its grid, so a better one may lie outside: {', '.join(arms)}"
            )
    for row in data.filter(pl.col("n") < 2).iter_rows(named=True):
        found.append(f"{row['arm']} has {row['n']} scored seeds: no interval")
    for row in data.filter(pl.col("verdict") == "undecided").iter_rows(named=True):
        if row["more_seeds"] is not None and row["more_seeds"] <= 200:
            found.append(f"{row['arm']}: about {row['more_seeds']} more seeds would decide a difference of this size")
    sizes = [size for size in data["parameters"].to_list() if size is not None]
    if sizes and max(sizes) > 1.03 * min(sizes):
        found.append(f"parameters are not matched: {min(sizes):,} to {max(sizes):,}")
    counts = {status: n for status, n in results.counts().items() if status not in ("done", "diverged")}
    if counts:
        found.append("not over: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    return found + list(results.problems)


def _cells(results: Results, data: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The table as text: header and rows; the verdict is last."""
    header = [
        "arm",
        "stack",
        "parameters",
        "FLOPs/token",
        "state bytes",
        "rate",
        "seeds",
        "test",
        "difference",
        "verdict",
    ]
    rows = []
    for row in data.iter_rows(named=True):
        rows.append(
            [
                row["arm"] or "",
                row["expanded"] if len(row["expanded"] or "") <= 24 else row["pattern"],
                _number(row["parameters"], ",.0f"),
                _short(row["flops_per_token"]),
                _short(row["state_bytes"]),
                _number(row["learning_rate"], "g") + {"low": " (lowest)", "high": " (highest)"}.get(row["edge"], ""),
                str(row["n"]),
                _with_interval(row["test"], row["low"], row["high"]),
                _with_interval(row["difference"], row["difference_low"], row["difference_high"], "+"),
                row["verdict"] or "no score",
            ]
        )
    return header, rows


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _short(value: float | None) -> str:
    """1234567 -> 1.23M."""
    if value is None:
        return ""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _with_interval(mean: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    """mean ± half the interval, or the interval itself where it is not symmetric."""
    if mean is None:
        return ""
    text = format(mean, f"{sign}.3f")
    if low is None or high is None:
        return text
    if abs((high - mean) - (mean - low)) < 1e-9 + 1e-6 * abs(high - low):
        return f"{text} ± {high - mean:.3f}"
    return f"{text} [{low:.3f}, {high:.3f}]"


def _how(results: Results) -> Iterator[str]:
    yield (
        "Each arm's learning rate was chosen on the validation split with one seed; scores are of the test split, at "
        f"that rate, over all seeds, in {SCORES[results.score]} (lower is better). ± is a 95 % interval over seeds "
        f"(Student's t below 10 seeds). Differences are to **{results.baseline}**, paired by seed, which also share "
        "the order of the data; verdicts hold for the whole table (Holm), anything less is *undecided*."
    )
    yield ""


def _budgets(results: Results, data: pl.DataFrame) -> Iterator[str]:
    """The three budgets beside each other, relative to the baseline's."""
    base = data.filter(pl.col("arm") == results.baseline)
    if not len(base):
        return
    yield "## Budgets"
    yield ""
    yield f"Relative to {results.baseline}:"
    yield ""
    yield "| arm | parameters | FLOPs/token | state bytes |"
    yield "|---|---|---|---|"
    for row in data.iter_rows(named=True):
        cells = [_relative(row[name], base[name][0]) for name in ("parameters", "flops_per_token", "state_bytes")]
        yield f"| {row['arm']} | " + " | ".join(cells) + " |"
    yield ""


def _relative(value: float | None, base: float | None) -> str:
    return "" if value is None or not base else f"{100 * (value / base - 1):+.1f} %"


def _failures(results: Results) -> Iterator[str]:
    bad = results.runs.filter(pl.col("status").is_in(["failed", "diverged"]))
    if not len(bad):
        return
    yield "## Runs that failed or diverged"
    yield ""
    yield "| run | arm | setting | seed | status | phase | error |"
    yield "|---|---|---|---|---|---|---|"
    for row in bad.iter_rows(named=True):
        error = " ".join((row["error"] or "").split()).replace("|", "\\|")
        cells = (row["id"], row["arm"], row["setting"], row["seed"], row["status"], row["phase"] or "", error)
        yield "| " + " | ".join(map(str, cells)) + " |"
    yield ""


def _again(results: Results) -> Iterator[str]:
    yield "## To run it again"
    yield ""
    if results.manifest.get("command"):
        yield f"    {results.manifest['command']}"
        yield ""
    fingerprints = sorted(set(results.runs["fingerprint"].drop_nulls()))
    facts = {**results.versions, "data": ", ".join(fingerprints), "runs": digest(results.runs["id"])}
    yield ", ".join(f"{name} {value}" for name, value in facts.items() if value)


if __name__ == "__main__":
    main(command)
