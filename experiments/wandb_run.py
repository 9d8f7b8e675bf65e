"""What a run is called and says at W&B: id, name, group, config, axes, rows, summary. No wandb import, no network.

The live mirror (experiments/tracking.py) and the later upload (experiments/sync.py) both speak through this file, so
that W&B cannot tell one from the other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from experiments.files import read_json, write_json
from experiments.runs import RunFolder
from experiments.scores import SCORES
from hybrid.validation import ConfigError

MAX_KEYS = 200
"""Config values of one run. W&B keeps a column for every key that any run of a project has."""

PARTS = ("train/*", "validation/*", "test/*", "slices/*")
"""All that a recorder writes (experiments/recorder.py), as W&B's globs: they match at any depth."""

FINAL = ("done", "diverged", "failed")
"""Statuses after which no row follows."""

Row = dict[str, Any]


# --- identity ---------------------------------------------------------------------------------------------------------
def wandb_id(record: Mapping[str, Any], folder: Path) -> str:
    """`<8 digits of the study's name>-<run id>`, or the id that a W&B sweep gave this run (wandb.json)."""
    given = read_json(folder / "wandb.json")
    if given is not None:
        return str(given["id"])
    study = hashlib.sha256(str(record.get("study", "")).encode()).hexdigest()[:8]
    return f"{study}-{record['id']}"


def remember(folder: Path, record: Mapping[str, Any], identifier: str) -> None:
    """Keeps an id that was not ours to choose: under `wandb agent` the server names the run."""
    if identifier != wandb_id(record, folder):
        write_json(folder / "wandb.json", {"id": identifier})


def identity(record: Mapping[str, Any], folder: Path, tags: Iterable[str]) -> dict[str, Any]:
    """The arguments of wandb.init that say which run this is and where people find it."""
    trial = record["trial"]
    rate, seed = trial.get("optimizer", {}).get("learning_rate"), trial.get("seed")
    about = [record.get("stage"), trial.get("data", {}).get("source")]
    return {
        "id": wandb_id(record, folder),
        "resume": "allow",
        "name": f"{record.get('arm', '')} lr {rate:g} seed {seed}" if rate is not None else str(record["id"]),
        "group": str(record.get("study", ""))[:128] or None,
        "job_type": "train",
        "tags": list(dict.fromkeys(str(tag)[:64] for tag in (*tags, *about) if tag)),
        "config": config(record),
    }


def config(record: Mapping[str, Any]) -> dict[str, Any]:
    """Flat keys for what people group by, then the whole trial as groups; at most MAX_KEYS values in all."""
    trial, derived = record["trial"], record.get("derived", {})
    data, parameters = trial.get("data", {}), derived.get("parameters", {})
    ratio = derived.get("ratio")
    tokens = [trial.get("train", {}).get("steps"), data.get("batch_size"), data.get("seq_len")]
    flat = {
        "arm": record.get("arm"),
        "pattern": derived.get("compact"),
        "ratio": None if ratio is None else float(Fraction(str(ratio))),
        "ratio_name": None if ratio is None else str(ratio),
        "placement": derived.get("placement"),
        "seed": trial.get("seed"),
        "stage": record.get("stage"),
        "run": record["id"],
        "params": parameters.get("total"),
        "params_total": parameters.get("total"),
        "params_active": parameters.get("active"),
        "params_without_embeddings": parameters.get("without_embeddings"),
        "flops_per_token": derived.get("flops_per_token"),
        "state_bytes": derived.get("state_bytes"),
        "learning_rate": trial.get("optimizer", {}).get("learning_rate"),
        "tokens_planned": math.prod(tokens) if all(isinstance(n, int) for n in tokens) else None,
        "data_fingerprint": derived.get("fingerprint"),
    }
    whole = {key: value for key, value in flat.items() if value is not None}
    groups = {key: value for key, value in trial.items() if isinstance(value, Mapping)}
    left = MAX_KEYS - len(whole)
    for key, value in {"versions": record.get("versions", {}), **groups}.items():
        whole[key], left = _limited(value, left)
    return whole


def _limited(value: Any, left: int) -> tuple[Any, int]:
    """`value` with no more than `left` leaves, and how many are left after it."""
    if not isinstance(value, Mapping):
        return (list(value) if isinstance(value, tuple) else value), left - 1
    kept: dict[str, Any] = {}
    for key, item in value.items():
        if left <= 0:
            break
        kept[str(key)], left = _limited(item, left)
    return kept, left


