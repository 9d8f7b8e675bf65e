"""Zoology: multi-query associative recall (Arora et al. 2024, ICLR), and recall against
state (Arora et al. 2024, Based)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.protocols.protocol import Protocol, number, positions

PAIRS = {64: 4, 128: 8, 256: 16, 512: 64}
"""Length -> pairs of figure 2."""

BATCH = {64: 512, 128: 512, 256: 256, 512: 128, 1024: 64}


def _figure_2(given: Mapping[str, Any]) -> dict[str, Any]:
    length = number(given, "data.seq_len", 64)
    size = number(given, "data.batch_size", BATCH.get(length, 64))
    epoch = -(-number(given, "data.examples", 100_000) // size)
    return {
        "data.seq_len": length,
        "data.batch_size": size,
        "data.examples": 100_000,
        "data.order": "fixed",
        "data.task.vocab_size": 8192,
        "data.task.num_kv_pairs": PAIRS.get(length, length // 16),
        "data.task.power_a": 0.01,
        "data.task.fillers": "blank",
        "model.d_model": 64,
        "model.n_heads": 1,
        "model.norm": "layernorm",
        "model.dropout": 0.1,
        "model.init_std": 0.02,
        "model.residual_init": "depth",
        "model.tie_embeddings": True,
        **positions(given, length),
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": 0.1,
        "optimizer.decay_on": "all",
        "optimizer.schedule": "cosine_epochs",
        "optimizer.final_fraction": 0.0,
        "optimizer.warmup_steps": 0,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.999,
        "optimizer.clip_norm": None,
        "train.steps": 64 * epoch,
        "train.stop_at": 0.99,
        "evaluate.every": epoch,
        "evaluate.sequences": 3000,
        "checkpoint.every": epoch,
        "study.score": "accuracy",
        "study.select_on": "test",
        "study.seeds": 1,
    }


STATE_MIX = ((64, 4, 100_000), (128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000), (256, 64, 20_000))
"""(length, pairs, rows) of the training set of recall against state, read one after another."""

STATE_SLICES = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
"""(length, pairs) of its test rows, 1,000 each; its score is the mean accuracy over all of them."""


def _state(given: Mapping[str, Any]) -> dict[str, Any]:
    size = number(given, "data.batch_size", 256)
    epoch = sum(-(-examples // size) for _, _, examples in STATE_MIX)
    mix = tuple({"seq_len": n, "num_kv_pairs": pairs, "examples": rows} for n, pairs, rows in STATE_MIX)
    slices = tuple(
        {"name": f"L {n}, {pairs} pairs", "seq_len": n, "num_kv_pairs": pairs, "sequences": 1000, "if_too_long": "skip"}
        for n, pairs in STATE_SLICES
    )
    own = {
        "data.batch_size": size,
        "data.examples": 0,
        "data.mix": mix,
        "data.slices": slices,
        "model.positions": "none",
        "model.max_length": None,
        "train.steps": 32 * epoch,
        "train.stop_at": None,
        "evaluate.every": epoch,
        "evaluate.sequences": 1000,
        "checkpoint.every": epoch,
    }
    return _figure_2(given) | own


FIGURE_2 = Protocol(
    about="multi-query associative recall, figure 2: 100,000 rows, 64 epochs, the best of four rates",
    source="Arora et al. 2024 (ICLR), figure 2",
    tasks=("mqar",),
    values=_figure_2,
    rates=(1e-4, 10 ** (-10 / 3), 10 ** (-8 / 3), 1e-2),
    quirks=(
        "the rate moves once an epoch, along a cosine to zero, without warm-up",
        "weight decay on all parameters, no clipping",
        "rows are read in one fixed order in every epoch",
        "the rate is chosen, and training is stopped, on the test rows; one seed",
        "positions are learned for attention, and absent elsewhere",
    ),
    differs=(
        "stops on validation rows; the last batch of an epoch is filled with rows of the next",
        "dropout 0.1 is of embeddings and sublayers, there of embeddings and attention weights",
        "initial output projections are divided by sqrt(sublayers), there by sqrt(2 layers)",
        "fillers are blank as in the paper; the later default of its code is `random`",
    ),
)

STATE = Protocol(
    about="recall against the bytes of state: trained on lengths 64 to 256, tested on 64 to 1,024",
    source="Arora et al. 2024 (Based), the example configs of zoology",
    tasks=("mqar",),
    values=_state,
    rates=(1e-3, 10**-2.5, 1e-2, 10**-1.5),
    quirks=(
        "parts of the training set follow each other from short to long in every epoch; they are not mixed",
        "the rate is chosen on the test rows; one seed; no positions, attention included",
    ),
    differs=("validation rows are those of L = 64 with 4 pairs", "it is not stopped early"),
)
