"""What scores of several seeds say: intervals, paired differences with verdicts, learning-rate responses. No jax here.

A verdict is "better" or "worse" only when the paired test says so after Holm's correction over the whole table; all
else is "undecided", and `more_seeds` says how much work it would take to decide. Tests and quantiles are scipy's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Verdict = Literal["better", "worse", "undecided"]

FEW = 10  # seeds: below it Student's t on the mean, from it on a bootstrap of the interquartile mean
_RESAMPLES = 5000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A centre with its confidence interval; one seed says nothing of its spread, so its interval is infinite."""

    mean: float
    low: float
    high: float
    n: int
    estimator: Literal["mean", "interquartile mean"]


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The typical score of n seeds, all finite (diverged runs are for the caller to report).

    Below 10 seeds: mean and Student's t. From 10: interquartile mean, which one bad seed does not move (Agarwal et al.
    2021), and percentile bootstrap with a fixed seed.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0 or not np.isfinite(scores).all():
        raise ValueError(f"scores must be a non-empty list of finite numbers, got {values!r}")
    from scipy import stats

    n = scores.size
    if n < FEW:
        mean = float(scores.mean())
        if n == 1:
            return Interval(mean, -math.inf, math.inf, n, "mean")
        half = float(stats.t.ppf((1 + level) / 2, n - 1) * scores.std(ddof=1) / math.sqrt(n))
        return Interval(mean, mean - half, mean + half, n, "mean")
    centre = float(stats.trim_mean(scores, 0.25))
    found = stats.bootstrap(
        (scores,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=_RESAMPLES,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(centre, float(found.low), float(found.high), n, "interquartile mean")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ours minus the baseline on the seeds that both have; negative is better where smaller scores are."""

    difference: float  # mean over the pairs; nan without a pair
    low: float
    high: float
    n: int  # pairs that were compared
    sd: float  # of the paired differences; nan below two pairs
    p_value: float  # two-sided paired t test, before Holm; 1 where nothing can be tested
    p_adjusted: float  # after Holm over the table; the same for a single comparison
    diverged: tuple[int, int]  # shared seeds without a finite score: ours, the baseline's
    verdict: Verdict


def paired_difference(
    ours: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95, smaller_is_better: bool = True
) -> Comparison:
    """One comparison on shared seeds, by a paired t test. For a whole table use `compare`, which corrects for its size.

    Seeds on which either diverged (a score that is not finite) are left out of the numbers, and the one that diverged
    more often cannot be called the better one for them.
    """
    shared = sorted(ours.keys() & baseline.keys())
    pairs = np.array([(ours[seed], baseline[seed]) for seed in shared], dtype=np.float64).reshape(-1, 2)
    finite = np.isfinite(pairs)
    lost = ~finite
    differences = np.subtract(*pairs[finite.all(axis=1)].T)
    n = differences.size
    mean = float(differences.mean()) if n else math.nan
    low, high, sd, p_value = -math.inf, math.inf, math.nan, 1.0
    if n >= 2:
        sd = float(differences.std(ddof=1))
        if sd <= 1e-12 * abs(mean):  # no spread for a t test: the same difference, or none, on every seed
            low = high = mean
            p_value = 0.0 if mean else 1.0
        else:
            from scipy import stats

            test = stats.ttest_1samp(differences, 0.0)
            bounds = test.confidence_interval(level)
            low, high, p_value = float(bounds.low), float(bounds.high), float(test.pvalue)
    diverged = (int(lost[:, 0].sum()), int(lost[:, 1].sum()))
    verdict = _verdict(mean, p_value, diverged, level, smaller_is_better)
    return Comparison(mean, low, high, n, sd, p_value, p_value, diverged, verdict)


def _verdict(
    difference: float, p_value: float, diverged: tuple[int, int], level: float, smaller_is_better: bool
) -> Verdict:
    if p_value >= 1 - level or difference == 0:
        return "undecided"
    ours_wins = (difference < 0) == smaller_is_better
    if diverged[0] > diverged[1] if ours_wins else diverged[1] > diverged[0]:
        return "undecided"
    return "better" if ours_wins else "worse"


def compare(
    scores: Mapping[str, Mapping[int, float]], baseline: str, level: float = 0.95, smaller_is_better: bool = True
) -> dict[str, Comparison]:
    """Every other arm against the baseline arm; verdicts hold for the whole table together (Holm).

    Intervals stay those of each comparison alone, so one may leave zero out and still be undecided. Arms with fewer
    than two pairs test nothing and do not weigh on the others. `scores`: arm -> seed -> score.
    """
    found = {
        arm: paired_difference(by_seed, scores[baseline], level, smaller_is_better)
        for arm, by_seed in scores.items()
        if arm != baseline
    }
    tested = [arm for arm, comparison in found.items() if comparison.n >= 2]
    for arm, p in zip(tested, holm([found[arm].p_value for arm in tested]), strict=True):
        verdict = _verdict(found[arm].difference, p, found[arm].diverged, level, smaller_is_better)
        found[arm] = dataclasses.replace(found[arm], p_adjusted=p, verdict=verdict)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the given order: rejecting below alpha errs anywhere in the family with at most alpha.

    Holm (1979): the k-th smallest of m is multiplied by m - k + 1, and none is below the one before it.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def more_seeds(
    comparison: Comparison, level: float = 0.95, power: float = 0.8, difference: float | None = None, most: int = 1000
) -> int | None:
    """How many seeds more would decide a comparison with probability `power`; None where `most` in all would not.

    Power of the two-sided paired t test (noncentral t) at the observed spread. The true difference is taken to be
    `difference`, or the observed one: an optimistic guess, for noise makes observed differences too large. Without
    Holm: with m comparisons ask at level = 1 - alpha / m.
    """
    effect = abs(comparison.difference if difference is None else difference)
    if comparison.n < 2 or not effect > 0:
        return None
    if comparison.sd <= 1e-12 * effect:
        return 0
    from scipy import stats

    n = np.arange(2, most + 1)
    shift = effect / comparison.sd * np.sqrt(n)
    critical = stats.t.isf((1 - level) / 2, n - 1)
    enough = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift) >= power
    return max(0, int(n[enough][0]) - comparison.n) if enough.any() else None


@dataclasses.dataclass(frozen=True)
class Response:
    """How the score answers to the learning rate. Without a finite score: nan for each number, no edge, width 0."""

    best_rate: float
    best_score: float
    at_edge: Literal["low", "high", "both"] | None  # the best is the smallest, largest or only rate: widen the grid
    low: float  # the window of rates whose scores are within the tolerance of the best
    high: float
    width: float  # of the window, in decades
    bounded: bool  # False: the window reaches an edge of the grid, so it may be wider


def response(
    rates: Sequence[float], scores: Sequence[float], tolerance: float, smaller_is_better: bool = True
) -> Response:
    """The response curve of one arm: a score per rate, nan or infinite where the run diverged.

    The window holds the best rate and ends where the curve, drawn straight over log(rate), leaves best + `tolerance`
    (in units of the score); beside a diverged run it ends at the last rate that did not diverge. A best rate beside a
    diverged one is not at an edge: divergence bounds the grid.
    """
    if len(rates) != len(scores) or len(set(rates)) < len(rates) or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"rates must be distinct, positive and as many as the scores, got {rates!r} and {scores!r}")
    order = np.argsort(rates)
    x = np.log10(np.asarray(rates, dtype=np.float64)[order])
    y = np.asarray(scores, dtype=np.float64)[order] * (1 if smaller_is_better else -1)
    y[~np.isfinite(y)] = np.inf
    if not np.isfinite(y).any():
        return Response(math.nan, math.nan, None, math.nan, math.nan, 0.0, False)
    best, last = int(y.argmin()), len(y) - 1
    edges: dict[tuple[bool, bool], Literal["low", "high", "both"]] = {
        (True, False): "low",
        (False, True): "high",
        (True, True): "both",
    }
    limit = y[best] + tolerance
    low, low_open = _walk(x[best::-1], y[best::-1], limit)
    high, high_open = _walk(x[best:], y[best:], limit)
    return Response(
        best_rate=float(rates[order[best]]),
        best_score=float(scores[order[best]]),
        at_edge=edges.get((best == 0, best == last)),
        low=10**low,
        high=10**high,
        width=high - low,
        bounded=not (low_open or high_open),
    )


def _walk(x: np.ndarray, y: np.ndarray, limit: float) -> tuple[float, bool]:
    """Where a curve that starts within the limit leaves it, and whether it has not yet left at its last point."""
    for i in range(1, len(x)):
        if y[i] > limit:
            if not np.isfinite(y[i]):
                return float(x[i - 1]), False
            return float(x[i - 1] + (x[i] - x[i - 1]) * (limit - y[i - 1]) / (y[i] - y[i - 1])), False
    return float(x[-1]), True
