import json
import math
import shutil

import jax
import numpy as np
import pytest

from experiments.checkpoint import Checkpoints
from experiments.evaluate import evaluate
from experiments.identity import trial_plain
from experiments.loop import train
from experiments.signals import Stop
from experiments.states import host, live, saved, saved_shapes
from experiments.step import Program
from hybrid.layout import layout
from hybrid.validation import ConfigError
from tests.experiments.training import data_of, quick, run_of, trial

quick = pytest.fixture(autouse=True, scope="module")(quick)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see test_checkpoint.py


@pytest.fixture(scope="module")
def programs():
    return {}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, programs):
    """A run that nothing disturbed."""
    one = trial()
    run = run_of(one, tmp_path_factory.mktemp("straight") / "run")
    with run.claim():
        assert train(one, run, programs, data=data_of(one)) == "done"
    return run


class Crash(Exception):  # noqa: N818
    pass


def final(run, program):
    """The bytes of the last checkpoint and of the rows."""
    with Checkpoints(run.checkpoints, keep=None) as checkpoints:
        found = checkpoints.newest(saved_shapes(program.model, program.shapes, program.mesh))
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found.tree)]
    metrics = run.path / "metrics.jsonl"
    return found.step, leaves, metrics.read_bytes() if metrics.exists() else b""


def events(run, name):
    return [event for event in run.events() if event["event"] == name]


def test_rows_are_those_of_the_contract(straight):
    rows = straight.rows()
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(2, 21, 2))
    assert [row["step"] for row in rows if "validation/loss" in row] == [10, 20]
    assert [row["step"] for row in rows if "test/loss" in row] == [20]
    names = ["loss", "bits_per_byte", "gradient_norm", "update_ratio", "learning_rate"]
    assert {name for name in rows[0] if "/" in name} == {f"train/{name}" for name in names}
    for row in rows:
        assert (row["tokens"], row["flops"]) == (row["step"] * 64, row["step"] * 64 * 1000)
    first = rows[0]
    assert first["train/bits_per_byte"] == pytest.approx(first["train/loss"] / math.log(2))  # a byte a token


def test_the_result_holds_the_last_scores_and_the_loss_went_down(straight):
    result = straight.result
    rows = straight.rows()
    assert (result["status"], result["step"], result["tokens"]) == ("done", 20, 1280)
    assert result["test"]["loss"] == rows[-1]["test/loss"]
    assert result["validation"]["bits_per_byte"] == rows[-2]["validation/bits_per_byte"]
    assert rows[-2]["validation/loss"] < rows[0]["train/loss"] - 1
    assert straight.status() == "done"


def test_evaluating_the_last_checkpoint_gives_the_scores_of_the_run(straight):
    scores = evaluate(straight, "test", data=data_of(trial()))
    assert scores["step"] == 20
    assert scores["loss"] == pytest.approx(straight.result["test"]["loss"], rel=1e-6)
    assert scores["bits_per_byte"] == pytest.approx(straight.result["test"]["bits_per_byte"], rel=1e-6)


def test_a_run_that_is_done_is_left_alone(straight, programs):
    before = (straight.path / "events.jsonl").read_bytes()
    assert train(trial(), straight, programs, data=data_of(trial(), before=pytest.fail)) == "done"
    assert (straight.path / "events.jsonl").read_bytes() == before


def test_trials_of_a_group_share_one_program(straight, programs, tmp_path):
    program = next(iter(programs.values()))
    compiled = program.compilations
    one = trial(seed=5, optimizer__learning_rate=3e-3)
    run = run_of(one, tmp_path / "run")
    with run.claim():
        train(one, run, programs, data=data_of(one))
    assert (len(programs), program.compilations) == (1, compiled)
    assert events(run, "compiled") == []
    assert run.result["test"]["loss"] != straight.result["test"]["loss"]


# --- cut off and taken up again ---------------------------------------------------------------------------------------


def crash_at(*steps):
    left = list(steps)

    def before(step):
        if left and step == left[0]:
            left.pop(0)
            raise Crash

    return before


