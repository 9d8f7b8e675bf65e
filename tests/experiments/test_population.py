import contextlib

import jax
import numpy as np
import pytest

from experiments import population
from experiments.config import trial_from
from experiments.loop import train
from experiments.population import fitting, train_population
from experiments.signals import Stop
from experiments.step import Program
from tests.experiments.training import data_of, quick, run_of, trial

quick = pytest.fixture(autouse=True, scope="module")(quick)

FIELDS = [
    {"seed": 0},
    {"seed": 1, "optimizer__learning_rate": 3e-3},
    {"seed": 2, "optimizer__weight_decay": 0.5, "optimizer__b2": 0.99, "train__steps": 14},
    {"seed": 3, "optimizer__warmup_steps": 7, "optimizer__clip_norm": 0.5},
    {"seed": 4, "model__dropout": 0.4},
]
"""Members of one group, more than there are rows; all have dropout, or none would draw random numbers."""


WIDE = {"model__pattern": "A-", "model__param_dtype": "float64", "model__compute_dtype": "float64"}
"""So that nothing but rounding of doubles is left between a member and the run alone: training makes float32 grow."""


def trials(**types):
    given = {"model__dropout": 0.1, "train__log_every": 1, **(types or WIDE)}
    return [trial(**{**given, **fields}) for fields in FIELDS]


@pytest.fixture(autouse=True, scope="module")
def wide():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def programs():
    return {}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, programs):
    """Each member trained by itself."""
    folder, runs = tmp_path_factory.mktemp("alone"), []
    for i, one in enumerate(trials()):
        run = run_of(one, folder / str(i))
        with run.claim():
            assert train(one, run, programs, data=data_of(one)) == "done"
        runs.append(run)
    return runs


@contextlib.contextmanager
def claimed(run):
    with run.claim():
        yield trial_from(run.record["trial"])


def together(runs, programs, width=3, data=data_of):
    """How each ended, in the order in which they did."""
    ends = {}

    def ended(run, outcome):
        assert run.path not in ends, "twice"
        ends[run.path] = outcome

    train_population(runs, programs, width, begin=claimed, ended=ended, data=data)
    return ends


def same_rows(run, expected, tolerance=1e-6):
    assert [row.keys() for row in run.rows()] == [row.keys() for row in expected.rows()]
    for row, other in zip(run.rows(), expected.rows(), strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance), (run, row["step"])


def test_five_members_in_three_rows_give_what_each_gives_alone(alone, programs, tmp_path):
    runs = [run_of(one, tmp_path / str(i)) for i, one in enumerate(trials())]
    ends = together(runs, programs)
    assert list(ends.values()) == ["done"] * 5
    assert len(programs) == 1
    program = next(iter(programs.values()))
    assert sorted(made.program for made in program.made) == ["eval", "init", "train", "train x3"]
    for run, expected in zip(runs, alone, strict=True):
        same_rows(run, expected)
        assert run.record["population"] == 3
        assert run.result["test"]["loss"] == pytest.approx(expected.result["test"]["loss"], rel=1e-5)
        saved = sorted(int(path.name) for path in run.checkpoints.iterdir())
        assert saved == sorted(int(path.name) for path in expected.checkpoints.iterdir())
    assert {event["row"] for run in runs for event in run.events() if event["event"] == "population"} == {0, 1, 2}


class Crash(BaseException):
    """As a kill: nobody handles it."""


def crashing(at):
    """Data whose batch of step `at` of seed 1 ends everything, once."""
    left = [at]

    def make(one):
        def before(step):
            if one.seed == 1 and left and step == left[0]:
                left.pop()
                raise Crash

        return data_of(one, before=before)

    return make


def test_one_step_in_float32_is_that_of_the_member_alone_to_1e_5():
    with jax.enable_x64(False):
        members = trials(model__pattern="M")[:3]
        program = Program(members[0])
        batches = [data_of(one).batch(0) for one in members]
        values = [program.values(one) for one in members]
        stacked, states = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *values), program.empty(3)
        for row, value in enumerate(values):
            states = program.placed(states, row, program.init(value))
        whole = program.put_population({name: np.stack([b[name] for b in batches]) for name in batches[0]})
        _, found = program.train_population(states, whole, stacked)
        for row, (value, batch) in enumerate(zip(values, batches, strict=True)):
            _, expected = program.train_step(program.init(value), program.put(batch), value)
            for name in ("loss", "gradient_norm", "update_ratio", "learning_rate"):
                np.testing.assert_allclose(found[name][row], expected[name], rtol=1e-5, err_msg=name)


