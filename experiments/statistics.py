"""What scores of several seeds say: intervals, paired differences with verdicts. No jax here.

A verdict is "better" or "worse" only when the paired test says so after Holm's correction over the whole table; all
else is "undecided", and `more_seeds` says how much work it would take to decide. Tests and quantiles are scipy's.

Which test. Losses: the paired t test. It keeps its level on the spread of real runs (tests/experiments/
test_calibration.py). Shares of right answers are another matter, because recall comes all at once: a seed has it (1.0)
or has not (0.2), and three seeds that happen to agree show a t test no spread at all. In a table of ten such arms with
three seeds each the paired t test alone calls equals unequal in 19 of 100 studies. A permutation test would keep its
level, but three pairs have 8 arrangements of signs, so it could never decide. So a verdict on shares needs the paired
test and also the contrast of a randomised block design (seeds are the blocks), whose spread is that of all arms
together, and three pairs: with both, between 0 and 5 of 100 such studies err, and a real jump is still found.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Verdict = Literal["better", "worse", "undecided"]

FEW = 10  # seeds: below it Student's t on the mean, from it on a bootstrap of the interquartile mean
PAIRS, PAIRS_OF_JUMPS = 2, 3  # that a verdict needs; two pairs of scores that jump agree by chance in 12 of 100 studies
_RESAMPLES = 5000
_NESTED = 2000


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


def nested_interval(examples: Sequence[Sequence[float]], level: float = 0.95) -> Interval:
    """The typical score of n seeds, of which every example's score is known: seeds are drawn again, then examples.

    examples: one list of scores a seed, as many as it likes. The percentile bootstrap of the interquartile mean (of the
    mean below 10 seeds), drawn in two stages; scipy.stats.bootstrap has one stage, so the drawing is ours.
    """
    seeds = [np.asarray(scores, dtype=np.float64) for scores in examples]
    if not seeds or not all(scores.ndim == 1 and scores.size and np.isfinite(scores).all() for scores in seeds):
        raise ValueError("examples must be non-empty lists of finite numbers, one a seed")
    from scipy import stats

    n = len(seeds)
    cut = 0.25 if n >= FEW else 0.0
    rng = np.random.default_rng(0)
    drawn = rng.integers(n, size=(_NESTED, n))
    means = np.empty(drawn.shape)
    for i, scores in enumerate(seeds):
        there = drawn == i
        means[there] = scores[rng.integers(scores.size, size=(int(there.sum()), scores.size))].mean(1)
    centres = stats.trim_mean(means, cut, axis=1)
    low, high = np.quantile(centres, [(1 - level) / 2, (1 + level) / 2])
    centre = float(stats.trim_mean([scores.mean() for scores in seeds], cut))
    return Interval(centre, float(low), float(high), n, "interquartile mean" if cut else "mean")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ours minus the baseline on the seeds that both have; negative is better where smaller scores are."""

    difference: float  # mean over the pairs; nan without a pair
    low: float
    high: float
    n: int  # pairs that were compared
    sd: float  # of the paired differences; nan below two pairs
    p_value: float  # two-sided, before Holm; 1 where nothing can be tested
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
    scores: Mapping[str, Mapping[int, float]],
    baseline: str,
    level: float = 0.95,
    smaller_is_better: bool = True,
    jumps: bool = False,
) -> dict[str, Comparison]:
    """Every other arm against the baseline arm; verdicts hold for the whole table together (Holm).

    Intervals stay those of each comparison alone, so one may leave zero out and still be undecided. Arms with too few
    pairs test nothing and do not weigh on the others. `scores`: arm -> seed -> score. `jumps`: a seed may have learnt
    the task or not, with little between (shares of right answers), which takes more to decide: see above.
    """
    found = {
        arm: paired_difference(by_seed, scores[baseline], level, smaller_is_better)
        for arm, by_seed in scores.items()
        if arm != baseline
    }
    least = PAIRS_OF_JUMPS if jumps else PAIRS
    tested = [arm for arm, comparison in found.items() if comparison.n >= least]
    for arm in found.keys() - set(tested):
        found[arm] = dataclasses.replace(found[arm], p_value=1.0, p_adjusted=1.0, verdict="undecided")
    if jumps:
        common = block_p_values({arm: scores[arm] for arm in (baseline, *tested)}, {arm: found[arm] for arm in tested})
        for arm in tested:
            found[arm] = dataclasses.replace(found[arm], p_value=max(found[arm].p_value, common[arm]))
    for arm, p in zip(tested, holm([found[arm].p_value for arm in tested]), strict=True):
        verdict = _verdict(found[arm].difference, p, found[arm].diverged, level, smaller_is_better)
        found[arm] = dataclasses.replace(found[arm], p_adjusted=p, verdict=verdict)
    return found


def block_p_values(scores: Mapping[str, Mapping[int, float]], pairs: Mapping[str, Comparison]) -> dict[str, float]:
    """Two-sided p of each difference by the contrast of a randomised block design: arms are treatments, seeds blocks.

    The residual mean square of the arms x seeds table (what neither arm nor seed explains; over the seeds on which all
    are finite) takes the place of each pair's own spread. Of two arms it is the paired t test. 1 where fewer than two
    seeds are shared by all. (Montgomery, Design and Analysis of Experiments, chapter 4.)
    """
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in scores.values())))
    table = np.array([[by_seed[seed] for seed in shared] for by_seed in scores.values()], dtype=np.float64)
    table = table[:, np.isfinite(table).all(axis=0)]
    arms, seeds = table.shape
    freedom = (arms - 1) * (seeds - 1)
    if freedom < 1:
        return dict.fromkeys(pairs, 1.0)
    from scipy import stats

    residual = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    square = float((residual**2).sum()) / freedom
    found = {}
    for arm, pair in pairs.items():
        error = math.sqrt(2 * square / pair.n)
        if error <= 1e-12 * abs(pair.difference):
            found[arm] = 0.0 if pair.difference else 1.0
        else:
            found[arm] = float(2 * stats.t.sf(abs(pair.difference) / error, freedom)) if error else 1.0
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
