"""What a trial is called: its id follows from all that can change its result, its group from what is compiled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from experiments.config import Trial
from hybrid.config import as_plain
from hybrid.validation import plain

TRACED = (
    "learning_rate", "weight_decay", "warmup_steps", "decay_fraction", "final_fraction", "b1", "b2", "eps", "clip_norm"
)  # fmt: skip
"""Fields of the optimizer that a compiled program takes as values."""

SHAPING = ("seq_len", "batch_size", "objective", "packing", "masked", "span")
"""Fields of the data that the shapes of a batch follow from."""

MAKING = ("source", "task", "slices", "mix")
"""Of a synthetic task: what its rows are made by, in the program."""

LATER: dict[str, dict[str, Any]] = {"optimizer": {"decay_on": "matrices"}, "train": {"stop_at": None}}
"""Fields that came later, and what runs did before: at these values they are no part of an identity."""


def trial_plain(trial: Trial) -> dict[str, Any]:
    """The trial as JSON has it; `trial_from` of it is the trial again."""
    values = {f.name: plain(getattr(trial, f.name)) for f in dataclasses.fields(trial) if f.name != "model"}
    return {"model": as_plain(trial.model), **values}


def identity(trial: Trial, fingerprint: str | None) -> dict[str, Any]:
    """All that can change the result: what a run's id is made of."""
    whole = trial_plain(trial)
    used = {kind.group for kind, _ in trial.model.parts()}
    idle = {name for name, _ in trial.model.groups if name not in used}  # of kinds that no stack has
    model = {name: value for name, value in whole["model"].items() if name not in idle}
    model["pattern"] = "".join(trial.model.sequence)
    if trial.model.encoder_config is not None:
        model["encoder"] = "".join(trial.model.encoder_config.sequence)
    whole["data"] = {name: value for name, value in whole["data"].items() if name not in trial.data.idle}
    model.pop("scan_layers"), model.pop("remat")  # how it is compiled, not what it computes
    whole["train"].pop("population")  # nor with whom
    for group, fields in LATER.items():
        whole[group] = {name: v for name, v in whole[group].items() if name not in fields or v != fields[name]}
    parts = {name: whole[name] for name in ("data", "optimizer", "train", "evaluate", "seed")}
    return {"model": model, **parts, "fingerprint": fingerprint}


def run_id(trial: Trial, fingerprint: str | None) -> str:
    return digest(identity(trial, fingerprint))


def group_id(trial: Trial, fingerprint: str | None) -> str:
    """The same for trials that share their compiled programs: they differ in values, not in shapes.

    What a program is made of: the architecture, the form of the optimizer, the shapes of a batch, the mesh. Dropout and
    clipping are in it as "there" or "not there": without them a program leaves out their work. The rates, the seed, the
    number of steps, how often is logged and which text or noise the batches hold are values.
    """
    whole = identity(trial, fingerprint)
    model, optimizer = whole["model"], whole["optimizer"]
    shaping = (*SHAPING, *MAKING) if trial.data.is_task else SHAPING
    return digest(
        {
            "model": {**model, "dropout": model["dropout"] > 0},
            "optimizer": {name: value for name, value in optimizer.items() if name not in TRACED},
            "clips": optimizer["clip_norm"] is not None,
            "data": {name: whole["data"][name] for name in shaping if name in whole["data"]},
            "how": {"remat": trial.model.remat, "scan_layers": trial.model.scan_layers, "mesh": plain(trial.mesh)},
        }
    )


def digest(value: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of a plain value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
