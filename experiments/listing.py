"""What --dry_run shows: every trial with its size and time, duplicates, what was refused, what is done already."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import rates
from experiments.derived import count, look_up, total_flops
from experiments.manifest import run_folder
from experiments.progress import align, duration
from experiments.study import Run, Study, describe, told
from hybrid.accounting import parameters
from hybrid.pattern import compact, summary

STRIPE = 64
"""Sublayers above which a pattern is shown in its compact form."""


@dataclass(frozen=True)
class Entry:
    run: Run
    parameters: int
    flops: float
    """Of the whole training."""
    state_bytes: int
    seconds: float
    status: str


def entries(
    study: Study, folder: Path, rate: Callable[[float], float], counted: Callable[[Run], Mapping[str, int]]
) -> list[Entry]:
    """One entry a run of the first stage; `rate`: FLOPs a second for a model's FLOPs a token."""
    rows = []
    for run in study.runs:
        counts = counted(run)
        flops = total_flops(run.trial, counts["flops_per_token"])
        status = run_folder(folder, run.id).status()
        size = parameters(run.trial.model).total
        rows.append(Entry(run, size, flops, counts["state_bytes"], flops / rate(counts["flops_per_token"]), status))
    return rows


def show(study: Study, folder: Path, *, workers: int, threads: int) -> None:
    """Prints the listing. Imports jax only where an architecture has not been counted before."""
    _prepare_jax(study)
    sources: dict[str, None] = {}

    def rate(flops_per_token: float) -> float:
        speed, source = rates.rate(flops_per_token, threads)
        sources[source] = None
        return speed

    made = entries(study, folder, rate, lambda run: count(run.trial))
    rows = [_row(entry) for entry in made]
    if sys.stdout.isatty():
        _print_rich(study, made, rows)
    else:
        print(align([HEAD, *rows]))
    for duplicate in study.duplicates:
        print(f"duplicate  {describe(duplicate.changed)}  is the same trial as {duplicate.of.id} ({duplicate.of.arm})")
    for refused in study.refused:
        print(f"refused    {describe(refused.changed)}  {refused.error}")
    print(_totals(study, made, workers, "; ".join(sources)))


def _prepare_jax(study: Study) -> None:
    if any(look_up(run.trial) is None for run in study.runs):
        from experiments.environment import prepare

        prepare()


HEAD = ("id", "arm", "changed", "pattern", "attention", "parameters", "FLOPs", "state", "time", "status")


def _row(entry: Entry) -> tuple[str, ...]:
    sizes = f"{entry.parameters:,}", quantity(entry.flops), quantity(entry.state_bytes, "B")
    status = "" if entry.status == "queued" else entry.status
    model = entry.run.trial.model
    counts = summary(model.pattern, {letter: kind for letter, kind, _ in model.symbols})
    attention = f"{counts.attention} of {counts.mixers}"
    about = entry.run.id, entry.run.arm, told(entry.run), stripe(entry.run), attention
    return *about, *sizes, duration(entry.seconds), status


def stripe(run: Run) -> str:
    """The expanded pattern, or the compact one where that is long."""
    sequence = run.trial.model.sequence
    return "".join(sequence) if len(sequence) <= STRIPE else compact(sequence)


def quantity(value: float, unit: str = "") -> str:
    """Three digits with a decimal prefix: 1.23e12 -> `1.23 T`."""
    prefix = ""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if value < 999.5 or prefix == "E":
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}".rstrip()


def _totals(study: Study, made: Sequence[Entry], workers: int, source: str) -> str:
    more = study.settings.seeds - study.settings.tune_seeds
    tune = sum(entry.flops for entry in made)
    # An arm's tuned runs cost the same but where a tuned field changes the model: the mean stands for the chosen one.
    again = 0.0
    for arm in study.arms:
        mine = [entry.flops for entry in made if entry.run.arm == arm]
        again += more * sum(mine) / len(mine)
    per_flop = made[0].seconds / made[0].flops if made else 0.0
    left = sum(entry.seconds for entry in made if entry.status not in ("done", "diverged")) + again * per_flop
    groups = len({run.group for run in study.runs})
    runs = f"{len(made)} trials in {groups} groups, {len(study.arms)} arms; then {more} more seeds of each arm"
    cost = f"{quantity(tune)}FLOP and {quantity(again)}FLOP" if more else f"{quantity(tune)}FLOP"
    time = f"about {duration(left / max(1, min(workers, groups)))} on {workers} worker{'s' * (workers > 1)}"
    return f"{runs}: {cost}, {time} ({source}; without compilation)"


def _print_rich(study: Study, made: Sequence[Entry], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in HEAD:
        right = name in ("parameters", "FLOPs", "state", "time")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "changed")
    for entry, row in zip(made, rows, strict=True):
        cells: list[Any] = list(row)
        cells[3] = _coloured(entry.run)
        cells[-1] = Text(row[-1], style={"done": "green", "failed": "bold red"}.get(row[-1], "yellow"))
        table.add_row(*cells)
    Console().print(table)


def _coloured(run: Run) -> Any:
    from rich.text import Text

    from experiments.palette import kind_colour

    symbols = {letter: kind for letter, kind, _ in run.trial.model.symbols}
    text = Text()
    if len(run.trial.model.sequence) > STRIPE:
        return Text(stripe(run))
    for symbol in run.trial.model.sequence:
        text.append(symbol, style=f"black on {kind_colour(symbol, symbols)}")
    return text
