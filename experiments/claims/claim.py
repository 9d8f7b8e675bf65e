"""What a claim is, and how a study's results are held against it.

A claim names what was published, the study that tries it here, and what would count as agreement. Its judge turns the
study's results into findings: a row each, with a verdict. Small studies can show a sign or an order and not a number,
so most findings ask for an order. No jax here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import statistics

if TYPE_CHECKING:
    from experiments.results import Results

Verdict = Literal["agrees", "disagrees", "undecided"]
ALPHA = 0.05
LEARNT, FAILED = 0.9, 0.5
"""Accuracy from which a task counts as done, and up to which as not done."""


@dataclass(frozen=True)
class Finding:
    """A statement, what was published, what came out here with a 95 % interval, and what follows."""

    statement: str
    published: str
    ours: float | None
    low: float | None
    high: float | None
    unit: str
    tolerance: str
    """What counts as agreement, in words."""
    verdict: Verdict
    allowed: tuple[float, float] | None = None
    """The same in numbers, where it is a range of `ours`."""
    text: str = ""
    """Ours, where it is no number."""


@dataclass(frozen=True)
class Scale:
    """One size at which a claim is tried."""

    config: str
    """Config file of the study, from the root of the repository; empty where nothing is trained."""
    overrides: tuple[str, ...] = ()
    """--config.FIELD=VALUE"""
    minutes: float | None = None
    """Measured, on two CPU cores or one H100; None: not measured yet."""
    reduced: str = ""
    """By how much the published protocol was made smaller; empty: not at all."""


@dataclass(frozen=True)
class Claim:
    """A row of `python -m experiments.reproduce --list`."""

    name: str
    about: str
    source: str
    published: str
    agreement: str
    scales: Mapping[str, Scale]
    """cpu and, where there is one, gpu."""
    judge: Callable[[Results], list[Finding]] | None = None
    """Findings of the results of its study."""
    computed: Callable[[], list[Finding]] | None = None
    """Findings where nothing is trained: a claim has this or `judge`."""
    full_cost: str = ""
    """What the published protocol would cost, where it is not what runs here."""
    floor: Callable[[Results], str] | None = None
    """The noise floor of the study in words, where the claim is about small differences."""
    details: Callable[[Results], Iterator[str]] | None = None
    """Lines of Markdown that stand below the findings: numbers that they are made of, and that no verdict hangs on."""


# --- findings ---------------------------------------------------------------------------------------------------------


def exact(statement: str, published: str | float, ours: str | float, unit: str = "") -> Finding:
    """Two values that must be equal."""
    number = float(ours) if isinstance(ours, int | float) else None
    same: Verdict = "agrees" if published == ours else "disagrees"
    wanted = published if isinstance(published, str) else f"{published:,}"
    ends = (float(published),) * 2 if isinstance(published, int | float) else None
    text = ours if isinstance(ours, str) else ""
    return Finding(statement, wanted, number, number, number, unit, "equal", same, ends, text)


def within(statement: str, published: float, ours: float, tolerance: float, unit: str = "") -> Finding:
    """A count that was published in rounded form: `ours` within `tolerance` of it."""
    ends = (published - tolerance, published + tolerance)
    verdict: Verdict = "agrees" if ends[0] <= ours <= ends[1] else "disagrees"
    return Finding(statement, f"{published:,g}", ours, ours, ours, unit, f"± {tolerance:,g}", verdict, ends)


def level(results: Results, arm: str, published: str, least: float, most: float) -> Finding:
    """The arm's test score lies between `least` and `most`: its interval is what decides."""
    about = results.about_score
    words = f"{least:g} to {most:g}" if least > -math.inf and most < math.inf else (
        f"at least {least:g}" if most == math.inf else f"at most {most:g}"
    )  # fmt: skip
    row = _row(results, arm)
    if row is None or row["low"] is None:
        ours = row["test"] if row else None
        return Finding(arm, published, ours, None, None, about.label, words, "undecided", (least, most))
    verdict: Verdict = "undecided"
    if least <= row["low"] and row["high"] <= most:
        verdict = "agrees"
    elif row["high"] < least or row["low"] > most:
        verdict = "disagrees"
    return Finding(arm, published, row["test"], row["low"], row["high"], about.label, words, verdict, (least, most))


