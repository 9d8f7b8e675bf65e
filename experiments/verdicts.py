"""The verdict table of a study: a row an arm. Settings are chosen on one split (validation), scores are on test."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments import responses as learning_rates
from experiments import statistics, survival
from experiments.scores import End, best, rank
from hybrid.validation import unknown

if TYPE_CHECKING:
    from experiments.results import Results

LEVEL = 0.95
THRESHOLD = 0.9
"""Share of right answers from which a seed counts as having learnt the task."""
TABLE: dict[str, Any] = {
    "arm": pl.String,
    "pattern": pl.String,  # compact
    "expanded": pl.String,
    "ratio": pl.Float64,
    "attention": pl.Int64,  # mixers that are attention
    "mixers": pl.Int64,
    "placement": pl.String,
    "parameters": pl.Int64,
    "flops_per_token": pl.Float64,  # of a training step
    "state_bytes": pl.Float64,  # at the trained length
    "setting": pl.String,  # chosen on Results.select_on
    "learning_rate": pl.Float64,
    "edge": pl.String,  # low | high | both: the chosen rate is at that edge of its grid
    "validation": pl.Float64,  # mean of the chosen setting's tuning runs (on the split that it was chosen on)
    "n": pl.Int64,  # seeds with a test score
    "lost": pl.Int64,  # seeds at the chosen setting that diverged: in no mean
    "test": pl.Float64,
    "low": pl.Float64,  # 95 % interval; null with one seed
    "high": pl.Float64,
    "failing": pl.Float64,  # share of seeds at the chosen setting that diverged or, of shares, ended below THRESHOLD
    "steps_to": pl.Float64,  # median steps to THRESHOLD (Kaplan and Meier); null where under half of the seeds met it
    "steps_p": pl.Float64,  # log-rank, the steps of this arm against the baseline's; before Holm
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
    """Arm -> the setting whose tuning runs are the best (`scores.rank`) on the split of selection."""
    return {arm: runs[0]["setting"] for arm, runs in _tuned(results).items()}


def _tuned(results: Results) -> dict[str, list[dict]]:
    """Arm -> the tuning runs of its best setting, those that have not ended left out; one of them has a score."""
    score, down = results.selection, results.about_score.smaller_is_better
    settings: dict[tuple[str, str], list[dict]] = {}
    for run in results.runs.filter(pl.col("stage") == "tune").iter_rows(named=True):
        if run[score] is not None or run["status"] in LOST:
            settings.setdefault((run["arm"], run["setting"]), []).append(run)
    best: dict[str, tuple] = {}
    for (arm, _), runs in settings.items():
        if any(run[score] is not None for run in runs):
            at = rank([End(run[score], run["step"], run["steps"]) for run in runs], down)
            if arm not in best or at < best[arm][0]:
                best[arm] = at, runs
    return {arm: runs for arm, (_, runs) in best.items()}


LOST = ("diverged", "failed")
"""How runs end that have no score."""


def confirmed(results: Results) -> pl.DataFrame:
    """The runs at the chosen setting of their arm, whatever their stage and status."""
    choice = pl.DataFrame(list(chosen(results).items()), schema={"arm": pl.String, "setting": pl.String}, orient="row")
    return results.runs.join(choice, on=["arm", "setting"], how="inner", maintain_order="left")


def responses(results: Results) -> dict[str, tuple[list[float], list[float]]]:
    """Arm -> (learning rates, scores to choose by: the mean over tuning seeds, nan where one diverged), by rate.

    Where more than the learning rate is tuned, a rate has the best score of its settings.
    """
    score, down = results.selection, not results.about_score.smaller_is_better
    tuned = results.runs.filter((pl.col("stage") == "tune") & pl.col("status").is_in(["done", "diverged"]))
    of_all = pl.when(pl.col(score).is_null().any()).then(None).otherwise(pl.col(score).mean()).alias(score)
    found = {}
    for arm in results.arms:
        settings = tuned.filter(pl.col("arm") == arm).group_by("learning_rate", "setting").agg(of_all)
        rows = settings.sort("learning_rate", score, descending=[False, down], nulls_last=True)
        first = rows.unique("learning_rate", keep="first", maintain_order=True)
        found[arm] = (first["learning_rate"].to_list(), [_number(value) for value in first[score].to_list()])
    return found


def windows(results: Results) -> dict[str, learning_rates.Response]:
    """Arm -> its best rate and the window of good ones (`responses.tolerance`); arms without one are left out."""
    found, about, tuned = {}, results.about_score, _tuned(results)
    for arm, (rates, scores) in responses(results).items():
        top = best((score for score in scores if math.isfinite(score)), about.smaller_is_better)
        rate = tuned[arm][0]["learning_rate"] if arm in tuned else None
        if top is not None and rate is not None and math.isfinite(scores[rates.index(rate)]):
            limit = learning_rates.tolerance(top, about)
            found[arm] = learning_rates.response(rates, scores, limit, about.smaller_is_better, rate)
    return found


def steps_to(
    results: Results, threshold: float = THRESHOLD, metric: str | None = None
) -> dict[str, list[survival.Steps]]:
    """Arm -> steps of its seeds at the chosen setting until `metric` (of validation: the study's score) first meets
    the threshold; censored where it does not. Runs without an evaluation are left out."""
    metric = metric or f"validation_{results.score}"
    kept = confirmed(results).filter(pl.col("status").is_in(["done", "diverged"]))
    curves = results.curves.filter(pl.col(metric).is_not_null())
    found: dict[str, list[survival.Steps]] = {arm: [] for arm in results.arms}
    for name, arm in kept.select("id", "arm").iter_rows():
        curve = curves.filter(pl.col("id") == name).sort("step")
        if len(curve):
            steps, values = curve["step"].to_list(), curve[metric].to_list()
            found[arm].append(survival.steps_to(steps, values, threshold, results.about_score.smaller_is_better))
    return found


def edges(results: Results) -> dict[str, str | None]:
    """Arm -> the edge of the grid at which its best rate lies ("low", "high", or "both" of a single rate), or None."""
    found = windows(results)
    return {arm: found[arm].at_edge if arm in found else None for arm in results.arms}


def table(results: Results, baseline: str | None = None) -> pl.DataFrame:
    """A row an arm, in the order of the study, source by source. Raises ConfigError for a baseline that is no arm.

    A verdict needs a test score of the arm and of the baseline on one seed at least; from one pair it is "undecided".
    Arms of different data are not compared: each source (`Results.parts`) is a table of its own, with its own baseline.
    """
    arms = results.arms
    baseline = check_baseline(results, results.baseline if baseline is None else baseline)
    parts = results.against(baseline).parts()
    if len(parts) > 1:
        return pl.concat([table(part) for part in parts.values()])
    kept, choice, at_edge = confirmed(results), chosen(results), edges(results)
    scores = {arm: _by_seed(kept.filter(pl.col("arm") == arm), f"test_{results.score}") for arm in arms}
    about = results.about_score
    comparisons = (
        statistics.compare(scores, baseline, LEVEL, about.smaller_is_better, jumps=about.is_share) if arms else {}
    )
    learnt = steps_to(results) if about.is_share else {}
    rows = []
    for arm in arms:
        row = _about(results.runs.filter(pl.col("arm") == arm), choice.get(arm), results)
        row |= {"edge": at_edge[arm], **_scored(scores[arm], about.is_share), **_failing(scores[arm], about.is_share)}
        if learnt.get(arm):
            row["steps_to"] = survival.survival(learnt[arm]).median
            row["steps_p"] = survival.logrank(learnt[arm], learnt[baseline]) if arm != baseline else None
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


def _about(runs: pl.DataFrame, setting: str | None, results: Results) -> dict[str, Any]:
    """What an arm is, what was chosen for it and how its runs went; `runs`: all of the arm."""
    picked = runs.filter((pl.col("setting") == setting) & (pl.col("stage") == "tune")) if setting else runs.head(0)
    return {
        **runs.row(0, named=True),
        "setting": setting,
        "learning_rate": picked["learning_rate"][0] if len(picked) else None,
        "validation": picked[results.selection].mean(),
        "runs": len(runs),
        "diverged": int((runs["status"] == "diverged").sum()),
        "failed": int((runs["status"] == "failed").sum()),
    }


def _scored(scores: dict[int, float], is_share: bool) -> dict[str, Any]:
    """Mean and interval over the seeds that have a score; that of a share ends at 0 and 1."""
    finite = [value for value in scores.values() if math.isfinite(value)]
    row: dict[str, Any] = {"n": len(finite), "lost": len(scores) - len(finite)}
    if finite:
        found = statistics.interval(finite, LEVEL)
        low, high = _finite(found.low), _finite(found.high)
        if is_share and low is not None and high is not None:
            low, high = max(low, 0.0), min(high, 1.0)
        row |= {"test": found.mean, "low": low, "high": high}
    return row


def _failing(scores: dict[int, float], is_share: bool) -> dict[str, float | None]:
    """The share of seeds that failed; diverged ones always did."""
    if not scores:
        return {"failing": None}
    failed = [not math.isfinite(value) or (is_share and value < THRESHOLD) for value in scores.values()]
    return {"failing": sum(failed) / len(failed)}


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
