"""The compact form of results: runs.csv, curves.csv (thinned), slices.csv where there are slices, and manifest.json.

Small enough to commit. A score that no run has is no column; columns that an older table does not know are null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from experiments.columns import AXES, METRICS, RUNS, SCORED, SLICES, labelled
from experiments.files import write_json, write_text
from experiments.frames import counted, json_object
from experiments.results import Results
from hybrid.validation import ConfigError

FACTS = ("study", "baseline", "score", "select_on", "symbols", "versions", "problems")
"""Fields of Results that manifest.json keeps under "results"."""
ABOUT = ("study", "command", "settings", "config", "machine", "workers")
"""What is kept of the study's own manifest: its trials one by one would be most of the size."""
OPTIONAL = {"source", *(name for name in (*SCORED, *METRICS) if not name.endswith(("_loss", "_bits_per_byte")))}
COUNTED = ("attention", "mixers")


def write(results: Results, folder: Path, points: int) -> Path:
    """Writes the three files; equal results give equal bytes. `points`: about how many rows a run and metric keep."""
    curves = results.curves.select(*AXES, *METRICS)
    parts = [part[_kept(part, points)] for part in curves.partition_by("id", maintain_order=True)]
    thin = pl.concat(parts) if parts else curves
    about = {name: results.manifest[name] for name in ABOUT if name in results.manifest}
    facts = {name: getattr(results, name) for name in FACTS}
    write_text(folder / "runs.csv", _there(results.runs).write_csv())
    write_text(folder / "curves.csv", _there(thin).with_columns(pl.selectors.float().round_sig_figs(6)).write_csv())
    if len(results.slices):
        write_text(folder / "slices.csv", results.slices.write_csv())
    write_json(folder / "manifest.json", {**about, "results": facts})
    return folder


def _there(frame: pl.DataFrame) -> pl.DataFrame:
    """Without the scores that no row has."""
    return frame.drop(name for name in frame.columns if name in OPTIONAL and frame[name].is_null().all())


def _kept(curve: pl.DataFrame, points: int) -> list[int]:
    """Rows of one run: of each metric the first, the last, and `points` in all, evenly spaced."""
    keep: set[int] = set()
    for name in METRICS:
        having = curve[name].is_not_null().arg_true().to_list()
        keep.update(_spaced(having, max(points, 2)))
    return sorted(keep)


def _spaced(rows: list[int], points: int) -> Iterator[int]:
    wanted = min(points, len(rows))
    for k in range(wanted):
        yield rows[round(k * (len(rows) - 1) / max(wanted - 1, 1))]


def _columns(frame: pl.DataFrame, kinds: dict[str, Any]) -> pl.DataFrame:
    """The columns of `kinds`; scores that the table does not have are null."""
    new = [name for name in kinds if name in (OPTIONAL | {*COUNTED}) and name not in frame.columns]
    return frame.with_columns(pl.lit(None, kinds[name]).alias(name) for name in new).select(*kinds)


def _counted(runs: pl.DataFrame, symbols: Mapping[str, str]) -> pl.DataFrame:
    """A table of before the counts of mixers: they follow from its patterns."""
    found = [counted(pattern, symbols) for pattern in runs["expanded"]]
    return runs.with_columns(pl.Series(name, [row[name] for row in found], dtype=pl.Int64) for name in COUNTED)


def read(folder: Path) -> Results:
    """What `write` wrote. Raises ConfigError where a file is missing or is no table of that kind."""
    problems: list[str] = []
    manifest = json_object(folder / "manifest.json", problems)
    facts: dict[str, Any] = manifest.pop("results", {})
    try:
        runs = _columns(pl.read_csv(folder / "runs.csv", schema_overrides=RUNS), RUNS)
        runs = runs.with_columns(pl.col("placement").fill_null(""), pl.col("arm").fill_null(""))
        kinds = AXES | dict.fromkeys(METRICS, pl.Float64)
        runs = _counted(runs, facts.get("symbols") or {})
        curves = _columns(pl.read_csv(folder / "curves.csv", schema_overrides=kinds), kinds)
        there = (folder / "slices.csv").is_file()
        slices = pl.read_csv(folder / "slices.csv", schema=SLICES) if there else pl.DataFrame(schema=SLICES)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        text = f"{str(folder)!r} holds no readable runs.csv and curves.csv ({reason}); save the study there again"
        raise ConfigError("folder", text) from None
    return Results(
        folder=folder,
        study=facts.get("study") or folder.name,
        runs=runs,
        curves=labelled(curves, runs),
        baseline=facts.get("baseline") or (runs["arm"][0] if len(runs) else ""),
        slices=slices,
        score=facts.get("score", "bits_per_byte"),
        select_on=facts.get("select_on") or "validation",
        symbols=facts.get("symbols") or {},
        manifest=manifest,
        versions=facts.get("versions") or {},
        problems=(*problems, *facts.get("problems", ())),
    )
