import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.optimizer import values_of
from experiments.step import Program
from hybrid import pattern
from hybrid.lazy import struct
from hybrid.params import Param, zeros
from hybrid.sublayers import KINDS, Aux, Kind, Traits, register
from hybrid.validation import Checked
from tests.experiments.training import data_of, quick, trial

quick = pytest.fixture(autouse=True, scope="module")(quick)


@pytest.fixture(scope="module")
def program():
    return Program(trial())


def steps(program, trial, count, start=0):
    """(state, metrics of every step) after `count` steps from the beginning."""
    data, values = data_of(trial), program.values(trial)
    state, seen = program.init(values), []
    for step in range(start, start + count):
        state, metrics = program.train_step(state, program.put(data.batch(step)), values)
        seen.append(jax.device_get(metrics))
    return state, seen


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_loss_goes_down_on_a_tiny_text(program):
    _, seen = steps(program, trial(), 20)
    assert abs(seen[0]["loss"] - np.log(258)) < 0.2
    assert seen[-1]["loss"] < seen[0]["loss"] - 1.5
    assert all(row["finite"] for row in seen)


def test_one_program_serves_every_rate_decay_warm_up_and_seed(program):
    steps(program, trial(), 1)
    compiled, events = program.compilations, []
    listen = lambda name, seconds, **_: events.append(name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x * 1.2345)(1.0)
        assert any("backend_compile" in name for name in events)  # the listener hears of compilations
        events.clear()
        first = {}
        for name, fields in {
            "base": {},
            "rate": {"optimizer__learning_rate": 1e-3},
            "decay": {"optimizer__weight_decay": 0.5},
            "warm-up": {"optimizer__warmup_steps": 7},
            "seed": {"seed": 1},
            "moments": {"optimizer__b1": 0.5, "optimizer__b2": 0.6},
            "epsilon": {"optimizer__eps": 1e-2},
            "clipping": {"optimizer__clip_norm": 0.01},
        }.items():
            state, _ = steps(program, trial(**fields), 2)
            first[name] = np.asarray(state.params["embedding"]["tokens"])
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert program.compilations == compiled
    assert [name for name in events if "backend_compile" in name] == []
    assert [name for name, tree in first.items() if np.array_equal(tree, first["base"])] == ["base"]


def test_metrics_say_the_rate_of_the_step_and_the_norms(program):
    one = trial(optimizer__learning_rate=0.5, optimizer__warmup_steps=4)
    before = jax.device_get(program.init(program.values(one)).params)
    state, (row,) = steps(program, one, 1)
    norm = lambda tree: np.sqrt(sum((leaf.astype("float64") ** 2).sum() for leaf in jax.tree.leaves(tree)))  # noqa: E731
    change = jax.tree.map(lambda a, b: np.asarray(a) - b, state.params, before)
    assert row["learning_rate"] == pytest.approx(0.125)
    assert row["update_ratio"] == pytest.approx(norm(change) / norm(before), rel=1e-4)
    assert row["gradient_norm"] > 0


def test_the_state_is_donated_and_reused_in_place(program):
    one = trial()
    state = program.init(program.values(one))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    after, _ = program.train_step(state, program.put(data_of(one).batch(0)), program.values(one))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert program.compiled("train").memory_analysis().alias_size_in_bytes >= size
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_a_step_that_is_not_finite_leaves_the_state_as_it_was_and_so_do_all_after_it(program):
    wild = trial(optimizer__learning_rate=1e38, optimizer__warmup_steps=0)
    good, _ = steps(program, wild, 1)
    kept = jax.device_get(good)
    _, seen = steps(program, wild, 4)
    assert [bool(row["finite"]) for row in seen] == [True, False, False, False]
    state, _ = steps(program, wild, 4)
    assert same(state.params, kept.params)
    assert same(state.optimizer, kept.optimizer)
    assert int(state.step) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


def double(**fields):
    """A small trial in float64."""
    types = {"model__param_dtype": "float64", "model__compute_dtype": "float64", "model__pattern": "A-"}
    return trial(**{**types, "optimizer__clip_norm": None, **fields})


def test_the_gradient_of_parts_is_that_of_the_whole_with_labels_spread_unevenly(x64):
    batch = data_of(double()).batch(0)
    batch["labels"][0, :] = -1
    batch["labels"][1, 3:] = -1
    results = {}
    for parts in (1, 4):
        one = double(optimizer__accumulate=parts)
        program = Program(one)
        values = program.values(one)
        results[parts] = program.train_step(program.init(values), program.put(batch), values)
    (state, row), (whole, expected) = results[4], results[1]
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(row[name], expected[name], rtol=1e-12)
    for a, b in zip(jax.tree.leaves(state.optimizer), jax.tree.leaves(whole.optimizer), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-16)


def test_labels_at_positions_are_the_same_as_labels_everywhere_with_the_others_left_out(x64):
    one = double()
    program = Program(one)
    values = program.values(one)
    dense = data_of(one).batch(0)
    positions = np.array([[1, 5], [0, 15], [7, 7], [2, 3]], np.int32)
    labels = np.take_along_axis(dense["labels"], positions, 1)
    labels[2, 1] = -1
    sparse = {"tokens": dense["tokens"], "labels": labels, "label_positions": positions}
    everywhere = np.full_like(dense["labels"], -1)
    for row, column, label in zip(np.repeat(range(4), 2), positions.ravel(), labels.ravel(), strict=True):
        everywhere[row, column] = label if label >= 0 else everywhere[row, column]
    dense = {"tokens": dense["tokens"], "labels": everywhere}
    (_, a), (_, b) = (program.train_step(program.init(values), program.put(x), values) for x in (sparse, dense))
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-12)
    nats, scored = program.eval_step(program.init(values).params, program.put(sparse))
    assert int(scored) == 7
    np.testing.assert_allclose(nats / 7, a["loss"], rtol=1e-12)


