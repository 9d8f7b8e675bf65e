"""H3: associative recall and induction heads (Fu et al. 2023), as the published configs of safari have them, the code
base of H3 and Hyena: configs/experiment/synthetics, its training script and its small language model.
"""

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
    straight = {"optimizer.schedule": "wsd", "optimizer.decay_fraction": 0.9, "optimizer.final_fraction": 0.0}
    cosine = {"optimizer.schedule": "cosine", "optimizer.final_fraction": 0.1}
    return {
        "data.seq_len": length,
        "data.batch_size": size,
        "data.examples": 5000,
        "model.d_model": 32,
        "model.n_heads": 1,
        "model.d_ff": 128,
        "model.mlp.activation": "gelu_tanh",
        "model.mlp.bias": True,
        "model.attention.qkv_bias": True,
        "model.attention.out_bias": True,
        "model.norm": "layernorm",
        "model.dropout": 0.1,
        "model.init_std": 0.02,
        "model.residual_init": "depth",
        "model.tie_embeddings": True,
        **positions(given, length),
        "optimizer.learning_rate": 5e-4,
        "optimizer.weight_decay": 0.1,
        "optimizer.decay_on": "all",
        **(straight if recall else cosine),
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
    source="Fu et al. 2023; configs/experiment/synthetics of safari, the published code",
    tasks=tuple(H3_LENGTH),
    values=_values,
    rates=(5e-4,),
    quirks=(
        "trains on all next tokens, scores the last alone",
        "a tenth of warm-up, then a straight line to zero for recall, a cosine to a tenth for induction heads",
        "weight decay on all parameters (but those of state-space kernels and long filters), no clipping",
        "there is no validation set: scores are those of the test rows; one rate, one seed",
        "positions are learned for attention, and absent elsewhere",
    ),
    differs=(
        "dropout 0.1 is of embeddings and sublayers, there of embeddings and attention weights",
        "the cosine begins where the warm-up ends, there at the first step (2 % below the full rate)",
        "rows of a set may be alike, there they are made different; the sign may stand one place later",
        "decay falls on Hyena's filters too",
    ),
)
