"""MAD: six tasks, each a baseline and changes to it (Poli et al. 2024, appendix B, and the published code)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.protocols.protocol import Protocol, number

MAD_ROWS = {
    "mad-in-context-recall": (128, 12_800),
    "mad-fuzzy-recall": (128, 12_800),
    "mad-noisy-recall": (128, 12_800),
    "mad-selective-copying": (256, 12_800),
    "mad-memorization": (32, 256),
    "mad-compression": (32, 12_800),
}
"""Task -> (length, training rows)."""

_FEWER = tuple({"data.examples": n} for n in (6400, 3200, 1600, 800))
_RECALL = (
    *({"data.task.vocab_size": v} for v in (32, 64, 128)), *({"data.seq_len": n} for n in (256, 512, 1024)), *_FEWER
)  # fmt: skip

MAD_SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "mad-in-context-recall": ({}, *_RECALL),
    "mad-fuzzy-recall": ({}, *_RECALL),
    "mad-noisy-recall": (
        {}, *({"data.task.vocab_size": v} for v in (48, 80, 144)), *({"data.seq_len": n} for n in (256, 512, 1024)),
        *_FEWER, *({"data.task.frac_noise": share} for share in (0.4, 0.6, 0.8)),
    ),
    "mad-selective-copying": (
        {}, *({"data.task.vocab_size": v} for v in (32, 64, 128)), *({"data.seq_len": n} for n in (512, 1024)), *_FEWER,
        *({"data.task.num_tokens_to_copy": n} for n in (32, 64, 96)),
    ),
    "mad-memorization": ({}, *({"data.task.vocab_size": v} for v in (512, 1024, 2048, 4096, 8192))),
    "mad-compression": (
        {}, *({"data.task.vocab_size": v} for v in (32, 64, 128)), *({"data.seq_len": n} for n in (64, 128, 256)),
        *_FEWER,
    ),
}  # fmt: skip
"""Task -> its baseline and the changes to it, one at a time. A task's score is the mean over these settings of the best
test score over rates and decays; the MAD score is the mean over tasks. `mad-noisy-recall` keeps 16 tokens of noise."""

MAD_DECAYS = (0.0, 0.1)


def _values(given: Mapping[str, Any]) -> dict[str, Any]:
    source = given["data.source"]
    length, examples = MAD_ROWS[source]
    size = number(given, "data.batch_size", 128)
    epoch = -(-number(given, "data.examples", examples) // size)
    return {
        "data.seq_len": length,
        "data.batch_size": size,
        "data.examples": examples,
        "data.order": "shuffled",
        "model.d_model": 128,
        "model.n_heads": 16,
        "model.norm": "rmsnorm",
        "model.positions": "rope",
        "model.tie_embeddings": False,
        "model.head": "transform" if source == "mad-compression" else "linear",
        "optimizer.learning_rate": 5e-4,
        "optimizer.weight_decay": 0.1,
        "optimizer.decay_on": "all",
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.999,
        "optimizer.clip_norm": None,
        "train.steps": 200 * epoch,
        "train.stop_at": 0.999,
        "evaluate.every": max(epoch, 1),
        "evaluate.sequences": 1280,
        "checkpoint.every": 10 * epoch,
        "study.score": "macro_accuracy",
        "study.select_on": "test",
        "study.seeds": 1,
        "study.tune": ("optimizer.learning_rate", "optimizer.weight_decay"),
    }


MAD = Protocol(
    about="the six tasks of MAD: 200 epochs, batch 128, the best of three rates and two decays",
    source="Poli et al. 2024, appendix B; the published code",
    tasks=tuple(MAD_ROWS),
    values=_values,
    rates=(1e-4, 5e-4, 1e-3),
    quirks=(
        "the cosine schedule of its configs is never applied: the rate is constant",
        "accuracy is averaged over classes (macro_accuracy)",
        "rates, decays and the end of training are chosen on the test rows; one seed",
        "recall tasks train on all next tokens and are tested on values alone",
        "weight decay on all parameters, as the code was first published; later it spares biases and norms",
    ),
    differs=(
        "float32, there bfloat16",
        "the decoder of compression is one layer shorter (model.head = 'transform')",
        "the head has no bias, there it has one",
    ),
)
