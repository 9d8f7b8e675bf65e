"""Where a study stands, read from its run folders alone: live on a terminal, elsewhere a plain line now and then.

Clocks only pace the output; what is shown is what is on disk.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.manifest import read, run_folder, stages
from experiments.runs import Status
from experiments.study import describe
from experiments.tally import tally

ENDED = ("done", "diverged", "failed")
EVERY = 15.0
"""Seconds between plain lines."""


@dataclass(frozen=True)
class Line:
    """One run as it is shown.

    tokens: of the whole training; seconds: spent on it so far; rate: tokens a second, as it reported last.
    """

    id: str
    arm: str
    stage: str
    what: str
    status: Status
    step: int
    steps: int
    loss: float | None
    rate: float | None
    tokens: int
    flops_per_token: float | None
    seconds: float = 0.0

    @property
    def left(self) -> float:
        """Share of the training that is still to be done."""
        return 0.0 if self.status in ENDED else 1 - min(1.0, self.step / max(1, self.steps))


@dataclass(frozen=True)
class Snapshot:
    lines: Sequence[Line]
    workers: int

    @property
    def counts(self) -> Counter[str]:
        return Counter(line.status for line in self.lines)

    def seconds_left(self) -> float | None:
        """From the FLOPs still to do and what the runs took that are done, or the rates of those that train.

        None where nothing was measured yet; never negative.
        """
        left = sum(self._flops(line) * line.left for line in self.lines)
        side_by_side = max(1, min(self.workers, sum(line.left > 0 for line in self.lines)))
        pace = self._pace()
        return left * pace / side_by_side if pace is not None else None if left else 0.0

    def _flops(self, line: Line) -> float:
        """Of the whole training; an architecture that was not counted yet is taken for a mean one."""
        known = [other.flops_per_token for other in self.lines if other.flops_per_token]
        return line.tokens * (line.flops_per_token or (sum(known) / len(known) if known else 1.0))

    def _pace(self) -> float | None:
        """Seconds a FLOP of one worker, compilation and evaluation included as soon as a run is done."""
        done = [line for line in self.lines if line.status == "done" and line.seconds > 0]
        if done:
            return sum(line.seconds for line in done) / sum(map(self._flops, done))
        rates = [line.rate * self._flops(line) / line.tokens for line in self.lines if line.rate]
        return len(rates) / sum(rates) if rates else None


class Reader:
    """Reads a study again and again; runs that have ended are read once."""

    def __init__(self, folder: Path, workers: int = 1):
        self.folder, self.workers = Path(folder), workers
        self._ended: dict[str, Line] = {}

    def snapshot(self) -> Snapshot:
        lines = []
        for stage, runs in stages(self.folder):
            for about in runs:
                line = self._ended.get(about["id"]) or self._line(stage, about)
                if line.status in ("done", "diverged"):
                    self._ended[line.id] = line
                lines.append(line)
        return Snapshot(lines, self.workers)

    def _line(self, stage: str, about: Mapping[str, Any]) -> Line:
        run = run_folder(self.folder, about["id"])
        status = run.status()
        record = run.record
        trial, per_token = record["trial"], record["derived"].get("flops_per_token")
        events = run.events()
        speed: Mapping[str, Any] = next((event for event in reversed(events) if event["event"] == "speed"), {})
        steps = trial["train"]["steps"]
        step = {"done": steps, "queued": 0}.get(status, speed.get("step", 0))
        loss = speed.get("loss")
        result = run.result or {}
        if result.get("validation"):
            loss = result["validation"].get("loss", loss)
        tokens = steps * trial["data"]["batch_size"] * trial["data"]["seq_len"]
        several = trial["study"].get("tune_seeds", 1) > 1
        words = [describe(about["changed"])] if stage == "tune" else []
        words += [f"seed={trial['seed']}"] if stage == "confirm" or several else []
        what = " ".join(words)
        rate = speed.get("tokens_per_second")
        return Line(
            about["id"], about["arm"], stage, what, status, step, steps, loss, rate, tokens, per_token, _spent(events)
        )


def _spent(events: Sequence[Mapping[str, Any]]) -> float:
    """Seconds from each start to the last sign of life after it; a clock that was set back counts as nothing."""
    seconds, begun, last = 0.0, None, 0.0
    for event in events:
        if event["event"] == "start":
            seconds += max(0.0, last - begun) if begun is not None else 0.0
            begun = event["time"]
        last = event["time"]
    return seconds + (max(0.0, last - begun) if begun is not None else 0.0)


# --- as text ----------------------------------------------------------------------------------------------------------

ORDER = ("done", "running", "failed", "diverged", "stopped", "queued")


def duration(seconds: float | None) -> str:
    """`3 d 02 h`, `2 h 05 min`, `3 min 20 s`, `12 s`; `?` for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def headline(snapshot: Snapshot) -> str:
    """`12 of 24 done, 2 running, 10 queued, about 3 min 20 s left`."""
    counts = snapshot.counts
    parts = [f"{counts['done']} of {len(snapshot.lines)} done"]
    parts += [f"{counts[status]} {status}" for status in ORDER[1:] if counts[status]]
    if counts["running"] or counts["queued"] or counts["stopped"]:
        parts.append(f"about {duration(snapshot.seconds_left())} left")
    return ", ".join(parts)


