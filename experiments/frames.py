"""Run folders as data frames (`experiments.results.load`): what is there now, whatever state its runs are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl

from experiments.columns import AXES, METRICS, RUNS, SLICES, SPLITS, labelled
from experiments.files import read_json
from experiments.results import Results
from experiments.runs import RunFolder
from experiments.scores import SCORES
from hybrid.pattern import summary

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What a damaged run folder raises: it is left out and named, the others are shown."""


def read(folder: Path) -> Results:
    """The results of a study folder; a run that cannot be read becomes a line of `problems`."""
    problems: list[str] = []
    manifest = json_object(folder / "manifest.json", problems)
    runs, curves, slices, records = [], [], [], []
    tuned, confirmed = _plan(folder)
    plan = [*tuned, *confirmed]
    for path in sorted(path for path in (folder / "trials").glob("*/") if not path.name.startswith(".")):
        run = RunFolder(path)
        try:
            record, rows = run.record, run.rows()
            if path.name not in plan and record.get("stage") == "confirm" and run.result is None:
                continue  # of a setting that was chosen no more, before it was trained to its end
            runs.append(_run(run, record, rows) | ({"stage": "tune"} if path.name in tuned else {}))
            sliced = _slices(run)
        except UNREADABLE as error:
            problems.append(f"run {path.name} is not readable ({type(error).__name__}: {error})")
            continue
        records.append(record)
        slices += sliced
        curves += [{"id": path.name} | {name.replace("/", "_"): value for name, value in row.items()} for row in rows]
    frame = _ordered(pl.DataFrame(runs, schema=RUNS, orient="row"), plan)
    arms = frame["arm"].unique(maintain_order=True).to_list()
    settings = manifest.get("settings") or next((record["trial"].get("study") for record in records), None) or {}
    baseline = settings.get("baseline") or manifest.get("baseline") or ""
    if arms and baseline not in arms:
        if baseline:
            problems.append(f"the baseline {baseline!r} has no run; the others are compared with {arms[0]!r}")
        baseline = arms[0]
    return Results(
        folder=folder,
        study=settings.get("name") or manifest.get("study") or folder.name,
        runs=frame,
        curves=_curves(curves, frame),
        baseline=baseline if arms else "",
        slices=_in_order(slices, frame),
        score=settings.get("score", "bits_per_byte"),
        select_on=settings.get("select_on") or "validation",
        symbols=_symbols(records),
        manifest=manifest,
        versions=manifest.get("versions") or next((record.get("versions") for record in records), None) or {},
        problems=tuple(problems),
    )


def json_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object; empty where there is none, and a line of `problems` where it cannot be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} is not readable ({error})")
        return {}
    return found if isinstance(found, dict) else {}


# --- runs -------------------------------------------------------------------------------------------------------------


