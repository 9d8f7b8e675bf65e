"""A study as data frames: one of runs, one of their curves. Reads run folders or the compact form; no jax.

    results = load("runs/quickstart")
    results.runs                  a row a run: arm, seed, learning rate, status, budgets, final scores
    results.curves                a row a metrics row: id, arm, seed, step, tokens, flops, train_loss, ...
    results.table()               a row an arm: its chosen rate, test score with interval, difference, verdict
    results.save("results/quickstart")   runs.csv, curves.csv (thinned), manifest.json: small enough to commit

Reading never writes and never fails on a study that is still running, half failed, or empty.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from hybrid.validation import ConfigError

RUNS: dict[str, Any] = {
    "id": pl.String,
    "arm": pl.String,
    "stage": pl.String,  # tune | confirm
    "seed": pl.Int64,
    "status": pl.String,  # queued | running | done | diverged | failed | stopped
    "setting": pl.String,  # the tuned fields and their values: "learning_rate=0.003"
    "learning_rate": pl.Float64,
    "pattern": pl.String,  # compact: "(M-)3A-"
    "expanded": pl.String,  # "M-M-M-A-"
    "ratio": pl.Float64,  # mixers that are attention, as a share of all mixers
    "placement": pl.String,  # the word that placed the attention; empty where none did
    "parameters": pl.Int64,
    "active_parameters": pl.Int64,  # that one token uses
    "flops_per_token": pl.Float64,  # of a training step
    "state_bytes": pl.Float64,  # what decoding carries at the trained length, batch 1
    "seq_len": pl.Int64,  # tokens
    "step": pl.Int64,  # reached
    "steps": pl.Int64,  # asked for
    "tokens": pl.Int64,
    "flops": pl.Float64,
    "seconds": pl.Float64,
    "compile_seconds": pl.Float64,
    "tokens_per_second": pl.Float64,  # median of what was logged
    "validation_loss": pl.Float64,  # nats per token, at the end of a run that is done
    "validation_bits_per_byte": pl.Float64,  # of text; null for DNA, masked tokens and spans
    "validation_bits_per_base": pl.Float64,  # of DNA
    "test_loss": pl.Float64,
    "test_bits_per_byte": pl.Float64,
    "test_bits_per_base": pl.Float64,
    "attempts": pl.Int64,  # starts, the first included
    "phase": pl.String,  # of the failure
    "error": pl.String,
    "fingerprint": pl.String,  # of the data
}
"""Columns of `Results.runs`; null where a value is not known (yet)."""

AXES: dict[str, Any] = {"id": pl.String, "step": pl.Int64, "tokens": pl.Int64, "flops": pl.Float64}
"""Columns of `Results.curves` that say where on a run a row stands."""
LABELS = ("arm", "stage", "seed", "setting", "learning_rate", "status")
"""Columns of `Results.curves` that come from the run. All others are metrics, "train/loss" as train_loss."""
METRICS = (
    "train_loss", "train_bits_per_byte", "train_bits_per_base",
    "validation_loss", "validation_bits_per_byte", "validation_bits_per_base",
)  # fmt: skip
"""The metrics that are always there, and all that the compact form keeps."""


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study left behind. `runs` and `curves` are polars data frames."""

    folder: Path
    study: str
    runs: pl.DataFrame
    """In the order of the study: arm by arm, tuning runs before the seeds that confirm."""
    curves: pl.DataFrame
    """In the order of the runs, then of their rows."""
    baseline: str
    """The arm that the others are compared with; empty in an empty study."""
    score: str = "bits_per_byte"
    """What validation selects on and test reports."""
    symbols: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Lower-case letters of the patterns -> the symbol of their kind."""
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """What could not be read or is not as the study states it, in words."""

    @property
    def arms(self) -> list[str]:
        """In the order of the study."""
        return self.runs["arm"].unique(maintain_order=True).to_list()

    def counts(self) -> dict[str, int]:
        """Status -> number of runs."""
        return dict(Counter(self.runs["status"].to_list()))

    def against(self, baseline: str) -> Results:
        """The same, compared with another arm. Raises ConfigError where no arm has that name."""
        from experiments.verdicts import check_baseline

        return dataclasses.replace(self, baseline=check_baseline(self, baseline))

    def table(self, baseline: str | None = None) -> pl.DataFrame:
        """The verdicts: a row an arm (`experiments.verdicts`). Rates are chosen on validation, scores are on test."""
        from experiments.verdicts import table

        return table(self, baseline)

    def save(self, folder: str | Path, points: int = 40) -> Path:
        """Writes the compact form (about `points` rows a run and metric); `load` reads it again."""
        from experiments.compact import write

        return write(self, Path(folder), points)


def load(folder: str | Path) -> Results:
    """The results of a study folder (runs/NAME) or of its compact form (results/NAME); ConfigError where neither is."""
    from experiments import compact, frames

    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError("folder", f"{str(folder)!r} is no folder; must be a study such as runs/quickstart")
    if (folder / "runs.csv").is_file():
        return compact.read(folder)
    if not (folder / "trials").is_dir() and not (folder / "manifest.json").is_file():
        raise ConfigError("folder", f"{str(folder)!r} is no study; must hold trials/ and manifest.json, or runs.csv")
    return frames.read(folder)


def labelled(curves: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """Curves (columns of AXES and metrics) with what their runs are called, in the order of the runs."""
    labels = runs.select("id", *LABELS).with_row_index("order")
    joined = curves.with_row_index("row").join(labels, on="id", how="inner").sort("order", "row")
    metrics = [name for name in curves.columns if name not in AXES]
    return joined.select("id", *LABELS, *(name for name in AXES if name != "id"), *metrics)


def digest(ids: Iterable[str]) -> str:
    """8 hexadecimal digits that name a set of runs, whatever their order."""
    return hashlib.sha256("\n".join(sorted(set(ids))).encode()).hexdigest()[:8]
