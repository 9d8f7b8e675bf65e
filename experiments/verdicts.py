"""The verdict table of a study: a row an arm. Settings are chosen on validation, scores are on test."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments import statistics
from hybrid.validation import unknown

if TYPE_CHECKING:
    from experiments.results import Results

TABLE: dict[str, Any] = {
    "arm": pl.String,
    "pattern": pl.String,  # compact
    "expanded": pl.String,
    "ratio": pl.Float64,
    "placement": pl.String,
    "parameters": pl.Int64,
    "flops_per_token": pl.Float64,  # of a training step
    "state_bytes": pl.Float64,  # at the trained length
    "setting": pl.String,  # chosen on validation
    "learning_rate": pl.Float64,
    "edge": pl.String,  # low | high | both: the chosen rate is at that edge of its grid
    "validation": pl.Float64,  # of the chosen setting in the tuning stage
    "n": pl.Int64,  # seeds with a test score
    "test": pl.Float64,
    "low": pl.Float64,  # 95 % interval; null with one seed
    "high": pl.Float64,
    "difference": pl.Float64,  # to the baseline, paired by seed
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "verdict": pl.String,  # better | worse | undecided | baseline
    "more_seeds": pl.Int64,  # that would decide a difference as large as the observed one, at 80 % power
    "runs": pl.Int64,
    "diverged": pl.Int64,
    "failed": pl.Int64,
}
"""Columns of `table`."""


def chosen(results: Results) -> dict[str, str]:
    """Arm -> the setting with the best validation score among its tuning runs that are done."""
    score = f"validation_{results.score}"
    tuned = results.runs.filter((pl.col("stage") == "tune") & pl.col(score).is_not_null())
    best = tuned.sort(score, maintain_order=True).unique("arm", keep="first", maintain_order=True)
    return dict(best.select("arm", "setting").iter_rows())


def confirmed(results: Results) -> pl.DataFrame:
    """The runs at the chosen setting of their arm, whatever their stage and status."""
    choice = pl.DataFrame(list(chosen(results).items()), schema={"arm": pl.String, "setting": pl.String}, orient="row")
    return results.runs.join(choice, on=["arm", "setting"], how="inner", maintain_order="left")


def table(results: Results, baseline: str | None = None) -> pl.DataFrame:
    """A row an arm, in the order of the study. Raises ConfigError for a baseline that is no arm."""
    arms = results.arms
    baseline = results.baseline if baseline is None else baseline
    if arms and baseline not in arms:
        raise unknown("baseline", baseline, arms, f"{baseline!r} is no arm of this study")
    kept = confirmed(results)
    test = f"test_{results.score}"
    scores = {arm: _by_seed(kept.filter(pl.col("arm") == arm), test) for arm in arms}
    comparisons = statistics.compare(scores, baseline) if arms else {}
    rows = [_row(results, arm, baseline, scores[arm], comparisons.get(arm)) for arm in arms]
    return pl.DataFrame(rows, schema=TABLE, orient="row")


def responses(results: Results) -> dict[str, tuple[list[float], list[float]]]:
    """Arm -> (learning rates, validation scores of the tuning runs; nan where diverged), sorted by rate."""
    score = f"validation_{results.score}"
    tuned = results.runs.filter((pl.col("stage") == "tune") & pl.col("status").is_in(["done", "diverged"]))
    found = {}
    for arm in results.arms:
        rows = tuned.filter(pl.col("arm") == arm).sort("learning_rate", score, nulls_last=True)
        best = rows.unique("learning_rate", keep="first", maintain_order=True)
        values = [math.nan if value is None else value for value in best[score].to_list()]
        found[arm] = (best["learning_rate"].to_list(), values)
    return found


def _by_seed(runs: pl.DataFrame, test: str) -> dict[int, float]:
    """Seed -> test score; a diverged seed counts as not finite, an unfinished one not at all."""
    over = runs.filter(pl.col("status").is_in(["done", "diverged"]))
    return {seed: math.nan if value is None else value for seed, value in over.select("seed", test).iter_rows()}


def _row(
    results: Results, arm: str, baseline: str, scores: dict[int, float], comparison: statistics.Comparison | None
) -> dict[str, Any]:
    runs = results.runs.filter(pl.col("arm") == arm)
    first = runs.row(0, named=True)
    row = {name: first[name] for name in TABLE if name in first}
    setting = chosen(results).get(arm)
    picked = runs.filter((pl.col("setting") == setting) & (pl.col("stage") == "tune")) if setting else runs.head(0)
    row |= {
        "setting": setting,
        "learning_rate": picked["learning_rate"][0] if len(picked) else None,
        "validation": picked[f"validation_{results.score}"].min() if len(picked) else None,
        "edge": _edge(*responses(results)[arm]),
        "runs": len(runs),
        "diverged": int((runs["status"] == "diverged").sum()),
        "failed": int((runs["status"] == "failed").sum()),
    }
    finite = [value for value in scores.values() if math.isfinite(value)]
    row["n"] = len(finite)
    if finite:
        found = statistics.interval(finite)
        row |= {"test": found.mean, "low": _finite(found.low), "high": _finite(found.high)}
    if arm == baseline:
        row["verdict"] = "baseline"
    elif comparison is not None:
        strictest = 1 - 0.05 / (len(results.arms) - 1)  # Holm's level for the smallest p of the table
        more = statistics.more_seeds(comparison, strictest) if comparison.verdict == "undecided" else None
        row |= {
            "difference": _finite(comparison.difference),
            "difference_low": _finite(comparison.low),
            "difference_high": _finite(comparison.high),
            "verdict": comparison.verdict,
            "more_seeds": more,
        }
    return {name: row.get(name) for name in TABLE}


def _edge(rates: list[float], scores: list[float]) -> str | None:
    return statistics.response(rates, scores, tolerance=0.0).at_edge if rates else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
