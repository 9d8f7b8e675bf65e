"""Every config is a study that can start: its trials are made, its arms match in size, its first lines tell of it.

One train step of every arm is traced for a batch of its objective: a config that cannot train is found in CI.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import data
from experiments.configfile import ConfigFile
from experiments.data.objectives import OBJECTIVES, Rows
from experiments.data.vocabulary import vocabulary
from experiments.study import plan
from hybrid.accounting import parameters

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(ROOT.glob("configs/*.py"))
NAMES = [path.stem for path in CONFIGS]


def study_of(path):
    return plan(ConfigFile(path), [], lambda data: None)


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_every_point_is_a_trial(path):
    study = study_of(path)
    assert study.runs
    assert [f"{refused.changed}: {refused.error}" for refused in study.refused] == []
    assert study.settings.name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_the_first_lines_say_question_command_time_and_finding(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert "?" in text.split("Command:")[0], "no question in the first lines"
    command = re.search(r"python -m experiments\.sweep --config=(\S+) --workdir=(\S+?)\)?$", text, re.MULTILINE)
    assert command, "no command"
    assert command.groups() == (f"configs/{path.name}", f"runs/{path.stem}")
    for label in ("Time:", "Finding:"):
        found = re.search(rf"^{label}\s+(\S.*)$", text, re.MULTILINE)
        assert found, f"no line {label}"


MATCHED = [path for path in CONFIGS if "match" in ConfigFile(path).values()["model"]]


@pytest.mark.parametrize("path", MATCHED, ids=lambda path: path.stem)
def test_arms_that_are_matched_have_equal_budgets(path):
    sizes = {run.arm: parameters(run.trial.model).active for run in study_of(path).runs}
    assert max(sizes.values()) <= 1.06 * min(sizes.values()), sizes


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_step_of_every_arm_can_be_traced(path):
    """Shapes alone: what a compiler would say to the model, the objective and the optimizer together."""
    from experiments.step import Program

    study = study_of(path)
    first = {run.arm: run.trial for run in reversed(study.runs)}
    for arm, trial in first.items():
        program, batch = Program(trial), batch_of(trial)
        state = jax.eval_shape(program._init, program.values(trial))
        after, metrics = jax.eval_shape(program._train, state, batch, program.values(trial))
        assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state), arm
        assert metrics["loss"].shape == ()


def batch_of(trial):
    """A batch of the trial's objective, of tokens that are all 3; of a task the numbers of its first rows."""
    if trial.data.is_task:
        return data.load(trial.data, seed=0, evaluation_sequences=1).batch(0)
    objective, size = OBJECTIVES[trial.data.objective], trial.data.batch_size
    index = np.arange(size)
    tokens = np.full((size, objective.width(trial.data)), 3, np.int32)
    rows = Rows(tokens=tokens, place=index, window=index, epoch=0 * index, seed=0, split="train")
    return objective.make(trial.data, vocabulary(trial.data), rows)
