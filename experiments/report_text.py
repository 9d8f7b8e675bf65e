"""What a report says: the cells of its table, the conclusion and the warnings in words, the Markdown around them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from experiments import survival
from experiments.figures import FIGURES
from experiments.responses import Response, good
from experiments.results import Results, digest
from experiments.statistics import interval
from experiments.verdicts import LEVEL, THRESHOLD, confirmed, responses, steps_to, windows

CAPTIONS = {
    "verdicts": "Every arm's sublayers and its test score with a 95 % interval over seeds; dotted: the baseline, "
    "hollow: undecided.",
    "state": "Test score against the bytes that decoding carries at the trained length, with 95 % intervals; grey: "
    "the arms that none with less state beats.",
    "placement": "Test score against the share of attention with 95 % intervals; lines join arms whose attention is "
    "placed alike.",
    "response": "The score that rates are chosen by against the learning rate; ring: the chosen rate (red: at an edge "
    "of the grid), cross: diverged.",
    "curves": "Validation score against training at the chosen rate; thin: one seed, thick: their mean. "
    "`--axis=tokens`, `flops` or `seconds` says against what.",
}
HEADER = (
    "arm", "stack", "attention", "parameters", "FLOPs/token", "state bytes", "rate", "seeds", "test", "difference",
    "verdict",
)  # fmt: skip
STACK = HEADER.index("stack")
EDGES = {"low": "lowest", "high": "highest", "both": "only"}
LONGEST_STACK = 24
"""Sublayers that the table writes out; a longer stack is written as its pattern."""
LONGEST_ERROR = 300
MATCHED = 1.03
"""Largest over smallest number of parameters that still counts as matched."""


def markdown(results: Results, data: pl.DataFrame) -> Iterator[str]:
    """The lines of report.md; `data` is `results.table()`."""
    yield f"# {results.study}"
    yield ""
    for line in conclusion(results, data):
        yield f"- {line}"
    yield ""
    yield from grid(HEADER, cells(data), code=STACK)
    yield explanation(results)
    yield ""
    found = warnings(results, data)
    if found:
        yield "## Before you believe it"
        yield ""
        yield from (f"- {line}" for line in found)
        yield ""
    for name in FIGURES:
        yield f"![{name}]({name}.png)"
        yield ""
        yield f"*{CAPTIONS[name]}* Data: [{name}.csv]({name}.csv)"
        yield ""
    yield from _learnt(results, data)
    yield from _slices(results)
    yield from _rates(results)
    yield from _budgets(results, data)
    yield from _failures(results)
    yield from _again(results)


def overview(results: Results, parts: Mapping[str, Results]) -> Iterator[str]:
    """The lines of report.md of a study whose arms read different data; parts: folder of a report -> what it tells."""
    yield f"# {results.study}"
    yield ""
    yield "Scores on different data are not compared: each source has a table, verdicts and figures of its own."
    yield ""
    for folder, part in parts.items():
        data = part.table()
        yield f"## {part.study}"
        yield ""
        yield from (f"- {line}" for line in conclusion(part, data))
        yield ""
        yield from grid(HEADER, cells(data), code=STACK)
        yield f"Warnings, figures, rates and budgets: [report]({folder}/report.md)"
        yield ""
    yield from _again(results)


def conclusion(results: Results, data: pl.DataFrame) -> list[str]:
    """What the study says, in words: what is decided, the best first, then what is not."""
    found = []
    unit = results.about_score.amount
    decided = data.filter(pl.col("verdict").is_in(["better", "worse"]))
    for row in decided.sort("difference", descending=not results.about_score.smaller_is_better).iter_rows(named=True):
        size = f"{abs(row['difference']):.3f} {unit} (p = {max(row['p'], 0.001):.1g}{', at most' * (row['p'] < 0.001)})"
        found.append(f"**{row['arm']}** is {row['verdict']} than {results.baseline} by {size}")
    undecided = data.filter(pl.col("verdict") == "undecided")["arm"].to_list()
    if undecided:
        found.append(f"undecided against {results.baseline} at this size and number of seeds: {', '.join(undecided)}")
    alone = data.filter(pl.col("verdict").is_null())["arm"].to_list()
    if alone:
        found.append(f"not compared, for want of test scores on a seed of {results.baseline}: {', '.join(alone)}")
    return found or ["there is nothing to compare yet"]


def explanation(results: Results) -> str:
    """How to read the table."""
    about = results.about_score
    where = "one seed" if results.select_on != "test" else "one seed (so that seed's own score is the luckiest of them)"
    test = (
        " As recall comes all at once, a verdict needs three pairs, and the spread that all arms show together must "
        "agree with the paired test." * about.is_share
    )
    return (
        f"Each arm's learning rate was chosen on the {results.select_on} split with {where}; scores are of the test "
        f"split, at that rate, over all seeds: {about.axis} ({about.direction}). ± is a 95 % interval over seeds "
        f"(Student's t below 10 seeds, then a bootstrap of the interquartile mean). Differences are to "
        f"**{results.baseline or 'the baseline'}**, paired by seed, as runs of one seed share the order of the data. "
        "*Better* and *worse* hold for the whole table together (p below 0.05 after Holm's correction); anything "
        f"less is *undecided*.{test} Attention is counted in mixers. State bytes are what decoding carries at the "
        "trained length."
    )


def warnings(results: Results, data: pl.DataFrame) -> list[str]:
    """What a reader must know before believing the table."""
    found = []
    for edge, word in EDGES.items():
        arms = data.filter(pl.col("edge") == edge)["arm"].to_list()
        if arms:
            where = "the only one tried" if edge == "both" else f"the {word} of its grid"
            found.append(f"the best learning rate is {where}, so a better one may lie outside: {', '.join(arms)}")
    for row in data.filter(pl.col("lost") > 0).iter_rows(named=True):
        seeds = row["n"] + row["lost"]
        found.append(f"{row['arm']}: {row['lost']} of {seeds} seeds at the chosen rate diverged and are in no mean")
    if results.select_on == "test":
        found.append("settings were chosen on the test split itself, as the protocol does: scores are too good by that")
    few = data.filter((pl.col("n") < 2) & (pl.col("lost") == 0))
    if len(few):
        found.append(f"fewer than two scored seeds, so no interval: {', '.join(few['arm'])}")
    more = [f"{arm} {max(seeds, 1)}" for arm, seeds in data.select("arm", "more_seeds").drop_nulls().iter_rows()]
    if more:
        found.append(f"more seeds that would decide a difference as large as the one seen (about): {', '.join(more)}")
    sizes = data["parameters"].drop_nulls().to_list()
    if sizes and max(sizes) > MATCHED * min(sizes):
        found.append(f"parameters are not matched: {min(sizes):,} to {max(sizes):,}")
    if results.runs["fingerprint"].drop_nulls().n_unique() > 1:
        found.append("runs saw different data: their fingerprints differ")
    counts = {status: n for status, n in results.counts().items() if status != "done"}
    if counts:
        found.append("of all runs " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    return found + list(results.problems)


# --- tables -----------------------------------------------------------------------------------------------------------


def cells(data: pl.DataFrame) -> list[list[str]]:
    """The verdict table as text, in the columns of HEADER."""
    return [
        [
            row["arm"],
            (row["expanded"] if len(row["expanded"] or "") <= LONGEST_STACK else row["pattern"]) or "",
            "" if row["attention"] is None else f"{row['attention']} of {row['mixers']}",
            "" if row["parameters"] is None else f"{row['parameters']:,}",
            short(row["flops_per_token"]),
            short(row["state_bytes"]),
            _rate(row),
            str(row["n"]) + (f" (+{row['lost']} diverged)" if row["lost"] else ""),
            with_interval(row["test"], row["low"], row["high"]),
            with_interval(row["difference"], row["difference_low"], row["difference_high"], "+"),
            row["verdict"] or ("diverged" if row["diverged"] == row["runs"] else "no verdict"),
        ]
        for row in data.iter_rows(named=True)
    ]


def grid(header: Iterable[str], rows: Iterable[Iterable[Any]], code: int | None = None) -> Iterator[str]:
    """A Markdown table and an empty line; column `code` is set as code."""
    header = list(header)
    yield f"| {' | '.join(header)} |"
    yield "|---" * len(header) + "|"
    for row in rows:
        texts = [" ".join(str(cell).split()).replace("|", "\\|") for cell in row]
        yield "| " + " | ".join(f"`{text}`" if i == code and text else text for i, text in enumerate(texts)) + " |"
    yield ""


def short(value: float | None) -> str:
    """1234567 -> 1.23M; empty for None."""
    if value is None:
        return ""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _rate(row: dict[str, Any]) -> str:
    if row["learning_rate"] is None:
        return ""
    return f"{row['learning_rate']:g}" + (f" ({EDGES[row['edge']]})" if row["edge"] else "")


def with_interval(mean: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    """mean ± half the interval, or the interval itself where it is not symmetric."""
    if mean is None:
        return ""
    text = format(mean, f"{sign}.3f")
    if low is None or high is None:
        return text
    if abs((high - mean) - (mean - low)) <= 1e-6 * abs(high - low):
        return f"{text} ± {high - mean:.3f}"
    return f"{text} [{low:{sign}.3f}, {high:{sign}.3f}]"


# --- sections ---------------------------------------------------------------------------------------------------------


def _learnt(results: Results, data: pl.DataFrame) -> Iterator[str]:
    """Of shares of right answers: how many seeds learnt the task, and after how many steps."""
    if not results.about_score.is_share:
        return
    runs = steps_to(results)
    rows = []
    for row in data.iter_rows(named=True):
        about = survival.survival(runs[row["arm"]], LEVEL) if runs[row["arm"]] else None
        failing = "" if row["failing"] is None else f"{row['failing']:.0%}"
        seeds = row["n"] + row["lost"]
        p = "" if row["steps_p"] is None else f"{row['steps_p']:.2g}"
        rows.append([row["arm"], seeds, failing, *_median(about), p])
    yield "## Seeds that learnt"
    yield ""
    yield f"A seed fails where it diverges or its test score is below {THRESHOLD:g}. Steps are those to {THRESHOLD:g}"
    yield "on the validation split; a run that never got there counts as *more than its last step* (Kaplan and Meier)."
    yield f"p compares the steps with those of {results.baseline} (log-rank, each comparison alone)."
    yield ""
    yield from grid(("arm", "seeds", "failing", "median steps", "95 %", "p"), rows)


def _median(found: survival.Survival | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    if found.median is None:
        return f"not in half of {found.n} seeds", ""
    low, high = ("" if end is None else f"{end:,.0f}" for end in (found.low, found.high))
    return f"{found.median:,.0f}", f"{low} to {high}" if low and high else f"from {low}" if low else ""


def _slices(results: Results) -> Iterator[str]:
    """The named parts of the test data: an arm a row, a slice a column."""
    kept = confirmed(results).filter(pl.col("status") == "done").select("id", "arm")
    mine = results.slices.filter(pl.col("score") == results.score).join(kept, on="id", maintain_order="left")
    names = mine["slice"].unique(maintain_order=True).to_list()
    if not names:
        return
    yield "## Parts of the test data"
    yield ""
    yield f"Mean {results.about_score.axis} over seeds with a 95 % interval; empty: longer than the arm can read."
    yield ""
    rows = []
    for arm in results.arms:
        cells = []
        for name in names:
            values = mine.filter((pl.col("arm") == arm) & (pl.col("slice") == name))["value"].drop_nulls().to_list()
            found = interval(values, LEVEL) if values else None
            ends = (None, None) if found is None or found.n < 2 else (found.low, found.high)
            cells.append(with_interval(found.mean if found else None, *ends))
        rows.append([arm, *cells])
    yield from grid(("arm", *names), rows)


def _rates(results: Results) -> Iterator[str]:
    """How wide the good window of each arm is: a narrow one says that the arm is easily mistuned."""
    found = windows(results)
    if found:
        yield "## Learning rates"
        yield ""
        yield f"A rate is good where its {results.select_on} score {good(results.about_score)}, by straight lines"
        yield "between those tried; the window may be wider where it reaches the end of the grid."
        yield ""
        tried = responses(results)
        rows = ([arm, *_window(tried[arm], response)] for arm, response in found.items())
        yield from grid(("arm", "tried", "diverged", "best", "good", "decades"), rows)


def _window(tried: tuple[list[float], list[float]], response: Response) -> list[str]:
    rates, scores = tried
    diverged = [f"{rate:g}" for rate, score in zip(rates, scores, strict=True) if math.isnan(score)]
    edge = f" ({EDGES[response.at_edge]})" if response.at_edge else ""
    width = f"{response.width:.2f}" if response.bounded else f"at least {response.width:.2f}"
    good = f"{response.low:.2g} to {response.high:.2g}" if response.width else f"{response.low:.2g}"
    return [", ".join(f"{rate:g}" for rate in rates), ", ".join(diverged), f"{response.best_rate:g}{edge}", good, width]


def _budgets(results: Results, data: pl.DataFrame) -> Iterator[str]:
    """The three budgets beside each other, relative to the baseline's."""
    base = data.filter(pl.col("arm") == results.baseline)
    if len(base):
        names = ("parameters", "flops_per_token", "state_bytes")
        spans = [_span(data[name].drop_nulls().to_list()) for name in names]
        yield "## Budgets"
        yield ""
        yield f"Relative to {results.baseline}:"
        yield ""
        rows = ([row["arm"], *(_relative(row[name], base[name][0]) for name in names)] for row in data.to_dicts())
        yield from grid(("arm", "parameters", "FLOPs/token", "state bytes"), [*rows, ["largest over smallest", *spans]])


def _span(values: list[float]) -> str:
    return f"{max(values) / min(values):.3g}" if values and min(values) > 0 else ""


def _relative(value: float | None, base: float | None) -> str:
    return "" if value is None or not base else f"{100 * (value / base - 1):+.1f} %"


def _failures(results: Results) -> Iterator[str]:
    bad = results.runs.filter(pl.col("status").is_in(["failed", "diverged"]))
    if len(bad):
        columns = ("id", "arm", "setting", "seed", "status", "phase", "error")
        rows = bad.select(columns).with_columns(pl.col("phase", "error").fill_null("")).iter_rows()
        yield "## Runs that failed or diverged"
        yield ""
        yield from grid(("run", *columns[1:]), ([*row[:-1], row[-1][:LONGEST_ERROR]] for row in rows))


def _again(results: Results) -> Iterator[str]:
    yield "## To run it again"
    yield ""
    if results.manifest.get("command"):
        yield f"    {results.manifest['command']}"
        yield ""
    fingerprints = sorted(set(results.runs["fingerprint"].drop_nulls()))
    facts = {**results.versions, "data": ", ".join(fingerprints), "runs": digest(results.runs["id"])}
    yield ", ".join(f"{name} {value}" for name, value in facts.items() if value)
