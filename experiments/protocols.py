"""Protocols: the values that a config leaves unset, as a paper ran its tasks, quirks included. No jax.

    {"protocol": "zoology-iclr24", "model": {"pattern": "AA", "d_model": 64}, "optimizer": {"learning_rate": 1e-3}}

A field that the config sets stays as it is; what a protocol gave is written out in the run's config.json with all other
fields, so nothing is hidden and a frozen run does not ask again. `PROTOCOLS[name].quirks` says what is unusual about
the paper's way, `.differs` where this code does otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hybrid.validation import ConfigError, unknown


@dataclass(frozen=True)
class Protocol:
    """A row of the table."""

    about: str
    source: str
    tasks: tuple[str, ...]
    """`data.source`: the first where a config names none; empty: all."""
    values: Callable[[Mapping[str, Any]], dict[str, Any]]
    """Dotted name -> value, of the fields that the config (dotted names too) leaves unset."""
    rates: tuple[float, ...]
    """The learning rates that were tried, of which the best was reported."""
    quirks: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


def completed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a config and, where it names a protocol, what that gives for the fields that it leaves unset."""
    name = values.get("protocol") or ""
    if not name:
        return values
    if name not in PROTOCOLS:
        raise unknown("protocol", str(name), PROTOCOLS, f"{name!r} is not a known protocol")
    protocol = PROTOCOLS[name]
    whole = _copied(values)
    data = whole.setdefault("data", {})
    if protocol.tasks:
        source = data.setdefault("source", protocol.tasks[0])
        if source not in protocol.tasks:
            allowed = ", ".join(protocol.tasks)
            raise ConfigError("data.source", f"{source!r} is not allowed; {name} is about {allowed}")
    for field, value in protocol.values(_dotted(whole)).items():
        _set(whole, field, value)
    return whole


def _copied(values: Any) -> Any:
    return {name: _copied(value) for name, value in values.items()} if isinstance(values, Mapping) else values


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _set(values: dict[str, Any], field: str, value: Any) -> None:
    """Where nothing stands there."""
    *groups, leaf = field.split(".")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            return  # a dataclass or something wrong: the reader says
    values.setdefault(leaf, value)


def _number(given: Mapping[str, Any], field: str, default: int) -> int:
    """A field that other values follow from; what is no positive number is for the reader of the config to refuse."""
    value = given.get(field, default)
    return value if isinstance(value, int) and value > 0 else default


# --- zoology ----------------------------------------------------------------------------------------------------------

PAIRS = {64: 4, 128: 8, 256: 16, 512: 64}
"""Length -> pairs of figure 2."""

BATCH = {64: 512, 128: 512, 256: 256, 512: 128, 1024: 64}


