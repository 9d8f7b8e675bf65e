"""How an arm's score answers to the learning rate: the best rate, and how wide the window of good ones is. No jax here.

A narrow window says that an arm is easily mistuned, so that a grid too coarse for it makes an architecture look bad.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from experiments.scores import Score

GOOD = 0.01
"""A rate is good where its score is within this share of the arm's best; for losses and bits."""
KEEPS = 0.9
"""The same for shares of right answers: what a good rate keeps of the best."""


def tolerance(best: float, score: Score) -> float:
    """How far from the best score a rate is still good, in units of the score."""
    return (1 - KEEPS if score.is_share else GOOD) * abs(best)


def good(score: Score) -> str:
    """The same in words."""
    return f"keeps {KEEPS:.0%} of the arm's best" if score.is_share else f"is within {100 * GOOD:g} % of the arm's best"


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
    rates: Sequence[float],
    scores: Sequence[float],
    tolerance: float,
    smaller_is_better: bool = True,
    chosen: float | None = None,
) -> Response:
    """The response curve of one arm: a score per rate, nan or infinite where the run diverged.

    The window holds the best rate and ends where the curve, drawn straight over log(rate), leaves best + `tolerance`
    (in units of the score); beside a diverged run it ends at the last rate that did not diverge. A best rate beside a
    diverged one is not at an edge: divergence bounds the grid. chosen: the best rate, where not the score says it.
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
    if chosen is not None:
        best = [float(rates[i]) for i in order].index(chosen)
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
