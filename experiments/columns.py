"""The columns of a study's data frames (`experiments.results`): runs, and their curves."""

from __future__ import annotations

from typing import Any

import polars as pl

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


def labelled(curves: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """Curves (columns of AXES and metrics) with what their runs are called, in the order of the runs."""
    labels = runs.select("id", *LABELS).with_row_index("order")
    joined = curves.with_row_index("row").join(labels, on="id", how="inner").sort("order", "row")
    metrics = [name for name in curves.columns if name not in AXES]
    return joined.select("id", *LABELS, *(name for name in AXES if name != "id"), *metrics)
