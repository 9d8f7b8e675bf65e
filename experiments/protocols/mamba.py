"""Mamba: selective copying and induction heads (Gu & Dao 2023, appendix E.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.protocols.protocol import Protocol, number

EPOCH = 8192
"""Steps that the paper calls an epoch of induction heads."""


def _values(given: Mapping[str, Any]) -> dict[str, Any]:
    mamba = "M" in str(given.get("model.pattern", "M"))
    shared = {
        "data.examples": 0,
        "optimizer.weight_decay": 0.0,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.999,
        "optimizer.clip_norm": None,
        "study.score": "accuracy",
        "study.select_on": "test",
        "study.seeds": 1,
    }
    if given["data.source"] == "selective-copying":
        return {
            "data.seq_len": 4096 + number(given, "data.task.data_tokens", 16),
            "data.batch_size": 64,
            "model.d_model": 64,
            "optimizer.learning_rate": 1e-4,
            "train.steps": 400_000,
            "evaluate.every": 10_000,
            "evaluate.sequences": 256,
            "checkpoint.every": 10_000,
            **shared,
        }
    slices = [{"name": f"2^{n}", "seq_len": 2**n, "if_too_long": "skip"} for n in range(6, 21)]
    return {
        "data.seq_len": 256,
        "data.batch_size": 8,
        "data.slices": tuple(slices),
        "model.d_model": 64 if mamba else 128,
        "optimizer.learning_rate": 1e-3 if mamba else 2e-4,
        "train.steps": 25 * EPOCH,
        "evaluate.every": EPOCH,
        "evaluate.sequences": 256,
        "checkpoint.every": EPOCH,
        **shared,
    }


MAMBA = Protocol(
    about="selective copying and induction heads on fresh rows at every step, induction at lengths 2^6 to 2^20",
    source="Gu & Dao 2023, appendix E.1",
    tasks=("induction-heads", "selective-copying"),
    values=_values,
    rates=(2e-4, 1e-3),
    quirks=(
        "Adam without decay at a constant rate; the best rate is kept (Mamba 1e-3, others 2e-4)",
        "width 64 for Mamba, 128 for others; 25 epochs of 8,192 steps (50 and 10 for some of the others)",
    ),
    differs=("16 signs stand behind the 4,096 tokens of selective copying",),
)