def _run(run: RunFolder, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row of RUNS of one folder."""
    trial, derived, status = record["trial"], record.get("derived") or {}, run.status()
    result, events = run.result or {}, run.events()
    failure = (run.failure or {}) if status == "failed" else {}
    parameters = derived.get("parameters") or {}
    reached = result if "step" in result else rows[-1] if rows else {}
    speeds = [event["tokens_per_second"] for event in events if _is_number(event.get("tokens_per_second"))]
    compiled = [event["seconds"] for event in events if event.get("event") == "compiled" and "seconds" in event]
    ratio = derived.get("ratio")
    counts = counted("".join(derived.get("pattern") or ()), _symbols([record]))
    values = {
        "id": run.id,
        "arm": str(record["arm"]),
        "stage": record.get("stage"),
        "seed": trial["seed"],
        "status": status,
        "setting": _setting(trial),
        "learning_rate": float(trial["optimizer"]["learning_rate"]),
        "pattern": derived.get("compact") or trial["model"].get("pattern"),
        "expanded": "".join(derived.get("pattern") or ()) or None,
        "ratio": None if ratio is None else float(Fraction(str(ratio))),
        **counts,
        "placement": derived.get("placement") or trial.get("placement") or "",
        "parameters": parameters.get("total"),
        "active_parameters": parameters.get("active"),
        "flops_per_token": derived.get("flops_per_token"),
        "state_bytes": derived.get("state_bytes"),
        "source": trial.get("data", {}).get("source"),
        "seq_len": trial.get("data", {}).get("seq_len"),
        "step": reached.get("step"),
        "steps": trial.get("train", {}).get("steps"),
        "tokens": reached.get("tokens"),
        "flops": reached.get("flops"),
        "seconds": result.get("seconds"),
        "compile_seconds": sum(compiled) if compiled else None,
        "tokens_per_second": median(speeds) if speeds else None,
        "attempts": sum(event.get("event") == "start" for event in events),
        "phase": failure.get("phase"),
        "error": failure.get("error"),
        "fingerprint": derived.get("fingerprint"),
    }
    if status == "done":
        for part in SPLITS:
            for name in SCORES:
                values[f"{part}_{name}"] = (result.get(part) or {}).get(name)
    return {name: _typed(values.get(name), kind) for name, kind in RUNS.items()}


def _slices(run: RunFolder) -> list[dict[str, Any]]:
    """The rows of SLICES of one run; a slice without a number (too long for the model) is null, with its reason kept
    in done.json alone."""
    result = run.result or {}
    if result.get("status") != "done":
        return []
    return [
        {"id": run.id, "slice": str(name), "score": score, "value": _typed(value, pl.Float64)}
        for name, scores in (result.get("slices") or {}).items()
        for score, value in (scores or {}).items()
        if score in SCORES
    ]


def _in_order(slices: Sequence[Mapping[str, Any]], runs: pl.DataFrame) -> pl.DataFrame:
    """Slices in the order of the runs."""
    frame = pl.DataFrame(slices, schema=SLICES, orient="row").with_row_index("row")
    order = runs.select("id").with_row_index("order")
    return frame.join(order, on="id").sort("order", "row").select(*SLICES)


def counted(pattern: str | None, symbols: Mapping[str, str]) -> dict[str, int | None]:
    """{"attention", "mixers"} of a pattern that is written out; None where it is not known."""
    if not pattern:
        return {"attention": None, "mixers": None}
    found = summary(pattern, symbols)
    return {"attention": found.attention, "mixers": found.mixers}


def _setting(trial: Mapping[str, Any]) -> str:
    """The tuned fields of a trial in words: runs of an arm with equal words differ in their seed alone."""
    words = []
    for field in (trial.get("study") or {}).get("tune") or ("optimizer.learning_rate",):
        value: Any = trial
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        words.append(f"{field.rpartition('.')[2]}={repr(value) if isinstance(value, float) else value}")
    return ", ".join(words)


def _symbols(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The user's letters of all arms. Arms that mean different kinds by one letter share the colour of the last."""
    entries: dict[str, Any] = {}
    for record in records:
        entries |= record["trial"]["model"].get("symbols") or {}
    return {letter: entry["kind"] if isinstance(entry, Mapping) else str(entry) for letter, entry in entries.items()}


# --- order ------------------------------------------------------------------------------------------------------------


def _plan(folder: Path) -> tuple[list[str], list[str]]:
    """Ids of the runs as the study states them: those of the first stage, and those of the second. A study that grew
    may tune by a run that its own record calls one of the second."""

    def of(stage: str) -> list[str]:
        runs = json_object(folder / f"{stage}.json", []).get("runs")
        listed = [run.get("id") for run in runs if isinstance(run, Mapping)] if isinstance(runs, list) else []
        return [name for name in listed if isinstance(name, str)]

    return of("tune"), of("confirm")


def _ordered(runs: pl.DataFrame, plan: Sequence[str]) -> pl.DataFrame:
    """Arm by arm as planned; what no plan names comes last, by name."""
    place = {name: i for i, name in enumerate(dict.fromkeys(plan))}
    at = [place.get(name, len(place)) for name in runs["id"]]
    placed = runs.with_columns(pl.Series("at", at, dtype=pl.Int64))
    first = pl.col("at").min().over("arm")
    return placed.sort(first, "arm", "at", "seed", "learning_rate", "id").drop("at")


# --- curves -----------------------------------------------------------------------------------------------------------


def _curves(rows: Sequence[Mapping[str, Any]], runs: pl.DataFrame) -> pl.DataFrame:
    names = dict.fromkeys(name for row in rows for name in row)
    schema = {**AXES, **{name: pl.Float64 for name in (*METRICS, *names) if name not in AXES}}
    columns = {name: [_typed(row.get(name), kind) for row in rows] for name, kind in schema.items()}
    return labelled(pl.DataFrame(columns, schema=schema), runs)


def _typed(value: Any, kind: Any) -> Any:
    """Files may hold whole numbers as floats and floats as whole numbers; what is no number of that kind is null."""
    if kind == pl.String:
        return None if value is None else str(value)
    if not _is_number(value) or (kind == pl.Int64 and value != int(value)):
        return None
    return int(value) if kind == pl.Int64 else float(value)


def _is_number(value: Any) -> bool:
    """A number that is finite: JSON of these files has null for the others."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
