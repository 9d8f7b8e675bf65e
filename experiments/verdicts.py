"""The verdict table of a study: a row an arm. Settings are chosen on validation, scores are on test."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments import statistics
from hybrid.validation import unknown

if TYPE_CHECKING:
    from experiments.results import Results

LEVEL = 0.95
GOOD = 0.01
"""A learning rate is good where its validation score is within this share of the arm's best."""
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
    "lost": pl.Int64,  # seeds at the chosen setting that diverged: in no mean
    "test": pl.Float64,
    "low": pl.Float64,  # 95 % interval; null with one seed
    "high": pl.Float64,
    "difference": pl.Float64,  # to the baseline, paired by seed
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "p": pl.Float64,  # after Holm over the table
    "verdict": pl.String,  # better | worse | undecided | baseline; null where there is nothing to compare
    "more_seeds": pl.Int64,  # that would decide a difference as large as the observed one, at 80 % power
    "runs": pl.Int64,
    "diverged": pl.Int64,  # runs at any setting
    "failed": pl.Int64,
}
"""Columns of `table`."""


def check_baseline(results: Results, baseline: str) -> str:
    """`baseline`, where it is an arm (or the study has none); else ConfigError."""
    if results.arms and baseline not in results.arms:
        raise unknown("baseline", baseline, results.arms, f"{baseline!r} is no arm of this study")
    return baseline


def chosen(results: Results) -> dict[str, str]:
    """Arm -> the setting with the best validation score among its tuning runs that are done; the first of equals."""
    score = f"validation_{results.score}"
    tuned = results.runs.filter((pl.col("stage") == "tune") & pl.col(score).is_not_null())
    best = tuned.sort(score, maintain_order=True).unique("arm", keep="first", maintain_order=True)
    return dict(best.select("arm", "setting").iter_rows())


def confirmed(results: Results) -> pl.DataFrame:
    """The runs at the chosen setting of their arm, whatever their stage and status."""
    choice = pl.DataFrame(list(chosen(results).items()), schema={"arm": pl.String, "setting": pl.String}, orient="row")
    return results.runs.join(choice, on=["arm", "setting"], how="inner", maintain_order="left")


def responses(results: Results) -> dict[str, tuple[list[float], list[float]]]:
    """Arm -> (learning rates, validation scores of the tuning runs; nan where diverged), sorted by rate.

    Where more than the learning rate is tuned, a rate has the best score of its runs.
    """
    score = f"validation_{results.score}"
    tuned = results.runs.filter((pl.col("stage") == "tune") & pl.col("status").is_in(["done", "diverged"]))
    found = {}
    for arm in results.arms:
        rows = tuned.filter(pl.col("arm") == arm).sort("learning_rate", score, nulls_last=True)
        best = rows.unique("learning_rate", keep="first", maintain_order=True)
        found[arm] = (best["learning_rate"].to_list(), [_number(value) for value in best[score].to_list()])
    return found


def windows(results: Results) -> dict[str, statistics.Response]:
    """Arm -> its best rate and the window of rates within GOOD of the best score; arms without scores are left out."""
    found = {}
    for arm, (rates, scores) in responses(results).items():
        best = min((abs(score) for score in scores if math.isfinite(score)), default=None)
        if best is not None:
            found[arm] = statistics.response(rates, scores, tolerance=GOOD * best)
    return found


def edges(results: Results) -> dict[str, str | None]:
    """Arm -> the edge of the grid at which its best rate lies ("low", "high", or "both" of a single rate), or None."""
    found = windows(results)
    return {arm: found[arm].at_edge if arm in found else None for arm in results.arms}


def table(results: Results, baseline: str | None = None) -> pl.DataFrame:
    """A row an arm, in the order of the study. Raises ConfigError for a baseline that is no arm.

    A verdict needs a test score of the arm and of the baseline on one seed at least; from one pair it is "undecided".
    """
    arms = results.arms
    baseline = check_baseline(results, results.baseline if baseline is None else baseline)
    kept, choice, at_edge = confirmed(results), chosen(results), edges(results)
    scores = {arm: _by_seed(kept.filter(pl.col("arm") == arm), f"test_{results.score}") for arm in arms}
    comparisons = statistics.compare(scores, baseline, LEVEL) if arms else {}
    rows = []
    for arm in arms:
        row = _about(results.runs.filter(pl.col("arm") == arm), choice.get(arm), f"validation_{results.score}")
        row |= {"edge": at_edge[arm], **_scored(scores[arm])}
        if arm == baseline:
            row["verdict"] = "baseline" if row["n"] else None
        elif row["n"] and comparisons[arm].n:
            row |= _compared(comparisons[arm], len(comparisons))
        rows.append({name: row.get(name) for name in TABLE})
    return pl.DataFrame(rows, schema=TABLE, orient="row")


def _by_seed(runs: pl.DataFrame, test: str) -> dict[int, float]:
    """Seed -> test score; a diverged seed counts as not finite, an unfinished one not at all."""
    over = runs.filter(pl.col("status").is_in(["done", "diverged"]))
    return {seed: _number(value) for seed, value in over.select("seed", test).iter_rows()}


def _about(runs: pl.DataFrame, setting: str | None, score: str) -> dict[str, Any]:
    """What an arm is, what was chosen for it and how its runs went; `runs`: all of the arm."""
    picked = runs.filter((pl.col("setting") == setting) & (pl.col("stage") == "tune")) if setting else runs.head(0)
    return {
        **runs.row(0, named=True),
        "setting": setting,
        "learning_rate": picked["learning_rate"][0] if len(picked) else None,
        "validation": picked[score].min(),
        "runs": len(runs),
        "diverged": int((runs["status"] == "diverged").sum()),
        "failed": int((runs["status"] == "failed").sum()),
    }


def _scored(scores: dict[int, float]) -> dict[str, Any]:
    """Mean and interval over the seeds that have a score."""
    finite = [value for value in scores.values() if math.isfinite(value)]
    row: dict[str, Any] = {"n": len(finite), "lost": len(scores) - len(finite)}
    if finite:
        found = statistics.interval(finite, LEVEL)
        row |= {"test": found.mean, "low": _finite(found.low), "high": _finite(found.high)}
    return row


def _compared(comparison: statistics.Comparison, comparisons: int) -> dict[str, Any]:
    """The difference to the baseline; seeds are counted at Holm's strictest level, that of the smallest p."""
    more = None
    if comparison.verdict == "undecided":
        more = statistics.more_seeds(comparison, level=1 - (1 - LEVEL) / comparisons)
    return {
        "difference": _finite(comparison.difference),
        "difference_low": _finite(comparison.low),
        "difference_high": _finite(comparison.high),
        "p": comparison.p_adjusted,
        "verdict": comparison.verdict,
        "more_seeds": more,
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
