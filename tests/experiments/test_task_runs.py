"""Runs of synthetic tasks: what they write, where they end, and that nothing disturbs them."""

from __future__ import annotations

import dataclasses
import json
from fnmatch import fnmatch

import jax
import numpy as np
import pytest

from experiments import data
from experiments.evaluate import evaluate
from experiments.identity import group_id, identity, trial_plain
from experiments.loop import train
from experiments.population import train_population
from experiments.runs import RunFolder
from experiments.signals import Stop
from experiments.step import Program
from experiments.wandb_run import PARTS
from hybrid.validation import ConfigError
from tests.experiments.test_loop import events, final
from tests.experiments.training import quick, run_of
from tests.experiments.training import trial as any_trial

quick = pytest.fixture(autouse=True, scope="module")(quick)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see test_checkpoint.py

SLICES = {"1 pair": {"num_kv_pairs": 1, "sequences": 3}, "long": {"seq_len": 32, "if_too_long": "skip"}}


def trial(**fields):
    mqar = {"source": "mqar", "seq_len": 16, "batch_size": 4, "task": {"vocab_size": 16, "num_kv_pairs": 2}}
    given = {
        "model__pattern": "A", "model__vocab_size": None, "model__positions": "learned", "model__max_length": 16,
        "data": {**mqar, "examples": 10, "slices": SLICES}, "study": {"score": "accuracy"},
    }  # fmt: skip
    return any_trial(**{**given, **fields})


def folder_of(one, path):
    run = run_of(one, path)
    record = run.record
    return run.create({**record, "derived": {**record["derived"], "fingerprint": data.fingerprint(one.data)}})


@pytest.fixture(scope="module")
def programs():
    return {}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, programs):
    one = trial()
    run = folder_of(one, tmp_path_factory.mktemp("straight") / "run")
    with run.claim():
        assert train(one, run, programs) == "done"
    return run


def test_rows_and_result_hold_the_scores_of_the_task(straight):
    rows, result = straight.rows(), straight.result
    assert [row["step"] for row in rows if "validation/accuracy" in row] == [10, 20]
    assert {name for name in rows[0] if "/" in name} == {
        f"train/{name}" for name in ("loss", "gradient_norm", "update_ratio", "learning_rate")
    }
    for split in ("validation", "test"):
        assert set(result[split]) == {"loss", "accuracy", "exact"}
        assert 0 <= result[split]["exact"] <= result[split]["accuracy"] <= 1
        assert (result[split]["accuracy"] * 16) % 1 == 0  # 8 rows of two labels
    assert (result["slices"]["1 pair"]["accuracy"] * 3) % 1 == pytest.approx(0, abs=1e-9)
    assert result["slices"]["long"] == {
        "loss": None, "accuracy": None, "exact": None, "reason": "model.max_length is 16",
    }  # fmt: skip


def test_all_that_is_written_has_an_axis_at_wandb(straight):
    curves = {name for row in straight.rows() for name in row} - {"step", "tokens", "flops"}
    assert any(name.startswith("slices/1 pair/") for name in curves)
    assert [name for name in curves if not any(fnmatch(name, part) for part in PARTS)] == []


def test_evaluating_the_last_checkpoint_gives_the_scores_of_the_run(straight):
    scores = evaluate(straight, "test")
    assert (scores["step"], scores["accuracy"]) == (20, straight.result["test"]["accuracy"])
    assert scores["loss"] == pytest.approx(straight.result["test"]["loss"], rel=1e-6)
    assert evaluate(straight, "slices/1 pair")["accuracy"] == straight.result["slices"]["1 pair"]["accuracy"]
    with pytest.raises(ConfigError, match="--split: 'slices/1 pairs' is no slice of this run; did you mean '1 pair'"):
        evaluate(straight, "slices/1 pairs")


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bytes(straight, programs, tmp_path):
    one = trial()
    run = folder_of(one, tmp_path / "run")
    for at in (3, 10, 17):
        stop = Stop()
        stopping = Stopping(data.load(one.data, seed=0, evaluation_sequences=8), stop, at)
        with run.claim():
            assert train(one, run, programs, data=stopping, stop=stop) == "stopped"
    with run.claim():
        assert train(one, run, programs) == "done"
    program = next(iter(programs.values()))
    assert final(run, program) == final(straight, program)
    assert len(events(run, "resume")) == 3


class Stopping:
    """Task data that asks for a stop when the batch of a step is made."""

    def __init__(self, source, stop, at):
        self.source, self.stop, self.at = source, stop, at

    def __getattr__(self, name):
        return getattr(self.source, name)

    def batches(self, start_step=0):
        return self if not setattr(self, "step", start_step) else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __next__(self):
        if self.step == self.at:
            self.stop.signal = 15
        self.step += 1
        return self.source.batch(self.step - 1)


def test_training_ends_where_the_wanted_accuracy_is_reached(straight, programs, tmp_path):
    reached = next(row for row in straight.rows() if "validation/accuracy" in row)
    one = trial(train={"steps": 20, "log_every": 2, "stop_at": max(reached["validation/accuracy"], 1e-6)})
    run = folder_of(one, tmp_path / "run")
    assert identity(one, "x") != identity(trial(), "x") and group_id(one, "x") != ""
    with run.claim():
        train(one, run, programs)
    first = reached["step"] if reached["validation/accuracy"] > 0 else run.result["step"]
    assert run.result["step"] == first
    assert run.result["validation"] == {
        name.removeprefix("validation/"): value for name, value in reached.items() if name.startswith("validation/")
    }
    assert run.result["test"]["loss"] is not None


