import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.config import OptimizerConfig
from experiments.optimizer import adamw, global_norm, learning_rate, values_of
from hybrid.params import Param, zeros
from tests.experiments.training import trial

DECLARED = {
    "kernel": Param((3, 2), ("embed", "mlp"), zeros),
    "bias": Param((2,), ("mlp",), zeros, decay=False),
    "slow": Param((4,), (None,), zeros, rate=1e-2),
    "frozen": Param((2, 2), (None, None), zeros, trainable=False),
}


def config(**fields):
    return OptimizerConfig(**{"learning_rate": 0.1, "weight_decay": 0.2, "schedule": "constant", **fields})


def values(rate=0.1, decay=0.2, warmup=0, steps=8, **fields):
    given = {"learning_rate": rate, "weight_decay": decay, "warmup_steps": warmup, **fields}
    return values_of(trial(train__steps=steps, **{f"optimizer__{name}": value for name, value in given.items()}))


def numbers(seed, dtype="float64"):
    random = np.random.default_rng(seed)
    return {name: random.normal(size=param.shape).astype(dtype) for name, param in DECLARED.items()}


def run(optimizer, params, gradients, given):
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for step, gradient in enumerate(gradients):
        norm = global_norm(gradient)
        updates, state = optimizer.update(
            jax.tree.map(jnp.asarray, gradient),
            state,
            params,
            values=given,
            step=jnp.asarray(step, jnp.int32),
            norm=norm,
        )
        params = optax.apply_updates(params, updates)
    return params, state


def by_hand(params, gradients, config, rates):
    """AdamW as its paper has it (algorithm 2), leaf by leaf."""
    params = {name: value.copy() for name, value in params.items()}
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        scale = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for name, param in DECLARED.items():
            if not param.trainable:
                continue
            g = gradient[name] * scale
            first[name] = config.b1 * first[name] + (1 - config.b1) * g
            second[name] = config.b2 * second[name] + (1 - config.b2) * g**2
            change = first[name] / (1 - config.b1**t) / (np.sqrt(second[name] / (1 - config.b2**t)) + config.eps)
            decay = config.weight_decay * params[name] if param.decay else 0.0
            params[name] = params[name] - rate * param.rate * (change + decay)
    return params


@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e3])
def test_adamw_is_that_of_the_paper_with_the_declared_decay_rate_and_freezing(x64, clip_norm):
    settings = config(clip_norm=clip_norm, schedule="wsd", decay_fraction=0.5)
    start, gradients = numbers(0), [numbers(seed) for seed in range(1, 9)]
    given = values(warmup=2, clip_norm=clip_norm, decay_fraction=0.5)
    done, _ = run(adamw(settings, DECLARED), start, gradients, given)
    rates = [0.1 * min(1, t / 2) * (1 - 0.9 * max(0, (t - 4) / 4)) for t in range(1, 9)]
    expected = by_hand(start, gradients, settings, rates)
    for name in DECLARED:
        np.testing.assert_allclose(done[name], expected[name], rtol=1e-12, atol=1e-14, err_msg=name)


def test_without_gradient_only_decayed_leaves_shrink(x64):
    start = numbers(0)
    nothing = {name: np.zeros_like(value) for name, value in start.items()}
    done, _ = run(adamw(config(), DECLARED), start, [nothing], values(steps=1))
    np.testing.assert_allclose(done["kernel"], start["kernel"] * (1 - 0.1 * 0.2), rtol=1e-14)
    np.testing.assert_allclose(done["slow"], start["slow"] * (1 - 0.1 * 0.01 * 0.2), rtol=1e-14)
    np.testing.assert_array_equal(done["bias"], start["bias"])
    np.testing.assert_array_equal(done["frozen"], start["frozen"])


def test_moments_are_precise_and_frozen_leaves_have_none():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), numbers(0, "float32"))
    state = adamw(config(), DECLARED).init(params)
    for name in ("mu", "nu"):
        moments = optax.tree.get(state, name)
        assert moments["kernel"].dtype == jnp.float32
        assert jax.tree.leaves(moments["frozen"]) == []


def test_updates_of_bfloat16_parameters_stay_precise_until_they_are_applied():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), numbers(0, "float32"))
    optimizer = adamw(config(), DECLARED)
    updates, _ = optimizer.update(
        params, optimizer.init(params), params, values=values(), step=jnp.zeros((), jnp.int32), norm=global_norm(params)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


def test_global_norm_is_the_euclidean_norm_of_all_leaves(x64):
    tree = {**numbers(0), "scalar": np.array(3.0)}
    everything = np.concatenate([np.ravel(leaf) for leaf in tree.values()])
    np.testing.assert_allclose(global_norm(jax.tree.map(jnp.asarray, tree)), np.linalg.norm(everything), rtol=1e-14)


FOUR = (1, 2, 3, 4)
SCHEDULES = [
    ("constant", {}, 0, [1, 1, 1, 1, 1, 1, 1, 1]),
    ("constant", {}, 4, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
    ("cosine", {"final_fraction": 0.0}, 0, [0.5 * (1 + np.cos(np.pi * t / 8)) for t in range(1, 9)]),
    (
        "cosine",
        {"final_fraction": 0.1},
        4,
        [0.25, 0.5, 0.75, 1, *(0.55 + 0.45 * np.cos(np.pi * t / 4) for t in (1, 2, 3, 4))],
    ),
    ("wsd", {"decay_fraction": 0.5, "final_fraction": 0.0}, 2, [0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0]),
    ("wsd", {"decay_fraction": 0.0}, 0, [1] * 8),
    ("wsd", {"decay_fraction": 0.25, "final_fraction": 0.2}, 0, [1, 1, 1, 1, 1, 1, 0.6, 0.2]),
    ("cosine", {"final_fraction": 0.5}, 8, [t / 8 for t in range(1, 9)]),
]


@pytest.mark.parametrize(("schedule", "fields", "warmup", "expected"), SCHEDULES)
def test_the_learning_rate_of_every_step(x64, schedule, fields, warmup, expected):
    given = values(rate=2.0, warmup=warmup, **fields)
    settings = config(schedule=schedule, **fields)
    rates = [learning_rate(settings, given, jnp.asarray(step, jnp.int32)) for step in range(8)]
    np.testing.assert_allclose(np.array(rates) / 2.0, expected, atol=1e-12)


def test_a_cosine_of_epochs_moves_between_epochs_alone(x64):
    """12 rows in batches of 4: three steps an epoch, and the last epoch is the last but one point of the cosine."""
    mqar = {"source": "mqar", "seq_len": 16, "batch_size": 4, "examples": 12, "task": {"vocab_size": 16}}
    one = trial(
        data=mqar, train__steps=12, study={"score": "loss"}, optimizer__schedule="cosine_epochs",
        optimizer__learning_rate=0.1, optimizer__final_fraction=0.0, optimizer__warmup_steps=0,
    )  # fmt: skip
    rates = [float(learning_rate(one.optimizer, values_of(one), jnp.asarray(step))) for step in range(12)]
    expected = np.repeat(0.05 * (1 + np.cos(np.pi * np.arange(4) / 4)), 3)
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


def test_decay_on_all_shrinks_the_leaves_that_declare_none(x64):
    settings = config(decay_on="all", clip_norm=None)
    params = numbers(1)
    zero = [jax.tree.map(np.zeros_like, params)]
    after, _ = run(adamw(settings, DECLARED), params, zero, values())
    np.testing.assert_allclose(after["bias"], params["bias"] * (1 - 0.1 * 0.2), rtol=1e-9)
    np.testing.assert_array_equal(after["frozen"], params["frozen"])
