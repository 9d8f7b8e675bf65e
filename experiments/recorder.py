"""What a run says while it trains: deterministic rows, events with times, the mirror, the progress."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from experiments import tracking
from experiments.config import Trial
from experiments.data.synthetic.rows import tokens_read
from experiments.runs import RunFolder
from hybrid.losses import IGNORED

Watch = Callable[[Mapping[str, Any]], None]
"""Called with {"step", "steps", "loss", "tokens_per_second"} now and then."""

SPEED_SECONDS = 1.0
"""Least time between two speeds in events.jsonl."""


class Recorder:
    """Writes the rows and events of one run. `rows` are those that metrics.jsonl has."""

    def __init__(self, trial: Trial, run: RunFolder, token_bytes: np.ndarray, watch: Watch | None = None):
        self.trial, self.run = trial, run
        self.rows = run.rows()
        self.seconds_before = 0.0
        """Of training before this process, as the checkpoint says."""
        self.flops_per_token = 0.0
        """To be set before the first row."""
        self._token_bytes, self._watch = token_bytes, watch
        self._begun = self._last = time.perf_counter()
        self._last_step: int | None = None
        self._mirror: tracking.Mirror | None = None
        self._arrived: float | None = None
        self._stepped = False
        self._lost = {"data_wait": 0.0, "overhead": 0.0}
        """Seconds since the last speed that the loop waited for data, and the device for the loop."""

    # ----------------------------------------------------------------------------------------------------------- rows
    def training(self, step: int, metrics: Mapping[str, Any], labels: np.ndarray | None) -> None:
        """The row of a step of training; metrics: host numbers. labels: None where they are made in the step."""
        scored, size = (0, 0) if labels is None else self.amount(labels)
        values = {f"train/{name}": float(value) for name, value in metrics.items() if name != "finite"}
        loss = values.pop("train/loss")
        self._row(step, {"train/loss": loss, **self._bits("train", loss * scored, size), **values})
        self._speed(step, loss)

    def scores(self, step: int, split: str, nats: float, scored: int, size: int) -> None:
        """The row of an evaluation: nats over `scored` positions, whose labels have `size` bytes."""
        self._row(step, {f"{split}/loss": nats / max(scored, 1), **self._bits(split, nats, size)})

    def answers(self, step: int, split: str, scores: Mapping[str, float | str | None]) -> None:
        """The row of an evaluation of a task, or of one of its slices (`slices/NAME`)."""
        self._row(step, {f"{split}/{name}": value for name, value in scores.items()})

    def _bits(self, split: str, nats: float, size: int) -> dict[str, float | None]:
        """Bits per byte or per base, where the objective codes the whole text (DataConfig.bits)."""
        name = self.trial.data.bits
        return {f"{split}/{name}": nats / (math.log(2) * size) if size else None} if name else {}

    def amount(self, labels: np.ndarray) -> tuple[int, int]:
        """(scored positions, bytes of their labels)."""
        return amount(labels, self._token_bytes)

    def has(self, step: int, name: str) -> bool:
        return any(row["step"] == step and name in row for row in self.rows)

    def count(self, step: int) -> int:
        """Rows up to `step`."""
        return sum(row["step"] <= step for row in self.rows)

    def _row(self, step: int, values: Mapping[str, Any]) -> None:
        row = {**self._at(step), **values}
        self.run.append(row)
        self.rows.append(row)
        if self._mirror is not None:
            self._mirror.log(row)

    def _at(self, step: int) -> dict[str, Any]:
        tokens = tokens_read(self.trial.data, step)
        return {"step": step, "tokens": tokens, "flops": int(tokens * self.flops_per_token)}

    # ---------------------------------------------------------------------------------------------------------- times
    def skip(self, seconds: float) -> None:
        """Leaves out time that was not training: speeds are those of steps alone."""
        self._last += seconds
        self._arrived = None

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Around what makes the next batch ready."""
        begun = time.perf_counter()
        yield
        self._lost["data_wait"] += time.perf_counter() - begun

    def arrived(self) -> None:
        """The metrics of a step have come: what follows up to the next dispatch is the host's work."""
        self._arrived = time.perf_counter()
        if not self._stepped:
            self._stepped = True
            self.run.event("first_step", seconds=round(self._arrived - self._begun, 3))

    def dispatched(self, device_waits: Callable[[], bool]) -> None:
        """Just before a step is given to the device. If it has nothing to do, it has waited for the host, at most since
        metrics came last: an upper bound of what the loop costs over the steps alone."""
        if self._arrived is not None and device_waits():
            self._lost["overhead"] += time.perf_counter() - self._arrived

    @property
    def seconds(self) -> float:
        """Of all processes that brought the run here."""
        return self.seconds_before + time.perf_counter() - self._begun

    def _speed(self, step: int, loss: float) -> None:
        now = time.perf_counter()
        if self._last_step is None:
            self._last, self._last_step, self._lost = now, step, dict.fromkeys(self._lost, 0.0)
        elapsed = now - self._last
        if elapsed < SPEED_SECONDS and step < self.trial.train.steps:
            return
        tokens = tokens_read(self.trial.data, step) - tokens_read(self.trial.data, self._last_step)
        self._last, self._last_step = now, step
        if tokens and elapsed > 0:
            speed = round(tokens / elapsed, 1)
            shares = {f"{name}_share": round(min(lost / elapsed, 1.0), 5) for name, lost in self._lost.items()}
            self.run.event("speed", step=step, tokens_per_second=speed, loss=round(loss, 5), **shares)
            self._lost = dict.fromkeys(self._lost, 0.0)
            if self._watch is not None:
                steps = self.trial.train.steps
                self._watch({"step": step, "steps": steps, "loss": loss, "tokens_per_second": speed})

    # --------------------------------------------------------------------------------------------- the mirror, the end
    def open(self) -> None:
        """Begins to mirror; what is there already is sent first."""
        if self.run.writes:
            self._mirror = tracking.open(self.trial.tracking, self.run.record, self.run)

    def close(self, result: Mapping[str, Any] | None) -> None:
        """result: done.json, {"status": "failed"}, or None where the run goes on another time."""
        if self._mirror is not None:
            self._mirror.close(result)

    def result(self, status: str, step: int, parameters: int) -> dict[str, Any]:
        """done.json, with the last scores of each split."""
        scores: dict[str, Any] = {split: self._score(split) for split in ("validation", "test")}
        if self.trial.data.slices:
            scores["slices"] = {each.name: self._score(f"slices/{each.name}") for each in self.trial.data.slices}
        seconds = round(self.seconds, 3)
        return {"status": status, **self._at(step), **scores, "parameters": parameters, "seconds": seconds}

    def _score(self, split: str) -> dict[str, Any]:
        """All scores of the last row that has any of this split."""
        start, bits = f"{split}/", self.trial.data.bits
        row: Mapping[str, Any] = next((row for row in reversed(self.rows) if f"{start}loss" in row), {})
        found = {name.removeprefix(start): value for name, value in row.items() if name.startswith(start)}
        return {"loss": None, **({bits: None} if bits else {}), **found}


def amount(labels: np.ndarray, token_bytes: np.ndarray) -> tuple[int, int]:
    """(scored positions, bytes of their labels)."""
    there = labels[labels != IGNORED]
    return there.size, int(token_bytes[there].sum())