def test_members_of_a_population_have_the_results_of_runs_alone(straight, programs, tmp_path):
    trials = [trial(), trial(seed=1, optimizer__learning_rate=3e-3)]
    runs = [folder_of(one, tmp_path / f"{i}") for i, one in enumerate(trials)]
    outcomes = []
    train_population(runs, programs, 2, begin=_claimed, ended=lambda run, outcome: outcomes.append(outcome))
    assert outcomes == ["done", "done"]
    for name in ("loss", "accuracy"):
        alone, member = straight.result["validation"][name], runs[0].result["validation"][name]
        assert member == pytest.approx(alone, abs=0.0 if name == "accuracy" else 1e-4)
    assert runs[1].result["validation"]["loss"] != runs[0].result["validation"]["loss"]


def _claimed(run: RunFolder):
    from experiments.worker import claimed

    return claimed(run)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    program, parts = Program(trial()), Program(trial(optimizer__accumulate=2))
    one = data.load(trial().data, seed=0, evaluation_sequences=8)
    states = []
    for each in (program, parts):
        values = each.values(each.trial)
        states.append(each.train_step(each.init(values), each.put(one.batch(0)), values)[0])
    for whole, added in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(np.asarray(whole, np.float64), np.asarray(added, np.float64), rtol=0, atol=2e-5)


def test_what_a_program_is_made_of_is_in_its_group_and_the_rest_is_not():
    one = trial()
    same = [trial(seed=3), trial(data={**_plain(one), "examples": 8}), trial(data={**_plain(one), "task_seed": 2})]
    other = [
        trial(data={**_plain(one), "task": {"vocab_size": 16, "num_kv_pairs": 1}}),
        trial(data={**_plain(one), "slices": []}),
    ]
    assert {group_id(each, "x") for each in same} == {group_id(one, "x")}
    assert group_id(one, "x") not in {group_id(each, "x") for each in other}
    whole = [json.dumps(identity(each, "x"), sort_keys=True) for each in (one, *same, *other)]
    assert len(set(whole)) == len(whole)


def _plain(one):
    return trial_plain(one)["data"]


def test_a_compressed_row_is_read_out_of_its_last_position():
    """The labels of all positions depend on all tokens, and the hidden state of the last position alone is read."""
    fields = {"source": "mad-compression", "seq_len": 8, "batch_size": 2}
    one = any_trial(
        data=fields, model__pattern="A", model__vocab_size=None, model__head="transform", study={"score": "accuracy"}
    )
    program = Program(one)
    rows = data.load(one.data, seed=0, evaluation_sequences=2).evaluation("test")[0]
    values = program.values(one)
    params = program.init(values).params
    nats, answers, labels = map(np.asarray, program.answer_step(params, program.put(rows)))
    assert nats.shape == answers.shape == labels.shape == (2, 8)
    hidden = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    from experiments.answers import pooled

    out = np.asarray(pooled(hidden))
    np.testing.assert_allclose(out[0] - out[1], np.broadcast_to(hidden[0, -1] - hidden[1, -1], (3, 4)), rtol=1e-5)
    assert len({tuple(row) for row in out[0].round(4).tolist()}) == 3


BAD = [
    (
        {"study": {"score": "bits_per_byte"}},
        "study.score: 'bits_per_byte' is not allowed; the task 'mqar' is scored by",
    ),
    ({"study": {"score": "acuracy"}}, "study.score: 'acuracy' is not allowed; did you mean 'accuracy'?"),
    (
        {"optimizer__schedule": "cosine_epochs", "data__examples": 0},
        "optimizer.schedule: 'cosine_epochs' is not allowed",
    ),
    (
        {"data__slices": {"long": {"seq_len": 32}}},
        "data.slices.long.seq_len: 32 is not allowed; model.max_length is 16",
    ),
    ({"data__mix": [{"seq_len": 32, "examples": 4}], "data__examples": 0}, "data.seq_len: 16 is not allowed"),
    ({"train__stop_at": 1.5}, "train.stop_at: 1.5 is not allowed"),
]


@pytest.mark.parametrize(
    ("fields", "error"), BAD, ids=[error.split(":")[0] + str(i) for i, (_, error) in enumerate(BAD)]
)
def test_bad_input_is_refused(fields, error):
    one = trial_plain(trial())
    for name, value in fields.items():
        group, _, leaf = name.partition("__")
        one[group] = {**one[group], **({leaf: value} if leaf else value)}
    from experiments.config import trial_from

    with pytest.raises(ConfigError) as refused:
        trial_from(one)
    assert str(refused.value).startswith(error), refused.value


def test_a_text_has_no_accuracy_to_stop_at():
    with pytest.raises(ConfigError, match=r"train.stop_at: 0.9 is not allowed"):
        any_trial(train__stop_at=0.9)


def test_runs_of_texts_have_the_identity_that_they_had():
    """Fields that belong to tasks, or came later, change no id while they stand at what runs did before."""
    whole = identity(any_trial(), "x")
    assert not {"task", "examples", "order", "task_seed", "slices", "mix"} & set(whole["data"])
    assert "stop_at" not in whole["train"] and "decay_on" not in whole["optimizer"]
    one = any_trial()
    all_of_it = dataclasses.replace(one, optimizer=dataclasses.replace(one.optimizer, decay_on="all"))
    assert identity(all_of_it, "x")["optimizer"]["decay_on"] == "all"