def _zoology(given: Mapping[str, Any]) -> dict[str, Any]:
    length = _number(given, "data.seq_len", 64)
    size = _number(given, "data.batch_size", BATCH.get(length, 64))
    epoch = -(-_number(given, "data.examples", 100_000) // size)
    attention = set(str(given.get("model.pattern", "A"))) <= {"A", "-"}
    positions = {"model.positions": "learned", "model.max_length": length} if attention else {"model.positions": "none"}
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
        **positions,
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


def _zoology_state(given: Mapping[str, Any]) -> dict[str, Any]:
    size = _number(given, "data.batch_size", 256)
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
    return _zoology(given) | own


# --- MAD --------------------------------------------------------------------------------------------------------------

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


def _mad(given: Mapping[str, Any]) -> dict[str, Any]:
    source = given["data.source"]
    length, examples = MAD_ROWS[source]
    size = _number(given, "data.batch_size", 128)
    epoch = -(-_number(given, "data.examples", examples) // size)
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


# --- H3, and the code of Hyena ----------------------------------------------------------------------------------------

H3_LENGTH = {"associative-recall": 42, "h3-induction-heads": 31}
"""40 tokens of pairs, the sign and the key; 30 random tokens and the sign."""


def _h3(given: Mapping[str, Any]) -> dict[str, Any]:
    recall = given["data.source"] == "associative-recall"
    size = _number(given, "data.batch_size", 32)
    epoch = -(-_number(given, "data.examples", 5000) // size)
    length = _number(given, "data.seq_len", H3_LENGTH[given["data.source"]])
    steps = _number(given, "train.steps", 400 * epoch)
    attention = set(str(given.get("model.pattern", "A"))) <= {"A", "-"}
    positions = {"model.positions": "learned", "model.max_length": length} if attention else {"model.positions": "none"}
    straight = {"optimizer.schedule": "wsd", "optimizer.decay_fraction": 0.9}
    return {
        "data.seq_len": length,
        "data.batch_size": size,
        "data.examples": 5000,
        "model.d_model": 32,
        "model.n_heads": 1,
        "model.d_ff": 128,
        **positions,
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


# --- Mamba, appendix E.1 ----------------------------------------------------------------------------------------------

EPOCH = 8192
"""Steps that the paper calls an epoch of induction heads."""


def _mamba(given: Mapping[str, Any]) -> dict[str, Any]:
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
            "data.seq_len": 4096 + _number(given, "data.task.data_tokens", 16),
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


# --- ours -------------------------------------------------------------------------------------------------------------


def _hybrid(given: Mapping[str, Any]) -> dict[str, Any]:
    steps = _number(given, "train.steps", 4000)
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


PROTOCOLS: dict[str, Protocol] = {
    "zoology-iclr24": Protocol(
        about="multi-query associative recall, figure 2: 100,000 rows, 64 epochs, the best of four rates",
        source="Arora et al. 2024 (ICLR), figure 2",
        tasks=("mqar",),
        values=_zoology,
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
    ),
    "zoology-state": Protocol(
        about="recall against the bytes of state: trained on lengths 64 to 256, tested on 64 to 1,024",
        source="Arora et al. 2024 (Based), the example configs of zoology",
        tasks=("mqar",),
        values=_zoology_state,
        rates=(1e-3, 10**-2.5, 1e-2, 10**-1.5),
        quirks=(
            "parts of the training set follow each other from short to long in every epoch; they are not mixed",
            "the rate is chosen on the test rows; one seed; no positions, attention included",
        ),
        differs=("validation rows are those of L = 64 with 4 pairs", "it is not stopped early"),
    ),
    "mad": Protocol(
        about="the six tasks of MAD: 200 epochs, batch 128, the best of three rates and two decays",
        source="Poli et al. 2024, appendix B; the published code",
        tasks=tuple(MAD_ROWS),
        values=_mad,
        rates=(1e-4, 5e-4, 1e-3),
        quirks=(
            "the cosine schedule of its configs is never applied: the rate is constant",
            "accuracy is averaged over classes (macro_accuracy)",
            "rates, decays and the end of training are chosen on the test rows; one seed",
            "recall tasks train on all next tokens and are tested on values alone",
        ),
        differs=(
            "float32, there bfloat16",
            "the decoder of compression is one layer shorter (model.head = 'transform')",
        ),
    ),
    "h3": Protocol(
        about="associative recall and induction heads: 5,000 rows, 400 epochs, width 32",
        source="Fu et al. 2023; the published code of Hyena",
        tasks=("associative-recall", "h3-induction-heads"),
        values=_h3,
        rates=(5e-4,),
        quirks=("trains on all next tokens, scores the last alone", "scores are those of the test rows, one seed"),
        differs=("recall's linear schedule is read as: a tenth of warm-up, then a straight line to zero",),
    ),
    "mamba-e1": Protocol(
        about="selective copying and induction heads on fresh rows at every step, induction at lengths 2^6 to 2^20",
        source="Gu & Dao 2023, appendix E.1",
        tasks=("induction-heads", "selective-copying"),
        values=_mamba,
        rates=(2e-4, 1e-3),
        quirks=(
            "Adam without decay at a constant rate; the best rate is kept (Mamba 1e-3, others 2e-4)",
            "width 64 for Mamba, 128 for others; 25 epochs of 8,192 steps (50 and 10 for some of the others)",
        ),
        differs=("16 signs stand behind the 4,096 tokens of selective copying",),
    ),
    "hybrid": Protocol(
        about="this project's own: fresh rows, AdamW with a cosine, rates chosen on validation, three seeds",
        source="docs/tasks.md",
        tasks=(),
        values=_hybrid,
        rates=(3e-4, 1e-3, 3e-3, 1e-2),
    ),
}
