"""This project's own protocol, for any task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.protocols.protocol import Protocol, number


def _values(given: Mapping[str, Any]) -> dict[str, Any]:
    steps = number(given, "train.steps", 4000)
    return {
        "data.examples": 0,
        "data.batch_size": 64,
        "optimizer.learning_rate": 3e-3,
        "optimizer.weight_decay": 0.1,
        "optimizer.schedule": "cosine",
        "optimizer.final_fraction": 0.1,
        "optimizer.warmup_steps": steps // 20,
        "optimizer.b2": 0.95,
        "optimizer.clip_norm": 1.0,
        "train.steps": steps,
        "evaluate.every": max(steps // 20, 1),
        "evaluate.sequences": 512,
        "checkpoint.every": max(steps // 4, 1),
        "study.score": "accuracy",
        "study.select_on": "validation",
        "study.seeds": 3,
    }


OURS = Protocol(
    about="this project's own: fresh rows, AdamW with a cosine, rates chosen on validation, three seeds",
    source="docs/tasks.md",
    tasks=(),
    values=_values,
    rates=(3e-4, 1e-3, 3e-3, 1e-2),
)
