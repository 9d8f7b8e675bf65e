"""A study as data frames: one of runs, one of their curves. Reads run folders or the compact form; no jax.

    results = load("runs/quickstart")
    results.runs                  a row a run: arm, seed, learning rate, status, budgets, final scores
    results.curves                a row a metrics row: id, arm, seed, step, tokens, flops, train_loss, ...
    results.slices                a row a run, named part of the test data, and score
    results.table()               a row an arm: its chosen rate, test score with interval, difference, verdict
    results.save("results/quickstart")   runs.csv, thinned curves.csv, slices.csv, manifest.json: small enough to commit

Reading never writes and never fails on a study that is still running, half failed, or empty.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from experiments.columns import SLICES
from experiments.scores import SCORES, Score
from hybrid.validation import ConfigError


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study left behind. `runs` and `curves` are polars data frames."""

    folder: Path
    study: str
    runs: pl.DataFrame
    """Columns of `columns.RUNS`, in the order of the study: arm by arm, tuning runs before the seeds that confirm."""
    curves: pl.DataFrame
    """In the order of the runs, then of their rows."""
    baseline: str
    """The arm that the others are compared with; empty in an empty study."""
    slices: pl.DataFrame = dataclasses.field(default_factory=lambda: pl.DataFrame(schema=SLICES))
    """Scores of named parts of the test data, in the order of the runs; empty where the study has none."""
    score: str = "bits_per_byte"
    """What settings are chosen by and test reports."""
    select_on: str = "validation"
    """The split that settings are chosen on; "test" is what some papers did, and the report says so."""
    symbols: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Lower-case letters of the patterns -> the symbol of their kind."""
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """What could not be read or is not as the study states it, in words."""

    @property
    def about_score(self) -> Score:
        """Label, unit and direction of the study's score."""
        return SCORES[self.score]

    @property
    def selection(self) -> str:
        """The column of `runs` that settings are chosen by."""
        return f"{self.select_on}_{self.score}"

    @property
    def arms(self) -> list[str]:
        """In the order of the study."""
        return self.runs["arm"].unique(maintain_order=True).to_list()

    def counts(self) -> dict[str, int]:
        """Status -> number of runs."""
        return dict(Counter(self.runs["status"].to_list()))

    def parts(self) -> dict[str, Results]:
        """Source of data -> its arms alone, in the order of the study: scores of different data are not compared.

        The baseline of a part is the arm whose stack is that of the study's baseline, or else its first.
        """
        stacks = dict(self.runs.select("arm", "expanded").iter_rows())
        found = {}
        for source in self.runs["source"].unique(maintain_order=True):
            runs = self.runs.filter(pl.col("source").eq_missing(pl.lit(source)))
            arms = runs["arm"].unique(maintain_order=True).to_list()
            alike = [arm for arm in arms if stacks[arm] == stacks.get(self.baseline)]
            baseline = self.baseline if self.baseline in arms else [*alike, *arms][0]
            curves = self.curves.join(runs, on="id", how="semi", maintain_order="left")
            slices = self.slices.join(runs, on="id", how="semi", maintain_order="left")
            found[source or ""] = dataclasses.replace(self, runs=runs, curves=curves, slices=slices, baseline=baseline)
        return found

    def against(self, baseline: str) -> Results:
        """The same, compared with another arm. Raises ConfigError where no arm has that name."""
        from experiments.verdicts import check_baseline

        return dataclasses.replace(self, baseline=check_baseline(self, baseline))

    def table(self, baseline: str | None = None) -> pl.DataFrame:
        """The verdicts: a row an arm (`experiments.verdicts`). Rates are chosen on validation, scores are on test."""
        from experiments.verdicts import table

        return table(self, baseline)

    def save(self, folder: str | Path, points: int = 40) -> Path:
        """Writes the compact form (about `points` rows a run and metric); `load` reads it again."""
        from experiments.compact import write

        return write(self, Path(folder), points)


def load(folder: str | Path) -> Results:
    """The results of a study folder (runs/NAME) or of its compact form (results/NAME); ConfigError where neither is."""
    from experiments import compact, frames

    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError("folder", f"{str(folder)!r} is no folder; must be a study such as runs/quickstart")
    if (folder / "runs.csv").is_file():
        return compact.read(folder)
    if not (folder / "trials").is_dir() and not (folder / "manifest.json").is_file():
        raise ConfigError("folder", f"{str(folder)!r} is no study; must hold trials/ and manifest.json, or runs.csv")
    return frames.read(folder)


def digest(ids: Iterable[str]) -> str:
    """8 hexadecimal digits that name a set of runs, whatever their order."""
    return hashlib.sha256("\n".join(sorted(set(ids))).encode()).hexdigest()[:8]
