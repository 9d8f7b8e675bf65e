"""H3: associative recall and induction heads (Fu et al. 2023), with the numbers of the published code of Hyena."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.protocols.protocol import Protocol, number, positions

H3_LENGTH = {"associative-recall": 42, "h3-induction-heads": 31}
"""40 tokens of pairs, the sign and the key; 30 random tokens and the sign."""


def _values(given: Mapping[str, Any]) -> dict[str, Any]:
    recall = given["data.source"] == "associative-recall"
    size = number(given, "data.batch_size", 32)
    epoch = -(-number(given, "data.examples", 5000) // size)
    length = number(given, "data.seq_len", H3_LENGTH[given["data.source"]])
    steps = number(given, "train.steps", 400 * epoch)
    straight = {"optimizer.schedule": "wsd", "optimizer.decay_fraction": 0.9}
    return {
        "data.seq_len": length,
        "data.batch_size": size,
        "data.examples": 5000,
        "model.d_model": 32,
        "model.n_heads": 1,
        "model.d_ff": 128,
        **positions(given, length),
        "optimizer.learning_rate": 5e-4,
        "optimizer.weight_decay": 0.1,
        **(straight if recall else {"optimizer.schedule": "cosine"}),
        "optimizer.final_fraction": 0.0,
        "optimizer.warmup_steps": steps // 10,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.999,
        "optimizer.clip_norm": None,
        "train.steps": steps,
        "evaluate.every": epoch,
        "evaluate.sequences": 500,
        "checkpoint.every": 10 * epoch,
        "study.score": "accuracy",
        "study.select_on": "test",
        "study.seeds": 1,
    }


H3 = Protocol(
    about="associative recall and induction heads: 5,000 rows, 400 epochs, width 32",
    source="Fu et al. 2023; the published code of Hyena",
    tasks=("associative-recall", "h3-induction-heads"),
    values=_values,
    rates=(5e-4,),
    quirks=("trains on all next tokens, scores the last alone", "scores are those of the test rows, one seed"),
    differs=("recall's linear schedule is read as: a tenth of warm-up, then a straight line to zero",),
)
