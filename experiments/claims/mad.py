"""MAD: six small tasks whose mean score is to tell which mixers are worth a large model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from experiments.claims.claim import Claim, Finding, Scale, by_seed, orders

if TYPE_CHECKING:
    from experiments.results import Results

STACKS = ("attention", "hyena", "mamba", "striped")

PUBLISHED = {
    "in-context recall": (94.1, 81.7, 90.4, 100.0),
    "fuzzy recall": (29.8, 7.9, 6.7, 23.2),
    "noisy recall": (86.8, 78.8, 90.1, 100.0),
    "selective copying": (99.6, 93.1, 86.3, 100.0),
    "memorization": (85.2, 89.5, 89.5, 89.2),
    "compression": (51.6, 45.2, 52.7, 47.2),
}
"""Task -> per cent of each of STACKS, over all its settings; the striped stack is one of multi-head Hyena, and read off
a figure. An arm is a stack on a task, "attention, fuzzy recall"."""

MEANS = (74.5, 66.0, 69.3, 76.6)
"""As published. Reruns of others differ by about 2 (and up to 9 on a task)."""

APART = 4.0
"""Per cent between two published means from which their order is tried: two such reruns."""


def means(results: Results) -> dict[str, dict[int, float]]:
    """Stack -> seed -> the mean over the six tasks, of seeds that have all six; nan where one of them diverged."""
    scores = by_seed(results)
    found = {}
    for stack in STACKS:
        tasks = [scores.get(f"{stack}, {task}", {}) for task in PUBLISHED]
        seeds = set.intersection(*map(set, tasks))
        found[stack] = {seed: sum(task[seed] for task in tasks) / len(tasks) for seed in sorted(seeds)}
    return found


def mad(results: Results) -> list[Finding]:
    """The order of every two stacks whose published means are clearly apart."""
    published = sorted(zip(MEANS, STACKS, strict=True), reverse=True)
    pairs = [
        (better, worse, f"{high} and {low}")
        for i, (high, better) in enumerate(published)
        for low, worse in published[i + 1 :]
        if high - low >= APART
    ]
    return orders(results, pairs, means(results))


def tasks(results: Results) -> Iterator[str]:
    """A task a row, a stack a column: ours with a 95 % interval over seeds, in brackets what was published."""
    from experiments.report_text import grid

    scores, mean = by_seed(results), means(results)
    rows = [
        [task, *_cells((scores.get(f"{stack}, {task}", {}) for stack in STACKS), published)]
        for task, published in PUBLISHED.items()
    ]
    yield f"Test {results.about_score.axis}, in brackets the published one (of all settings of a task):"
    yield ""
    yield from grid(("task", *STACKS), [*rows, ["mean", *_cells(mean.values(), MEANS)]])


def _cells(stacks: Iterable[Mapping[int, float]], published: Iterable[float]) -> Iterator[str]:
    from experiments.report_text import with_interval
    from experiments.statistics import interval

    for scores, percent in zip(stacks, published, strict=True):
        values = [value for value in scores.values() if math.isfinite(value)]
        found = interval(values) if values else None
        ends = (found.low, found.high) if found is not None and found.n > 1 else (None, None)
        yield f"{with_interval(found.mean if found else None, *ends)} ({percent / 100:.3f})".strip()


CLAIMS = (
    Claim(
        name="mad",
        about="Which mixers do best on the six tasks of MAD?",
        source="Poli et al. 2024 (MAD), as Yang et al. 2024 (DeltaNet), figure 3, quotes it; the striped stack is of "
        "multi-head Hyena, read off a figure of Poli et al. (± 0.01)",
        published="mean of six tasks: Transformer 74.5, Hyena 66.0, Mamba 69.3, striped with attention 76.6",
        agreement=f"of stacks whose published means are at least {APART:g} apart (reruns differ by ± 2), the better is "
        "the better here: sign of the difference of means over the six tasks, paired by seed",
        judge=mad,
        details=tasks,
        scales={
            "cpu": Scale(
                "configs/claims/mad.py",
                minutes=42,
                reduced="the baseline setting of each task, with 64 tokens instead of 128 and 256 in recall and "
                "copying; width 64 instead of 128; 150 to 1,000 steps of batch 64 instead of 20,000 of batch 128 "
                "(memorization: 150 instead of 400); two rates instead of three times two decays; 512 test rows",
            ),
            "gpu": Scale(
                "configs/claims/mad.py",
                ("--config.model.d_model=128", "--config.model.n_heads=16", "--config.data.batch_size=128",
                 "--config.train.stop_at=0.999", "--config.evaluate.sequences=1280"),
                reduced="the baseline setting of each task, with 64 tokens instead of 128 and 256 in recall and "
                "copying; 150 to 1,000 steps instead of 20,000 (memorization: 150 instead of 400); two rates instead "
                "of three times two decays",
            ),
        },
        full_cost="66 settings of six tasks, 6 runs each for every stack",
    ),
)  # fmt: skip
