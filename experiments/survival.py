"""How many steps a task takes to be learnt, when some seeds never learn it in the steps they had. No jax here.

Recall comes all at once, so final accuracies lie in two heaps and their mean describes no run. Steps to a threshold do
better: a run that did not reach it is not a missing value but a censored one, "more than its last step".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps until a run first met the threshold, or all that it did without meeting it (`censored`)."""

    steps: float
    censored: bool


@dataclasses.dataclass(frozen=True)
class Survival:
    """Kaplan and Meier's estimate of the share that has not met the threshold yet."""

    n: int
    met: int
    median: float | None  # steps at which half of the runs have met it; None where fewer than half did
    low: float | None  # 95 % limits of the median, where the limits of the curve cross a half; None: not in these steps
    high: float | None
    steps: tuple[float, ...]  # at which the curve falls
    waiting: tuple[float, ...]  # the share that waits from there on


def steps_to(steps: Sequence[float], scores: Sequence[float], threshold: float, smaller_is_better: bool) -> Steps:
    """When a run's curve first meets the threshold, at the evaluations that it has; ValueError for an empty curve."""
    if len(steps) == 0 or len(steps) != len(scores):
        raise ValueError(f"a curve needs as many scores as steps, got {len(scores)} and {len(steps)}")
    for step, score in zip(steps, scores, strict=True):
        if (score <= threshold) if smaller_is_better else (score >= threshold):
            return Steps(float(step), False)
    return Steps(float(max(steps)), True)


def survival(runs: Sequence[Steps], level: float = 0.95) -> Survival:
    """Of the runs of one arm. The limits are scipy's log-log ones, which stay between 0 and 1."""
    if not runs:
        raise ValueError("survival needs at least one run")
    import warnings

    from scipy import stats

    curve = stats.ecdf(_data(runs)).sf
    met = sum(not run.censored for run in runs)
    low = high = None
    if met:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # log of 0 where all have met it, which gives nan
            limits = curve.confidence_interval(level, method="log-log")
        low = _half(limits.low.quantiles, limits.low.probabilities)
        high = _half(limits.high.quantiles, limits.high.probabilities)
    falls = [
        (float(at), float(share))
        for at, share, before in zip(
            curve.quantiles, curve.probabilities, (1.0, *curve.probabilities[:-1]), strict=True
        )
        if share < before
    ]
    return Survival(
        n=len(runs),
        met=met,
        median=_half(curve.quantiles, curve.probabilities),
        low=low,
        high=high,
        steps=tuple(at for at, _ in falls),
        waiting=tuple(share for _, share in falls),
    )


def logrank(ours: Sequence[Steps], baseline: Sequence[Steps]) -> float:
    """Two-sided p that both need the same steps (Mantel 1966); 1 where no run met the threshold, or all did at once, or
    one has no run."""
    if not ours or not baseline or all(run.censored for run in (*ours, *baseline)):
        return 1.0
    from scipy import stats

    with np.errstate(invalid="ignore"):  # nothing varies where all met it at one step: 0 / 0
        p = float(stats.logrank(_data(ours), _data(baseline)).pvalue)
    return p if np.isfinite(p) else 1.0


def _data(runs: Sequence[Steps]):
    from scipy import stats

    return stats.CensoredData(
        uncensored=[run.steps for run in runs if not run.censored], right=[run.steps for run in runs if run.censored]
    )


def _half(steps: np.ndarray, waiting: np.ndarray) -> float | None:
    """The first step from which at most half wait."""
    there = np.flatnonzero(np.asarray(waiting) <= 0.5)  # nan is not
    return float(steps[there[0]]) if there.size else None
