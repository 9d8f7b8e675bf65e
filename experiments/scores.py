"""The table of scores: what a number is called, its unit, and which way is better. Nothing heavy is imported here.

A score stands in done.json under its split (`validation`, `test`) or slice, and in metrics.jsonl as "validation/NAME".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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


def rank(score: float, smaller_is_better: bool, step: int | None = None, steps: int | None = None) -> tuple:
    """A key that sorts runs of an arm, the best first.

    A run that ended before its last step knew the task (train.stop_at), and goes before all that did not; of two such
    runs the one that needed fewer steps, for the rest of their scores is chance. Else the score decides.
    """
    value = score if smaller_is_better else -score
    early = step is not None and steps is not None and step < steps
    return (0, step, value) if early else (1, 0, value)
