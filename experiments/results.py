"""A study as data frames: one of runs, one of their curves. Reads run folders or the compact form; no jax.

    results = load("runs/quickstart")
    results.runs                  a row a run: arm, seed, learning rate, status, budgets, final scores
    results.curves                a row a metrics row: id, arm, seed, step, tokens, flops, train_loss, ...
    results.table()               a row an arm: its chosen rate, test score with interval, difference, verdict
    results.save("results/quickstart")   runs.csv, curves.csv (thinned), manifest.json: small enough to commit

Reading never writes and never fails on a study that is still running, half failed, or empty.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl

from experiments.files import read_json, write_json, write_text
from experiments.runs import RunFolder
from hybrid.validation import ConfigError

RUNS: dict[str, Any] = {
    "id": pl.String,
    "arm": pl.String,
    "stage": pl.String,  # tune | confirm
    "seed": pl.Int64,
    "status": pl.String,  # queued | running | done | diverged | failed | stopped
    "setting": pl.String,  # the tuned fields and their values: "learning_rate=0.003"
    "learning_rate": pl.Float64,
    "pattern": pl.String,  # compact: "(M-)3A-"
    "expanded": pl.String,  # "M-M-M-A-"
    "ratio": pl.Float64,  # mixers that are attention, as a share of all mixers
    "placement": pl.String,  # the word that placed the attention; empty where none did
    "parameters": pl.Int64,
    "active_parameters": pl.Int64,  # that one token uses
    "flops_per_token": pl.Float64,  # of a training step
    "state_bytes": pl.Float64,  # what decoding carries at the trained length, batch 1
    "seq_len": pl.Int64,  # tokens
    "step": pl.Int64,  # reached
    "steps": pl.Int64,  # asked for
    "tokens": pl.Int64,
    "flops": pl.Float64,
    "seconds": pl.Float64,
    "compile_seconds": pl.Float64,
    "tokens_per_second": pl.Float64,  # median of what was logged
    "validation_loss": pl.Float64,  # nats per token, at the end of a run that is done
    "validation_bits_per_byte": pl.Float64,
    "test_loss": pl.Float64,
    "test_bits_per_byte": pl.Float64,
    "attempts": pl.Int64,  # starts, the first included
    "phase": pl.String,  # of the failure
    "error": pl.String,
    "fingerprint": pl.String,  # of the data
}
"""Columns of `Results.runs`; null where a value is not known (yet)."""

AXES: dict[str, Any] = {"id": pl.String, "step": pl.Int64, "tokens": pl.Int64, "flops": pl.Float64}
LABELS = ("arm", "stage", "seed", "setting", "learning_rate", "status")
"""Columns of `Results.curves` that come from the run."""
KEPT = ("train_loss", "train_bits_per_byte", "validation_loss", "validation_bits_per_byte")
"""What the compact form keeps of the curves."""
COMPACT = ("runs.csv", "curves.csv", "manifest.json")


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study left behind. `runs` and `curves` are polars data frames."""

    folder: Path
    study: str
    runs: pl.DataFrame
    curves: pl.DataFrame
    baseline: str
    """The arm that the others are compared with; empty in an empty study."""
    score: str = "bits_per_byte"
    """What validation selects on and test reports."""
    symbols: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Lower-case letters of the patterns -> the symbol of their kind."""
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """What could not be read, in words."""

    @property
    def arms(self) -> list[str]:
        """In the order of the study."""
        return self.runs["arm"].unique(maintain_order=True).to_list()

    def counts(self) -> dict[str, int]:
        """Status -> number of runs."""
        return dict(Counter(self.runs["status"].to_list()))

    def table(self, baseline: str | None = None) -> pl.DataFrame:
        """The verdicts: a row an arm (`experiments.verdicts`). Rates are chosen on validation, scores are on test."""
        from experiments.verdicts import table

        return table(self, baseline)

    def save(self, folder: str | Path, points: int = 40) -> Path:
        """Writes the compact form (at most about `points` rows a run and metric); `load` reads it again."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        curves = self.curves.select(*AXES, *(name for name in KEPT if name in self.curves.columns))
        rows = [row for part in curves.partition_by("id", maintain_order=True) for row in _thinned(part, points)]
        thin = pl.DataFrame(rows, schema=curves.schema).with_columns(pl.selectors.float().round_sig_figs(6))
        write_text(folder / "runs.csv", self.runs.write_csv())
        write_text(folder / "curves.csv", thin.write_csv())
        facts = {name: getattr(self, name) for name in ("study", "baseline", "score", "symbols", "versions")}
        write_json(folder / "manifest.json", {**self.manifest, "results": facts})
        return folder


