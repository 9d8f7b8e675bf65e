"""The columns of a study's data frames (`experiments.results`): runs, and their curves."""

from __future__ import annotations

from typing import Any

import polars as pl

from experiments.scores import SCORES

SPLITS = ("validation", "test")
SCORED: dict[str, Any] = {f"{split}_{name}": pl.Float64 for split in SPLITS for name in SCORES}
"""Final scores of a run that is done, by split; null where the data has no such score."""

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
    "attention": pl.Int64,  # mixers that are attention: 1 of 8 and 1 of 16 have one count and two ratios
    "mixers": pl.Int64,
    "placement": pl.String,  # the word that placed the attention; empty where none did
    "parameters": pl.Int64,
    "active_parameters": pl.Int64,  # that one token uses
    "flops_per_token": pl.Float64,  # of a training step
    "state_bytes": pl.Float64,  # what decoding carries at the trained length, batch 1
    "source": pl.String,  # of the data; null in tables that were kept before there was this column
    "seq_len": pl.Int64,  # tokens
    "step": pl.Int64,  # reached
    "steps": pl.Int64,  # asked for
    "tokens": pl.Int64,
    "flops": pl.Float64,
    "seconds": pl.Float64,
    "compile_seconds": pl.Float64,
    "tokens_per_second": pl.Float64,  # median of what was logged
    **SCORED,
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
    "train_loss", "train_bits_per_byte", "train_bits_per_base", *(f"validation_{name}" for name in SCORES)
)  # fmt: skip
"""The metrics that are always there, and all that the compact form keeps."""

SLICES: dict[str, Any] = {"id": pl.String, "slice": pl.String, "score": pl.String, "value": pl.Float64}
"""Columns of `Results.slices`: a row a run, named part of the test data, and score."""


def labelled(curves: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """Curves (columns of AXES and metrics) with what their runs are called, in the order of the runs."""
    labels = runs.select("id", *LABELS).with_row_index("order")
    joined = curves.with_row_index("row").join(labels, on="id", how="inner").sort("order", "row")
    metrics = [name for name in curves.columns if name not in AXES]
    return joined.select("id", *LABELS, *(name for name in AXES if name != "id"), *metrics)