def test_members_that_were_killed_go_on_each_from_its_own_checkpoint(alone, programs, tmp_path):
    runs = [run_of(one, tmp_path / str(i)) for i, one in enumerate(trials()[:3])]
    with pytest.raises(Crash):
        together(runs, programs, data=crashing(12))
    assert [run.reached() for run in runs] == [10, 10, 10]
    ends = together(runs, programs)
    assert list(ends.values()).count("done") == 3
    for run, expected in zip(runs, alone, strict=False):
        same_rows(run, expected)
        assert [event["step"] for event in run.events() if event["event"] == "resume"] == [10]


def test_a_stop_saves_every_member_at_its_step_and_leaves_those_that_wait(alone, programs, tmp_path, monkeypatch):
    stop = Stop()
    monkeypatch.setattr(population, "Stop", lambda: contextlib.nullcontext(stop))

    def stopping(one):
        def before(step):
            stop.signal = 15 if step == 7 and one.seed == 0 else stop.signal

        return data_of(one, before=before)

    runs = [run_of(one, tmp_path / str(i)) for i, one in enumerate(trials())]
    ends = together(runs, programs, data=stopping)
    assert list(ends.values()) == ["stopped"] * 5
    assert [run.reached() for run in runs] == [7, 7, 7, 0, 0]
    stop.signal = None
    assert list(together(runs, programs).values()) == ["done"] * 5
    for run, expected in zip(runs, alone, strict=True):
        same_rows(run, expected)


def test_one_that_diverges_and_one_that_fails_do_not_stop_the_others(alone, programs, tmp_path):
    rate = {"optimizer__learning_rate": 1e300, "optimizer__warmup_steps": 20}
    wild = trial(**WIDE, **rate, model__dropout=0.1, train__log_every=1)
    members = [wild, trials()[0], trials()[1]]
    runs = [run_of(one, tmp_path / str(i)) for i, one in enumerate(members)]

    def failing(one):
        def before(step):
            if one.seed == 1 and step == 9:
                raise OSError(28, "No space left on device")

        return data_of(one, before=before)

    ends = together(runs, programs, data=failing)
    assert ends[runs[0].path] == "diverged" == runs[0].result["status"]
    assert ends[runs[1].path] == "done"
    assert isinstance(ends[runs[2].path], OSError)
    same_rows(runs[1], alone[0])


def test_width_is_halved_where_memory_is_not_enough_and_no_member_loses_what_it_saved(
    alone, programs, tmp_path, monkeypatch
):
    program, widths = next(iter(programs.values())), []
    step = program.train_population

    def narrow(states, batches, values):
        widths.append(states.step.shape[0])
        if widths[-1] > 2 and int(states.step[0]) == 6:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes")
        return step(states, batches, values)

    monkeypatch.setattr(program, "train_population", narrow, raising=False)
    runs = [run_of(one, tmp_path / str(i)) for i, one in enumerate(trials()[:4])]
    ends = together(runs, programs, width=4)
    assert list(ends.values()) == ["done"] * 4
    assert set(widths) == {4, 2}
    for run, expected in zip(runs, alone, strict=False):
        same_rows(run, expected)
        assert run.record["population"] == 2


def test_as_many_as_fit_by_what_the_compiled_step_takes():
    one = trial(model__pattern="A-")
    program, batch = Program(one), data_of(one).batch(0)
    needs = {width: program.bytes_of_population(batch, width) for width in (1, 2, 3, 4)}
    assert needs[1] < needs[2] < needs[3] < needs[4]
    assert [fitting(program, batch, 4, limit=needs[width]) for width in (2, 3, 4)] == [2, 3, 4]
    assert fitting(program, batch, 4, limit=needs[1] // 2) == 1
    assert fitting(program, batch, 4) == 4, "a CPU says nothing of its memory"


def test_rows_without_a_member_do_not_touch_the_others(alone, programs, tmp_path):
    """The stack is wider than there are members, as when the last of a queue are left."""
    runs = [run_of(trials()[i], tmp_path / str(i)) for i in (0, 2)]  # of 20 and of 14 steps
    assert list(together(runs, programs, width=2).values()) == ["done", "done"]
    same_rows(runs[0], alone[0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(runs[0].result["test"]))