def load(folder: str | Path) -> Results:
    """The results of a study folder (runs/NAME) or of its compact form (results/NAME); ConfigError where neither is."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError("folder", f"{str(folder)!r} is no folder; must be a study such as runs/quickstart")
    if (folder / "runs.csv").is_file():
        return _compact(folder)
    if not (folder / "trials").is_dir() and not (folder / "manifest.json").is_file():
        raise ConfigError("folder", f"{str(folder)!r} is no study; must hold trials/ and manifest.json, or runs.csv")
    return _study(folder)


def digest(ids: Iterable[str]) -> str:
    """8 hexadecimal digits that name a set of runs, whatever their order."""
    return hashlib.sha256("\n".join(sorted(set(ids))).encode()).hexdigest()[:8]


# --- run folders ------------------------------------------------------------------------------------------------------


def _study(folder: Path) -> Results:
    problems: list[str] = []
    manifest = _object(folder / "manifest.json", problems)
    runs, curves, records = [], [], []
    for path in sorted((folder / "trials").glob("*/")):
        run = RunFolder(path)
        try:
            record, status = run.record, run.status()
            rows = run.rows()
            runs.append(_run(run, record, status, rows))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{path.name}: not readable ({type(error).__name__}: {error})")
            continue
        records.append(record)
        names = {name: name.replace("/", "_") for row in rows for name in row}
        curves += [{"id": path.name, **{names[name]: value for name, value in row.items()}} for row in rows]
    order = {arm: i for i, arm in enumerate(_order(folder, records))}
    frame = pl.DataFrame(runs, schema=RUNS, orient="row").sort(
        pl.col("arm").replace_strict(order, default=len(order), return_dtype=pl.Int64), "seed", "learning_rate", "id"
    )
    study: Mapping[str, Any] = next((record["trial"].get("study", {}) for record in records), {})
    stated = study.get("baseline") or ""
    arms = frame["arm"].unique(maintain_order=True).to_list()
    return Results(
        folder=folder,
        study=study.get("name") or folder.name,
        runs=frame,
        curves=_curves(curves, frame),
        baseline=stated if stated in arms or not arms else arms[0],
        score=study.get("score", "bits_per_byte"),
        symbols=_symbols(records),
        manifest=manifest,
        versions=manifest.get("versions") or next((record.get("versions", {}) for record in records), {}),
        problems=tuple(problems),
    )


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object that may be missing."""
    try:
        found = read_json(path)
    except ValueError as error:
        problems.append(f"{path.name}: not readable ({error})")
        return {}
    return found if isinstance(found, dict) else {}