def test_dropout_depends_on_seed_and_step_alone_and_evaluation_has_none():
    one = trial(model__pattern="-", model__dropout=0.3)
    program = Program(one)
    batch = program.put(data_of(one).batch(0))

    def losses(seed):
        values = dataclasses.replace(program.values(one), key=jax.random.key(seed))
        still = dataclasses.replace(values, learning_rate=jnp.zeros_like(values.learning_rate), key=values.key)
        state, seen = program.init(program.values(one)), []
        for _ in range(2):
            state, metrics = program.train_step(state, batch, still)
            seen.append(float(metrics["loss"]))
        return seen

    first, again, other = losses(0), losses(0), losses(1)
    assert first == again
    assert first[0] != first[1]
    assert first != other
    params = program.init(program.values(one)).params
    assert float(program.eval_step(params, batch)[0]) == float(program.eval_step(params, batch)[0])


def test_the_rate_of_dropout_is_a_value_and_what_it_is_in_the_config():
    made = {rate: trial(model__pattern="-", model__dropout=rate) for rate in (0.3, 0.6)}
    shared = Program(made[0.3])
    batch = shared.put(data_of(made[0.3]).batch(0))
    losses = {}
    for rate, one in made.items():
        own = Program(one)
        for program in (shared, own):
            values = program.values(one)
            _, metrics = program.train_step(program.init(values), batch, values)
            losses[rate, program is shared] = float(metrics["loss"])
        assert losses[rate, True] == losses[rate, False]
    assert losses[0.3, True] != losses[0.6, True]
    assert shared.compilations == 2  # init and train


def test_a_step_that_was_compiled_ahead_is_the_one_that_runs():
    one = trial(model__pattern="-")
    program, plain = Program(one), Program(one)
    batch = data_of(one).batch(0)
    program.begin(batch)
    ahead = steps(program, one, 3)
    assert same(ahead, steps(plain, one, 3))
    assert sorted(made.program for made in program.made) == ["init", "train"]
    assert [made.key for made in program.made] == [made.key for made in plain.made]


def test_the_forms_of_operators_are_told_with_the_program_that_took_them():
    program = Program(trial(model__pattern="A"))
    steps(program, trial(model__pattern="A"), 1)
    forms = {made.program: dict(made.forms) for made in program.made}
    assert forms["init"] == {}
    assert forms["train"]["attention"]
    assert program.news() and not program.news()


def test_bfloat16_compute_keeps_float32_parameters_and_learns():
    one = trial(model__pattern="A-", model__compute_dtype="bfloat16")
    state, seen = steps(Program(one), one, 20)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert seen[-1]["loss"] < seen[0]["loss"] - 1.0


# --- what sublayers report --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CounterConfig(Checked):
    weight: float = 0.5


@struct
class CounterState:
    pass


def counter_spec(config):
    return {
        "scale": Param((config.d_model,), ("embed",), zeros),
        "seen": Param((), (), zeros, trainable=False),
    }


def counter(config, params, x, context):
    losses = {"balance": config.counter.weight * jnp.sum((params["scale"] - 1.0) ** 2)}
    updates = {"seen": params["seen"] + 1.0}
    return x * params["scale"], Aux(losses=losses, metrics={"load": jnp.asarray(3.0)}, updates=updates)


COUNTER = Kind("Z", "counter", CounterConfig, lambda config: Traits(mixer=False), counter_spec, counter)


@pytest.fixture
def counting(monkeypatch):
    """A kind of its own that reports a loss, a metric and an update, registered for one test."""
    monkeypatch.setattr(pattern, "SYMBOLS", dict(pattern.SYMBOLS))
    for name in list(KINDS):
        monkeypatch.setitem(KINDS, name, KINDS[name])
    monkeypatch.setitem(KINDS, "Z", COUNTER)
    register(COUNTER)


@pytest.mark.parametrize(("accumulate", "scan_layers"), [(1, False), (2, True)])
def test_losses_of_sublayers_are_added_and_their_updates_put_in_place(counting, accumulate, scan_layers):
    fields = {"model__scan_layers": scan_layers, "optimizer__accumulate": accumulate, "optimizer__clip_norm": None}
    one = trial(model__pattern="ZZ-", optimizer__weight_decay=0.0, **fields)
    program = Program(one)
    values = program.values(one)
    state, metrics = program.train_step(program.init(values), program.put(data_of(one).batch(0)), values)
    layers = [value["sublayer"] for value in state.params["layers"].values() if "seen" in value["sublayer"]]
    assert [np.asarray(layer["seen"]).ravel().tolist() for layer in layers] == (
        [[1.0, 1.0]] if scan_layers else [[1.0], [1.0]]
    )
    for layer in layers:
        # the residual is untouched at scale 0, so the gradient of the scale is that of its loss, or near it
        assert np.all(np.asarray(layer["scale"]) > 0)
    assert float(metrics["aux/load"]) == 3.0
    assert float(metrics["gradient_norm"]) == pytest.approx(np.sqrt(2 * 16), rel=0.2)


def test_values_of_a_trial_are_what_its_group_leaves_open():
    values = values_of(trial(optimizer__learning_rate=0.25, optimizer__weight_decay=0.5, seed=3))
    assert (float(values.learning_rate), float(values.weight_decay), float(values.warmup_steps)) == (0.25, 0.5, 2.0)
    assert jnp.array_equal(jax.random.key_data(values.key), jax.random.key_data(jax.random.key(3)))
