"""The claim of MAD on made-up scores: a mean over six tasks for each stack and seed, and what a reader sees of it."""

import dataclasses
import math

import pytest

from experiments import reproduce
from experiments.claims import mad
from experiments.claims.claim import overall
from experiments.results import load
from tests import fake_study
from tests.fake_study import Arm, Run

PATTERNS = dict(zip(mad.STACKS, ("A-A-", "H-H-", "M-M-", "H-A-"), strict=True))
LEVELS = {"attention": 0.74, "hyena": 0.6, "mamba": 0.66, "striped": 0.76}


def study(folder, score):
    """Results with `score(stack, task, seed)` on the test rows of every stack, task and seed."""
    runs = [
        Run(f"{stack}, {task}", seed, 1e-3, "confirm" if seed else "tune", test=score(stack, task, seed),
            architecture=Arm(pattern, "", 2.4))
        for task in mad.PUBLISHED for stack, pattern in PATTERNS.items() for seed in range(3)
    ]  # fmt: skip
    results = load(fake_study.write(folder, runs, "attention, in-context recall"))
    shares = {f"{split}_macro_accuracy": results.runs[f"{split}_bits_per_byte"] for split in ("validation", "test")}
    return dataclasses.replace(results, score="macro_accuracy", runs=results.runs.with_columns(**shares))


def apart(stack, task, seed):
    """Tasks differ far more than stacks do, and more in some seeds; the mean of a stack is its level."""
    tilt = list(mad.PUBLISHED).index(task) - 2.5
    return LEVELS[stack] + 0.04 * tilt * (1 + seed) / 3 + 0.002 * seed + 0.001 * len(stack) * seed


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study(tmp_path_factory.mktemp("mad") / "s", apart)


def test_published_means_are_those_of_the_published_tasks():
    for stack, mean in zip(range(len(mad.STACKS)), mad.MEANS, strict=True):
        assert mean == pytest.approx(sum(row[stack] for row in mad.PUBLISHED.values()) / 6, abs=0.06)


def test_the_score_of_a_stack_is_the_mean_over_six_tasks_seed_by_seed(results):
    means = mad.means(results)
    assert {stack: scores[0] for stack, scores in means.items()} == pytest.approx(LEVELS)
    assert means["hyena"][2] == pytest.approx(LEVELS["hyena"] + 0.004 + 0.01)


def test_stacks_whose_published_means_are_clearly_apart_are_ordered(results):
    found = mad.mad(results)
    assert [finding.statement for finding in found] == [
        "striped above mamba", "striped above hyena", "attention above mamba", "attention above hyena",
    ]  # fmt: skip
    assert overall(found) == "agrees"
    assert found[0].ours == pytest.approx(0.1 + 0.001 * (7 - 5)) and found[0].published == "76.6 and 69.3"


def test_a_stack_that_is_best_on_one_task_alone_is_not_called_better(tmp_path):
    def score(stack, task, seed):
        gain = (0.3 if task == "memorization" else -0.06) if stack == "striped" else 0.0
        return 0.5 + gain + 0.001 * seed * len(stack)

    verdicts = {finding.statement: finding.verdict for finding in mad.mad(study(tmp_path / "s", score))}
    assert verdicts["striped above mamba"] == "undecided"


def test_a_seed_without_all_six_tasks_is_in_no_mean_and_a_diverged_one_is_not_a_score(results):
    unfinished = results.runs["arm"] + results.runs["seed"].cast(str)
    runs = results.runs.filter(unfinished != "mamba, compression2")
    assert sorted(mad.means(dataclasses.replace(results, runs=runs))["mamba"]) == [0, 1]
    rows = [{**row, "test_macro_accuracy": None, "status": "diverged"}
            if (row["arm"], row["seed"]) == ("mamba, fuzzy recall", 1) else row
            for row in results.runs.to_dicts()]  # fmt: skip
    lost = dataclasses.replace(results, runs=type(results.runs)(rows, schema=results.runs.schema))
    assert math.isnan(mad.means(lost)["mamba"][1]) and math.isfinite(mad.means(lost)["mamba"][0])
    assert any(line.startswith("| fuzzy recall |") for line in mad.tasks(lost))


def test_each_task_of_each_stack_stands_beside_what_was_published(results):
    claim = next(claim for claim in mad.CLAIMS if claim.name == "mad")
    lines = list(reproduce.shown(claim, claim.scales["cpu"], mad.mad(results), results))
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    assert set(rows) >= {*mad.PUBLISHED, "mean"}
    assert rows["mean"].count("±") == 4 and rows["mean"].endswith("(0.766) |")
    first = apart("attention", "fuzzy recall", 1)
    assert f"| {first:.3f} ± " in rows["fuzzy recall"] and "(0.298)" in rows["fuzzy recall"]
