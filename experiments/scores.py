"""The table of scores: what a number is called, its unit, and which way is better. Nothing heavy is imported here.

A score stands in done.json under its split (`validation`, `test`) or slice, and in metrics.jsonl as "validation/NAME".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Score:
    """A row of the table."""

    label: str
    unit: str
    """Empty for a share between 0 and 1."""
    smaller_is_better: bool
    about: str

    @property
    def is_share(self) -> bool:
        """A share of answers, between 0 and 1."""
        return not self.unit

    @property
    def amount(self) -> str:
        """What a difference is counted in."""
        return self.unit or f"of {self.label}"

    @property
    def axis(self) -> str:
        """As an axis says it: "loss, nats per token"."""
        return self.label if self.unit in ("", self.label) else f"{self.label}, {self.unit}"

    @property
    def direction(self) -> str:
        return "lower is better" if self.smaller_is_better else "higher is better"


SCORES: dict[str, Score] = {
    "loss": Score("loss", "nats per token", True, "cross-entropy of the scored tokens"),
    "bits_per_byte": Score("bits per byte", "bits per byte", True, "of next tokens of text, whatever the tokenizer"),
    "bits_per_base": Score("bits per base", "bits per base", True, "of next bases of DNA"),
    "accuracy": Score("accuracy", "", False, "share of labels that were predicted"),
    "exact": Score("exact rows", "", False, "share of rows whose labels were all predicted"),
    "macro_accuracy": Score("macro accuracy", "", False, "accuracy of each class of labels, averaged over the classes"),
    "valid": Score("valid answers", "", False, "share of predictions that are answers at all, right or wrong"),
}


def best(scores: Iterable[float], smaller_is_better: bool) -> float | None:
    """The best of scores that are finite numbers; None of none."""
    return min(scores, default=None) if smaller_is_better else max(scores, default=None)


class End(NamedTuple):
    """How a run ended. score: None where it diverged or failed; step, steps: its last step, and those it was given."""

    score: float | None
    step: int | None = None
    steps: int | None = None

    @property
    def early(self) -> bool:
        """It knew the task before its last step (train.stop_at)."""
        return self.step is not None and self.steps is not None and self.step < self.steps


def rank(ends: Sequence[End], smaller_is_better: bool) -> tuple:
    """A key that sorts settings of an arm, the best first; `ends`: the seeds of one, of which one has a score at least.

    First those of which no seed diverged or failed. Of these, settings of which every seed knew the task before its
    last step go before all others, the one that needed fewer steps first, for the rest of their scores is chance. Else
    the mean score decides.
    """
    scored = [end for end in ends if end.score is not None]
    mean = math.fsum(end.score for end in scored if end.score is not None) / len(scored)
    value = mean if smaller_is_better else -mean
    lost = len(ends) - len(scored)
    if all(end.early for end in scored):
        return lost, 0, sum(end.step or 0 for end in scored) / len(scored), value
    return lost, 1, 0.0, value