def row(line: Line) -> tuple[str, ...]:
    loss = "" if line.loss is None else f"{line.loss:.4f}"
    rate = "" if line.rate is None or line.status != "running" else f"{line.rate:,.0f}"
    left = ""
    if line.status == "running" and line.rate:
        left = duration(line.left * line.tokens / line.rate)
    return line.status, line.id, line.arm, line.what, f"{line.step}/{line.steps}", loss, rate, left


HEAD = ("status", "id", "arm", "run", "step", "loss", "tokens/s", "left")


def plain_table(snapshot: Snapshot) -> str:
    """Every run, aligned, and the headline."""
    return align([HEAD, *(row(line) for line in snapshot.lines)]) + "\n" + headline(snapshot)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, two spaces apart."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def show(folder: Path) -> None:
    """The table of `--status`."""
    written = read(folder) or {}
    snapshot = Reader(folder, int(written.get("workers", 1))).snapshot()
    print(f"{written.get('study', '')} in {folder}")
    runs = [run_folder(folder, about["id"]) for _, listed in stages(folder) for about in listed]
    made = tally([event for run in runs for event in run.events()])
    if made:
        print(made)
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(_table(snapshot, len(snapshot.lines)))
    else:
        print(plain_table(snapshot))


def _table(snapshot: Snapshot, height: int) -> Any:
    """A rich table of at most `height` runs: those that run, failed or come next before those that are done."""
    from rich.table import Table
    from rich.text import Text

    colours = {"done": "green", "running": "cyan", "failed": "bold red", "diverged": "magenta", "stopped": "yellow"}
    urgency = {"running": 0, "failed": 1, "diverged": 1, "stopped": 2, "queued": 3, "done": 4}
    lines = sorted(snapshot.lines, key=lambda line: urgency[line.status])[:height]
    table = Table(title=headline(snapshot), title_justify="left", box=None, pad_edge=False)
    for name in HEAD:
        table.add_column(
            name, justify="right" if name in ("step", "loss", "tokens/s", "left") else "left", no_wrap=True
        )
    for line in lines:
        cells = row(line)
        table.add_row(Text(cells[0], style=colours.get(cells[0], "dim")), *cells[1:])
    if len(lines) < len(snapshot.lines):
        table.caption = f"and {len(snapshot.lines) - len(lines)} more"
    return table


class Display:
    """What the sweep shows while it runs: `update()` as often as one likes."""

    def __init__(self, folder: Path, workers: int):
        self.reader = Reader(folder, workers)
        self.live: Any = None
        self._ended: set[str] = set()
        self._shown = time.monotonic()

    def __enter__(self) -> Display:
        self._ended = {line.id for line in self.reader.snapshot().lines if line.status in ENDED}
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self) -> None:
        now = time.monotonic()
        snapshot = self.reader.snapshot()
        if self.live is not None:
            self.live.update(_table(snapshot, max(5, self.live.console.height - 4)), refresh=True)
            return
        for line in snapshot.lines:
            if line.status in ENDED and line.id not in self._ended:
                self._ended.add(line.id)
                self._print(f"{line.status:8}  {' '.join(row(line)[1:4])}  {_outcome(line)}", now)
        if now - self._shown >= EVERY:
            running = [
                f"{line.arm} {line.what} step {line.step}/{line.steps}" for line in snapshot.lines if _busy(line)
            ]
            self._print(f"{headline(snapshot)} [{'; '.join(running)}]", now)

    def _print(self, text: str, now: float) -> None:
        self._shown = now
        print(text, flush=True)


def _busy(line: Line) -> bool:
    return line.status == "running"


def _outcome(line: Line) -> str:
    return f"loss {line.loss:.4f}" if line.loss is not None and line.status == "done" else ""