# --- rows -------------------------------------------------------------------------------------------------------------
def axes(run: Any) -> None:
    """Every curve against tokens; tokens and FLOPs are axes, not charts; the summary keeps the best validation."""
    for axis in ("tokens", "flops"):
        run.define_metric(axis, hidden=True)
    for part in PARTS:
        run.define_metric(part, step_metric="tokens")
    for score, about in SCORES.items():
        best = "min" if about.smaller_is_better else "max"
        run.define_metric(f"validation/{score}", step_metric="tokens", summary=best)


def by_step(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row a step: the training and validation values of a step are one point for W&B. Steps increase."""
    merged: dict[int, Row] = {}
    for row in rows:
        merged.setdefault(int(row["step"]), {}).update(row)
    return [merged[step] for step in sorted(merged)]


def values(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a row is a number that a chart can show. Nan and infinity stay in the run folder."""
    return {
        key: value
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def is_whole(row: Mapping[str, Any], trial: Mapping[str, Any]) -> bool:
    """Whether nothing more can come at this row's step. W&B takes a step once, so half a step is not sent."""
    step, every = row["step"], trial.get("evaluate", {}).get("every")
    last = step == trial.get("train", {}).get("steps") or _goal_reached(row, trial)
    wanted = ["validation"] if every and (last or step % every == 0) else []
    if last:
        wanted += ["test", *(f"slices/{each['name']}" for each in trial.get("data", {}).get("slices") or ())]
    return all(f"{split}/loss" in row for split in wanted)


def _goal_reached(row: Mapping[str, Any], trial: Mapping[str, Any]) -> bool:
    """Whether this evaluation ended the run (train.stop_at)."""
    goal, accuracy = trial.get("train", {}).get("stop_at"), row.get("validation/accuracy")
    return goal is not None and accuracy is not None and accuracy >= goal


def replayable(rows: Iterable[Mapping[str, Any]], trial: Mapping[str, Any], status: str) -> list[Row]:
    """The rows to send: all of them once the run is over, else without a last step that may still grow."""
    merged = by_step(rows)
    if merged and status not in FINAL and not is_whole(merged[-1], trial):
        merged.pop()
    return merged


# --- the end ----------------------------------------------------------------------------------------------------------
def summary(run: RunFolder, result: Mapping[str, Any] | None, status: str) -> dict[str, Any]:
    """The final scores, also of a run that was killed: recomputed from the rows where there is no result."""
    rows = by_step(run.rows())
    made: dict[str, Any] = {"status": status}
    made["restarts"] = sum(event.get("event") == "resume" for event in run.events())
    for row in rows:
        scored = {key: value for key, value in values(row).items() if key.startswith(("validation", "test", "slices"))}
        made |= {f"final/{key}": value for key, value in scored.items()}
    if rows:
        made |= {key: rows[-1][key] for key in ("step", "tokens", "flops") if key in rows[-1]}
    result = result or {}
    slices = {f"slices/{name}": scores for name, scores in (result.get("slices") or {}).items()}
    for part, scores in ({"validation": result.get("validation"), "test": result.get("test")} | slices).items():
        made |= {f"final/{part}/{key}": value for key, value in (scores or {}).items()}
    made |= {key: result[key] for key in ("step", "tokens", "flops", "seconds") if key in result}
    return {
        key: value
        for key, value in made.items()
        if value is not None and (not isinstance(value, float) or math.isfinite(value))
    }


def exit_code(status: str) -> int:
    """A run that diverged has ended as a run can; one that was stopped or failed has not."""
    return 0 if status in ("done", "diverged") else 1


def layers(record: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]] | None:
    """Columns and rows of the table of layers: as counted in the record, else what needs no jax to count."""
    counted = record.get("derived", {}).get("layers") or _counted(record)
    if not counted:
        return None
    columns = list(counted[0])
    return columns, [[layer.get(column) for column in columns] for layer in counted]


def _counted(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    from hybrid.accounting import layer_parameters
    from hybrid.config import ModelConfig

    try:
        model = ModelConfig(**record["trial"]["model"])
    except (ConfigError, KeyError, TypeError):  # a record of other code: its run goes up without the table
        return []
    return [
        {"index": i, "kind": model.sequence[i], "parameters": size} for i, size in enumerate(layer_parameters(model))
    ]