@pytest.mark.parametrize("crashes", [(0,), (3, 4), (6, 11, 11, 12), (19,), (9, 10, 11)])
def test_crashes_at_any_step_change_no_bit(straight, programs, tmp_path, crashes):
    one = trial()
    run = run_of(one, tmp_path / "run")
    data = data_of(one, before=crash_at(*crashes))
    for _ in crashes:
        with run.claim(), pytest.raises(Crash):
            train(one, run, programs, data=data)
    with run.claim():
        assert train(one, run, programs, data=data) == "done"
    program = next(iter(programs.values()))
    assert final(run, program) == final(straight, program)


@pytest.mark.parametrize("stops", [(1,), (4, 5, 13), (10,), (19,)])
def test_a_wish_to_stop_saves_at_the_current_step_and_going_on_changes_no_bit(straight, programs, tmp_path, stops):
    one = trial()
    run = run_of(one, tmp_path / "run")
    program = next(iter(programs.values()))
    for at in stops:
        stop = Stop()

        def before(step, stop=stop, at=at):
            if step == at:
                stop.signal = 15

        with run.claim():
            assert train(one, run, programs, data=data_of(one, before=before), stop=stop) == "stopped"
        assert stop.exit_code == 143
        assert run.status() == "stopped"
        step, _, _ = final(run, program)
        assert step == events(run, "stopped")[-1]["step"] == at  # batch `at` was made while step `at` was under way
    with run.claim():
        assert train(one, run, programs, data=data_of(one)) == "done"
    assert final(run, program) == final(straight, program)
    assert [event["step"] for event in events(run, "resume")] == list(stops)


def test_a_stop_during_an_evaluation_makes_it_again_when_the_run_goes_on(straight, programs, tmp_path):
    one = trial()
    run = run_of(one, tmp_path / "run")
    program, stop = next(iter(programs.values())), Stop()
    score = program.eval_step

    def stopping(params, batch):
        stop.signal = 2
        return score(params, batch)

    program.eval_step = stopping
    try:
        with run.claim():
            assert train(one, run, programs, data=data_of(one), stop=stop) == "stopped"
    finally:
        del program.eval_step
    assert [row["step"] for row in run.rows()] == [2, 4, 6, 8, 10]
    assert final(run, program)[0] == 10
    with run.claim():
        train(one, run, programs, data=data_of(one))
    assert final(run, program) == final(straight, program)


def half_way(programs, folder, **fields):
    """A run that crashed before step 12, with checkpoints of steps 5 and 10."""
    one = trial(**fields)
    run = run_of(one, folder)
    with run.claim(), pytest.raises(Crash):
        train(one, run, programs, data=data_of(one, before=crash_at(12)))
    return one, run


def test_a_damaged_checkpoint_is_passed_over_and_nothing_is_lost(straight, programs, tmp_path):
    one, run = half_way(programs, tmp_path / "run")
    for path in (run.checkpoints / "10").glob("state/**/d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    with run.claim():
        assert train(one, run, programs, data=data_of(one)) == "done"
    assert [event["step"] for event in events(run, "refused")] == [10]
    assert [event["step"] for event in events(run, "resume")] == [5]
    program = next(iter(programs.values()))
    assert final(run, program) == final(straight, program)


def test_rows_that_were_lost_are_made_again(straight, programs, tmp_path):
    one, run = half_way(programs, tmp_path / "run")
    lines = (run.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_bytes(b"".join(lines[:1]) + lines[1][:10])
    with run.claim():
        assert train(one, run, programs, data=data_of(one)) == "done"
    assert "rows" in events(run, "refused")[0]["reason"]
    assert [event["step"] for event in events(run, "resume")] == [0]
    program = next(iter(programs.values()))
    assert final(run, program) == final(straight, program)


def test_checkpoints_of_another_trial_are_refused_by_the_field(programs, tmp_path):
    _, run = half_way(programs, tmp_path / "one")
    other = trial(optimizer__learning_rate=2e-2)
    stranger = run_of(other, tmp_path / "other")
    shutil.copytree(run.checkpoints, stranger.checkpoints)
    with stranger.claim(), pytest.raises(ConfigError) as error:
        train(other, stranger, programs, data=data_of(other))
    assert error.value.field == "optimizer.learning_rate"
    assert (stranger.checkpoints / "10").exists()


def test_other_data_are_refused(programs, tmp_path):
    one, run = half_way(programs, tmp_path / "one")
    with run.claim(), pytest.raises(ConfigError, match="fingerprint") as error:
        train(one, run, programs, data=data_of(one, fingerprint="0ther0da7a00"))
    assert error.value.field == "data"


# --- divergence -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged_with_a_finite_checkpoint(programs, tmp_path):
    wild = trial(optimizer__learning_rate=1e38, optimizer__warmup_steps=20)
    run = run_of(wild, tmp_path / "run")
    with run.claim():
        assert train(wild, run, programs, data=data_of(wild)) == "diverged"
    at = run.result["step"]
    last = run.rows()[-1]
    assert (last["step"], last["train/loss"], run.status()) == (at, None, "diverged")
    assert run.result["test"] == {"loss": None, "bits_per_byte": None}
    json.dumps(run.result, allow_nan=False)
    program = next(iter(programs.values()))
    with Checkpoints(run.checkpoints, keep=None) as checkpoints:
        found = checkpoints.newest(saved_shapes(program.model, program.shapes, program.mesh))
    assert found.step == at - 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(found.tree)))