def orders(
    results: Results,
    pairs: Sequence[tuple[str, str, str]],
    scores: Mapping[str, Mapping[int, float]] | None = None,
) -> list[Finding]:
    """(better arm, worse arm, what was published): the paired difference has that sign, Holm over all the pairs.

    The difference is counted so that more than 0 is what was published, whichever way the score goes. scores: by seed,
    of what is named in the pairs, where these are no arms of the study.
    """
    about = results.about_score
    scores = by_seed(results) if scores is None else scores
    sign = -1 if about.smaller_is_better else 1
    compared = []
    for better, worse, _ in pairs:
        both = {"better": scores.get(better, {}), "worse": scores.get(worse, {})}
        compared.append(
            statistics.compare(both, "worse", smaller_is_better=about.smaller_is_better, jumps=about.is_share)["better"]
        )
    adjusted = statistics.holm([comparison.p_value for comparison in compared])
    found = []
    for (better, worse, published), comparison, p in zip(pairs, compared, adjusted, strict=True):
        verdict: Verdict = "undecided"
        if p < ALPHA and comparison.verdict != "undecided":
            verdict = "agrees" if (sign * comparison.difference > 0) else "disagrees"
        ours = _finite(sign * comparison.difference)
        ends = sorted((sign * comparison.low, sign * comparison.high))
        low, high = (_finite(end) for end in ends)
        text = f"{better} above {worse}" if not about.smaller_is_better else f"{better} below {worse}"
        found.append(
            Finding(text, published, ours, low, high, about.amount, "sign, p < 0.05 (Holm)", verdict, (0.0, math.inf))
        )
    return found


def flat(results: Results, arms: Sequence[str], published: str, margin: float) -> list[Finding]:
    """All of `arms` are as good as each other: the difference of every one to the first lies within ± margin.

    By equivalence (two one-sided tests at 0.05: the 90 % interval), so that noise alone can never make arms "equal";
    a 95 % interval wholly outside disagrees. What is shown is the 90 % interval.
    """
    about, scores = results.about_score, by_seed(results)
    found = []
    for arm in arms[1:]:
        pair = statistics.paired_difference(scores.get(arm, {}), scores.get(arms[0], {}), 0.9)
        wide = statistics.paired_difference(scores.get(arm, {}), scores.get(arms[0], {}), 0.95)
        verdict: Verdict = "undecided"
        if -margin < pair.low and pair.high < margin:
            verdict = "agrees"
        elif wide.low > margin or wide.high < -margin:
            verdict = "disagrees"
        ours, low, high = _finite(pair.difference), _finite(pair.low), _finite(pair.high)
        text = f"{arm} equals {arms[0]}"
        words, ends = f"90 % interval within ± {margin:g}", (-margin, margin)
        found.append(Finding(text, published, ours, low, high, about.amount, words, verdict, ends))
    return found


def noise_floor(results: Results, arms: Sequence[str]) -> float | None:
    """The smallest difference to the first arm that this study would call one with 80 % power, by the spread of its
    paired differences (their median over the arms); None with fewer than two seeds."""
    from scipy import stats

    scores = by_seed(results)
    pairs = [statistics.paired_difference(scores.get(arm, {}), scores.get(arms[0], {})) for arm in arms[1:]]
    pairs = [pair for pair in pairs if pair.n >= 2]
    if not pairs:
        return None
    sizes = []
    for pair in pairs:
        critical = stats.t.isf(ALPHA / 2, pair.n - 1)
        sizes.append((critical + stats.t.ppf(0.8, pair.n - 1)) * pair.sd / math.sqrt(pair.n))
    return float(sorted(sizes)[len(sizes) // 2])


def overall(findings: Sequence[Finding]) -> Verdict:
    """Of a claim: agrees where all do, disagrees where any does."""
    verdicts = {finding.verdict for finding in findings}
    if "disagrees" in verdicts:
        return "disagrees"
    return "agrees" if verdicts == {"agrees"} else "undecided"


def by_seed(results: Results) -> dict[str, dict[int, float]]:
    """Arm -> seed -> test score at the chosen setting; nan where it diverged."""
    import polars as pl

    from experiments.verdicts import confirmed

    kept = confirmed(results).filter(pl.col("status").is_in(["done", "diverged"]))
    found: dict[str, dict[int, float]] = {arm: {} for arm in results.arms}
    for arm, seed, value in kept.select("arm", "seed", f"test_{results.score}").iter_rows():
        found[arm][seed] = math.nan if value is None else value
    return found


def longer(steps: int, *more: str) -> tuple[str, ...]:
    """Overrides of a larger scale: so many steps, and more."""
    return (f"--config.train.steps={steps}", *more)


def _row(results: Results, arm: str) -> dict | None:
    rows = [row for row in results.table().iter_rows(named=True) if row["arm"] == arm]
    return rows[0] if rows else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
