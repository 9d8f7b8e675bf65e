"""Induction heads: trained on short texts, asked in ever longer ones. Scores are the accuracies of the slices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from experiments.claims.claim import FAILED, LEARNT, Claim, Finding, Scale, by_seed, level, longer

if TYPE_CHECKING:
    from experiments.results import Results


def induction(results: Results) -> list[Finding]:
    """At the trained length, and far beyond it."""
    tried = [
        ("mamba", "2^6", "1.00", LEARNT, math.inf),
        ("attention", "2^6", "1.00", LEARNT, math.inf),
        ("mamba", "2^14", "1.00", LEARNT, math.inf),
        ("attention", "2^12", "0.09", -math.inf, FAILED),
    ]
    found = []
    for arm, length, published, least, most in tried:
        finding = level(of_slice(results, length), arm, published, least, most)
        found.append(dataclasses.replace(finding, statement=f"{arm} at {length} tokens"))
    return found


def of_slice(results: Results, name: str) -> Results:
    """The same study, whose test score is that on one slice; null where a run has none."""
    import polars as pl

    part = results.slices.filter((pl.col("slice") == name) & (pl.col("score") == results.score))
    column = f"test_{results.score}"
    runs = results.runs.drop(column).join(part.select("id", pl.col("value").alias(column)), on="id", how="left")
    return dataclasses.replace(results, runs=runs.select(results.runs.columns))


def lengths(results: Results) -> Iterator[str]:
    """An arm a row, a length a column: the mean over seeds, and of which scores."""
    from experiments.report_text import grid

    names = sorted(results.slices["slice"].unique(), key=lambda name: int(name.removeprefix("2^")))
    scores = {name: by_seed(of_slice(results, name)) for name in names}
    rows = [[arm, *(_mean_and_range(scores[name].get(arm, {}).values()) for name in names)] for arm in results.arms]
    yield f"Test {results.about_score.axis} by length: the mean over seeds, the lowest and the highest."
    yield ""
    yield from grid(("arm", *names), rows)


def _mean_and_range(values: Iterable[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    mean, low, high = sum(finite) / len(finite), min(finite), max(finite)
    return f"{mean:.2f}" if low == high else f"{mean:.2f} ({low:.2f} to {high:.2f})"


CLAIMS = (
    Claim(
        name="induction-heads",
        about="Who still finds what followed a sign in far longer texts?",
        source="Gu & Dao 2023 (Mamba), table 11",
        published="trained at 2^8: Mamba exact to 2^20; attention with rotary positions 0.31 at 2^10, 0.09 at 2^12",
        agreement=f"both reach {LEARNT} at the trained length; Mamba does at 2^14, attention is below {FAILED} at 2^12",
        judge=induction,
        details=lengths,
        scales={
            "cpu": Scale(
                "configs/claims/induction_heads.py",
                minutes=18,
                reduced="trained at 64 tokens instead of 256, 4,000 steps of batch 32; to 2^14",
            ),
            "gpu": Scale(
                "configs/claims/induction_heads.py", longer(20_000, "--config.data.seq_len=256"),
                reduced="20,000 steps of batch 32 instead of 204,800 to 409,600 of batch 8; to 2^14",
            ),
        },
    ),
)  # fmt: skip