def test_a_diverged_run_that_was_killed_before_its_result_diverges_again(programs, tmp_path):
    wild = trial(optimizer__learning_rate=1e38, optimizer__warmup_steps=20)
    run = run_of(wild, tmp_path / "run")
    with run.claim():
        train(wild, run, programs, data=data_of(wild))
    before = run.result, (run.path / "metrics.jsonl").read_bytes()
    (run.path / "done.json").unlink()
    with run.claim():
        assert train(wild, run, programs, data=data_of(wild)) == "diverged"
    after = run.result, (run.path / "metrics.jsonl").read_bytes()
    assert ({**after[0], "seconds": 0}, after[1]) == ({**before[0], "seconds": 0}, before[1])


# --- the device -------------------------------------------------------------------------------------------------------


def test_no_step_moves_data_that_it_was_not_told_to_move(programs, tmp_path):
    one = trial(seed=9)
    run = run_of(one, tmp_path / "run")
    with run.claim(), jax.transfer_guard("disallow"):
        assert train(one, run, programs, data=data_of(one)) == "done"


def test_a_step_is_dispatched_before_the_metrics_of_the_one_before_are_read(programs, tmp_path, monkeypatch):
    one = trial(seed=10)  # which logs every second step
    run = run_of(one, tmp_path / "run")
    program, order = next(iter(programs.values())), []
    step = program.train_step

    def dispatched(state, batch, values):
        order.append("dispatch")
        return step(state, batch, values)

    monkeypatch.setattr(program, "train_step", dispatched, raising=False)
    append = run.append
    monkeypatch.setattr(run, "append", lambda row: (order.append("row"), append(row)))
    with run.claim():
        train(one, run, programs, data=data_of(one))
    assert order[:7] == ["dispatch", "dispatch", "dispatch", "row", "dispatch", "dispatch", "row"]


# --- other segments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_a_run_goes_on_with_other_segments(tmp_path, before, after):
    fields = {"model__pattern": "A-A-A", "train__steps": 6, "evaluate__every": 6, "checkpoint__every": 4}
    one = trial(**fields, model__scan_layers=before)
    other = trial(**fields, model__scan_layers=after)
    assert layout(one.model) != layout(other.model)
    kept, moved = run_of(one, tmp_path / "kept"), run_of(one, tmp_path / "moved")
    programs = {}
    with kept.claim():
        train(one, kept, programs, data=data_of(one))
    with moved.claim(), pytest.raises(Crash):
        train(one, moved, programs, data=data_of(one, before=crash_at(5)))
    moved.create({**moved.record, "trial": trial_plain(other)})
    with moved.claim():
        train(other, moved, programs, data=data_of(other))
    assert [event["step"] for event in events(moved, "resume")] == [4]
    for row, expected in zip(moved.rows(), kept.rows(), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def test_the_form_of_checkpoints_knows_no_segments():
    one, other = (Program(trial(model__pattern="A-A-A", model__scan_layers=scan)) for scan in (False, True))
    state = one.init(one.values(trial()))
    kept = saved(host(state))
    again = saved(host(live(other.model, other.shapes, other.shardings, kept)))
    assert jax.tree.structure(again) == jax.tree.structure(kept)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True))
