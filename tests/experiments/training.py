"""What the tests of training share: a tiny text as data, trials of every kind of sublayer, run folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import Trial, trial_from
from experiments.identity import run_id, trial_plain
from experiments.runs import RunFolder

TEXT = (b"the cat sat on the mat and the dog sat on the log; " * 60) + (b"a rose is a rose is a rose. " * 40)


@dataclasses.dataclass
class TinyData:
    """Windows of TEXT, drawn from (seed, step): what training asks of its data."""

    seq_len: int
    batch_size: int
    seed: int = 0
    fingerprint: str = "7e57da7a0001"
    before: Callable[[int], None] = lambda step: None
    """Called before the batch of a step is made: where tests crash or stop a run."""

    @property
    def token_bytes(self) -> np.ndarray:
        return np.array([1] * 256 + [0], np.int32)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        self.before(step)
        random = np.random.default_rng([self.seed, step])
        return self._windows(random.integers(0, len(TEXT) - self.seq_len - 1, self.batch_size))

    def _windows(self, starts: np.ndarray) -> dict[str, np.ndarray]:
        stream = np.frombuffer(TEXT, np.uint8).astype(np.int32)
        rows = stream[starts[:, None] + np.arange(self.seq_len + 1)]
        return {"tokens": rows[:, :-1], "labels": rows[:, 1:].copy()}

    def batches(self, start_step: int = 0) -> TinyBatches:
        return TinyBatches(self, start_step)

    def evaluation(self, split: str) -> list[dict[str, np.ndarray]]:
        offset = {"validation": 0, "test": 500}[split]
        return [self._windows(offset + 13 * i + 7 * np.arange(self.batch_size)) for i in range(2)]


class TinyBatches:
    def __init__(self, data: TinyData, step: int):
        self.data, self.step = data, step

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        self.step += 1
        return self.data.batch(self.step - 1)

    def __enter__(self) -> TinyBatches:
        return self

    def __exit__(self, *_exception: object) -> None: ...


def trial(**fields: Any) -> Trial:
    """A trial of some thousand parameters; fields by dotted name with __ for the dot: model__pattern="AM"."""
    sizes = {"vocab_size": 258, "d_model": 16, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24, "mamba": {"d_state": 4}}
    values: dict[str, Any] = {
        "model": {"pattern": "AMH-", "hyena": {"filter_length": 16}, **sizes},
        "data": {"source": "shakespeare", "seq_len": 16, "batch_size": 4},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
        "train": {"steps": 20, "log_every": 2},
        "evaluate": {"every": 10, "sequences": 8},
        "checkpoint": {"every": 5},
        "tracking": {"mode": "off"},
    }
    for name, value in fields.items():
        *groups, leaf = name.split("__")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
        target[leaf] = value
    return trial_from(values)


def data_of(trial: Trial, **fields: Any) -> TinyData:
    return TinyData(trial.data.seq_len, trial.data.batch_size, trial.seed, **fields)


def run_of(trial: Trial, folder: Path, data: TinyData | None = None) -> RunFolder:
    """The run folder of a trial, as a sweep makes it."""
    fingerprint = (data or data_of(trial)).fingerprint
    record = {
        "id": run_id(trial, fingerprint),
        "arm": trial.arm,
        "trial": trial_plain(trial),
        "derived": {"fingerprint": fingerprint, "flops_per_token": 1000},
        "versions": {},
    }
    return RunFolder(folder).create(record)


def quick() -> Iterator[None]:
    """As a fixture of a module: its programs compile in half the time, and run slower."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