def _run(run: RunFolder, record: Mapping[str, Any], status: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    trial, derived = record["trial"], record.get("derived") or {}
    result, events = run.result or {}, run.events()
    failure = (run.failure or {}) if status == "failed" else {}
    parameters = derived.get("parameters") or {}
    last = rows[-1] if rows else {}
    rate = trial["optimizer"]["learning_rate"]
    speeds = pl.Series(
        [event.get("tokens_per_second") for event in events], dtype=pl.Float64, strict=False
    ).drop_nulls()
    compiled = [event["seconds"] for event in events if event.get("event") == "compiled" and "seconds" in event]
    values = {
        "id": run.id,
        "arm": record["arm"],
        "stage": record.get("stage"),
        "seed": trial["seed"],
        "status": status,
        "setting": _setting(trial),
        "learning_rate": float(rate),
        "pattern": derived.get("compact") or trial["model"].get("pattern"),
        "expanded": "".join(derived.get("pattern") or ()) or None,
        "ratio": float(Fraction(str(derived["ratio"]))) if derived.get("ratio") is not None else None,
        "placement": derived.get("placement") or trial.get("placement") or "",
        "parameters": parameters.get("total"),
        "active_parameters": parameters.get("active"),
        "flops_per_token": derived.get("flops_per_token"),
        "state_bytes": derived.get("state_bytes"),
        "seq_len": trial["data"].get("seq_len"),
        "step": result.get("step", last.get("step")),
        "steps": trial["train"].get("steps"),
        "tokens": result.get("tokens", last.get("tokens")),
        "flops": result.get("flops", last.get("flops")),
        "seconds": result.get("seconds"),
        "compile_seconds": sum(compiled) if compiled else None,
        "tokens_per_second": speeds.median() if len(speeds) else None,
        "attempts": sum(event.get("event") == "start" for event in events),
        "phase": failure.get("phase"),
        "error": failure.get("error"),
        "fingerprint": derived.get("fingerprint"),
    }
    if status == "done":
        for part in ("validation", "test"):
            for name in ("loss", "bits_per_byte"):
                values[f"{part}_{name}"] = (result.get(part) or {}).get(name)
    return {name: values.get(name) for name in RUNS}


def _setting(trial: Mapping[str, Any]) -> str:
    """The tuned fields of a trial in words: runs of an arm with equal words differ in their seed alone."""
    words = []
    for field in trial.get("study", {}).get("tune") or ("optimizer.learning_rate",):
        value: Any = trial
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        words.append(f"{field.rpartition('.')[2]}={value:g}" if isinstance(value, float) else f"{field}={value}")
    return ", ".join(words)


def _order(folder: Path, records: list[dict[str, Any]]) -> list[str]:
    """The arms as the study states them (tune.json lists its trials in order), then what is not listed, by name."""
    arms = {record["id"]: record["arm"] for record in records if "id" in record}
    stated = [arms[name] for name in _ids(_object(folder / "tune.json", [])) if name in arms]
    return list(dict.fromkeys([*stated, *sorted(arms.values())]))


def _ids(value: Any) -> list[str]:
    """Run ids named anywhere in a plan, in its order."""
    if isinstance(value, Mapping):
        own = [value["id"]] if isinstance(value.get("id"), str) else []
        return own + [name for item in value.values() for name in _ids(item)]
    if isinstance(value, list):
        return [name for item in value for name in ([item] if isinstance(item, str) else _ids(item))]
    return []


def _symbols(records: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for record in records:
        for letter, entry in (record["trial"]["model"].get("symbols") or {}).items():
            found[letter] = entry["kind"] if isinstance(entry, Mapping) else str(entry)
    return found


def _curves(rows: list[dict[str, Any]], runs: pl.DataFrame) -> pl.DataFrame:
    names = dict.fromkeys(name for row in rows for name in row)
    schema = {**AXES, **{name: pl.Float64 for name in (*KEPT, *names) if name not in AXES}}
    columns = [{name: _number(row.get(name), kind) for name, kind in schema.items()} for row in rows]
    frame = pl.DataFrame(columns, schema=schema, orient="row")
    return _labelled(frame, runs)


def _number(value: Any, kind: Any) -> Any:
    """Rows may hold whole numbers as floats and floats as whole numbers; what is no number is left out."""
    if kind == pl.String or value is None:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if kind == pl.Int64 else float(value)


def _labelled(curves: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """The curves with what their runs are called, in the order of the runs and of their steps."""
    labels = runs.select("id", *LABELS).with_row_index("order")
    joined = curves.with_row_index("row").join(labels, on="id", how="inner").sort("order", "row")
    metrics = [name for name in curves.columns if name not in AXES]
    return joined.select("id", *LABELS, *(name for name in AXES if name != "id"), *metrics)


# --- the compact form -------------------------------------------------------------------------------------------------


def _thinned(curve: pl.DataFrame, points: int) -> list[dict[str, Any]]:
    """The rows of one run, at most about `points` that carry each metric, the first and the last among them."""
    rows = curve.to_dicts()
    keep: set[int] = set()
    for name in curve.columns[len(AXES) :]:
        having = [i for i, row in enumerate(rows) if row[name] is not None]
        wanted = min(points, len(having))
        keep.update(having[round(k * (len(having) - 1) / max(wanted - 1, 1))] for k in range(wanted))
    return [rows[i] for i in sorted(keep)]


def _compact(folder: Path) -> Results:
    problems: list[str] = []
    manifest = _object(folder / "manifest.json", problems)
    facts = manifest.pop("results", {})
    try:
        runs = pl.read_csv(folder / "runs.csv", schema_overrides=RUNS)
        header = (folder / "curves.csv").read_text(encoding="utf-8").partition("\n")[0].split(",")
        kinds = {name: AXES.get(name, pl.Float64) for name in header}
        curves = pl.read_csv(folder / "curves.csv", schema_overrides=kinds)
        runs = runs.select(*RUNS).with_columns(pl.col("placement").fill_null(""))
        curves = _labelled(curves, runs)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError("folder", f"{str(folder)!r} has no readable {' and '.join(COMPACT)} ({reason})") from None
    return Results(
        folder=folder,
        study=facts.get("study") or folder.name,
        runs=runs,
        curves=curves,
        baseline=facts.get("baseline") or (runs["arm"][0] if len(runs) else ""),
        score=facts.get("score", "bits_per_byte"),
        symbols=facts.get("symbols") or {},
        manifest=manifest,
        versions=facts.get("versions") or {},
        problems=tuple(problems),
    )
