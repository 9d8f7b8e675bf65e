"""What follows from a trial: its pattern written out, parameters, FLOPs, state bytes (config.json's `derived`).

Parameters need no jax. FLOPs and state bytes are counted from the program, which does; they depend on the architecture
alone and are kept in the cache folder, so that listing a study again is quick.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from experiments.config import Trial
from experiments.data.objectives import OBJECTIVES
from experiments.data.synthetic.rows import tokens_read
from experiments.environment import cache_folder
from experiments.files import read_json, write_json
from experiments.identity import digest
from experiments.versions import code
from hybrid.accounting import parameters
from hybrid.config import as_plain
from hybrid.pattern import compact, summary


def derived(trial: Trial, fingerprint: str | None) -> dict[str, Any]:
    """Everything that is known without counting; `flops_per_token` and `state_bytes` are None where not counted yet.

    flops_per_token: of forward and backward pass, on average over a sequence (of data.seq_len tokens; what a decoder
    reads beside them is in their share). state_bytes: of decoding one sequence of the trained length.
    """
    model = trial.model
    symbols = {letter: kind for letter, kind, _ in model.symbols}
    counted = look_up(trial) or dict.fromkeys(("flops_per_token", "state_bytes", "layers"))
    return {
        "pattern": list(model.sequence),
        "compact": compact(model.sequence),
        "ratio": str(summary(model.pattern, symbols).ratio),
        "placement": trial.placement or None,
        "parameters": dataclasses.asdict(parameters(model)),
        **counted,
        "fingerprint": fingerprint,
    }


def total_flops(trial: Trial, flops_per_token: float) -> float:
    """Of the whole training, without its evaluations."""
    return flops_per_token * tokens_read(trial.data, trial.train.steps)


def _file(trial: Trial) -> Path:
    model = {name: value for name, value in as_plain(trial.model).items() if name not in ("remat", "scan_layers")}
    about = {"model": {**model, "pattern": "".join(trial.model.sequence)}, "length": trial.data.seq_len}
    if trial.model.encoder is not None:
        about["targets"] = _targets(trial)
    return cache_folder() / "costs" / code("hybrid") / f"{digest(about)}.json"


def _targets(trial: Trial) -> int | None:
    """Tokens that a decoder reads, None where there is no encoder beside it."""
    return None if trial.model.encoder is None else OBJECTIVES[trial.data.objective].targets(trial.data)


def look_up(trial: Trial) -> dict[str, Any] | None:
    """{"flops_per_token", "state_bytes", "layers"} if this architecture was counted before, with this code."""
    try:
        return read_json(_file(trial))
    except ValueError:  # a damaged cache entry is counted again
        return None


def count(trial: Trial) -> dict[str, Any]:
    """The same, counted where it is not known (imports jax)."""
    known = look_up(trial)
    if known is not None:
        return known
    from hybrid import accounting

    # FLOPs are those of the mathematics: what `remat` computes again is not counted.
    model, length, targets = dataclasses.replace(trial.model, remat="none"), trial.data.seq_len, _targets(trial)
    counts = accounting.count(model, length, targets=targets)
    columns = zip(
        model.kinds(), accounting.layer_parameters(model), accounting.layer_flops(model, length, targets=targets),
        accounting.layer_state_bytes(model, targets or length), strict=True,
    )  # fmt: skip
    layers = [
        {"index": i, "kind": kind.group, "parameters": size, "flops": flops // length, "state_bytes": carried}
        for i, ((kind, _), size, flops, carried) in enumerate(columns)
    ]
    result = {"flops_per_token": counts.flops.train // length, "state_bytes": counts.state_bytes, "layers": layers}
    write_json(_file(trial), result)
    return result
