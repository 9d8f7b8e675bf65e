"""Gated DeltaNet: sizes, initial values, heads that share keys, parity, padding."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.accounting import layer_parameters
from hybrid.sublayers import KINDS, Context
from hybrid.sublayers.gated_delta import Sizes, sizes
from hybrid.testing import Subject, example
from hybrid.testing.subject import compiled
from hybrid.validation import ConfigError


def test_sizes():
    assert sizes(example("G", d_model=16, n_heads=4)) == Sizes(4, 4, 3, 6)
    grouped = {"n_key_heads": 2, "n_value_heads": 6, "key_dim": 5, "value_dim": 7}
    assert sizes(example("G", gated_delta=grouped)) == Sizes(2, 6, 5, 7)
    with pytest.raises(ConfigError, match=r"gated_delta\.n_value_heads.*multiple of 2"):
        example("G", gated_delta={"n_value_heads": 3})
    with pytest.raises(ConfigError, match=r"gated_delta\.n_key_heads.*no n_heads"):
        example("G", n_heads=None)
    with pytest.raises(ConfigError, match=r"gated_delta\.dt_min"):
        example("G", gated_delta={"dt_min": 1.0})


def test_by_default_it_has_about_the_parameters_of_a_mamba_block():
    delta, mamba = (layer_parameters(example(symbol, d_model=256, n_heads=4))[0] for symbol in "GM")
    assert abs(delta / (6 * 256**2) - 1) < 0.03
    assert abs(delta / mamba - 1) < 0.1


def test_initial_decays():
    config = example("G", d_model=8, n_heads=512, gated_delta={"key_dim": 1})
    initial = Subject.init(config)["layers"]["0"]["sublayer"]
    rates = np.exp(np.asarray(initial["A_log"]))
    assert 0.01 <= rates.min() < 0.2 and 15.8 < rates.max() <= 16
    steps = np.log1p(np.exp(np.asarray(initial["dt_bias"], np.float64)))
    assert 0.00099 < steps.min() < 0.0012 and 0.09 < steps.max() < 0.101


def parity(eigenvalues):
    """What a memory of one number answers to zeros and ones, when a one has the strongest beta and a zero has none."""
    given = {"key_dim": 1, "value_dim": 1, "d_conv": 1, "eigenvalues": eigenvalues}
    subject = Subject("G", example("G", d_model=2, n_heads=1, norm_eps=1e-30, gated_delta=given))
    one = jnp.ones((2, 1))
    params = {
        **{name: jnp.full((1, 1), 20.0) for name in ("query_conv", "key_conv", "value_conv")},
        "query": one, "key": one, "value": jnp.zeros((2, 1)), "gate": one, "norm": jnp.ones(1),
        "beta": jnp.array([[-50.0], [50.0]]), "decay": jnp.zeros((2, 1)), "A_log": jnp.full(1, -50.0),
        "dt_bias": jnp.zeros(1), "out": jnp.ones((1, 2)),
    }  # fmt: skip
    bits = jnp.array([1, 0, 1, 1, 0, 1])
    state = subject.kind.state(subject.view, 1, 6)
    state = state.replace(memory=jnp.ones((1, 1, 1, 1)))
    positions = jnp.arange(6)[None]
    y, _, _ = compiled(partial(subject.kind.extend, subject.view))(
        params, jax.nn.one_hot(bits, 2)[None], state, Context(positions)
    )
    return np.sign(np.asarray(y[0, :, 0])), np.cumsum(np.asarray(bits)) % 2


def test_negative_eigenvalues_count_parity_and_positive_ones_cannot(x64):
    signs, odd = parity("signed")
    np.testing.assert_array_equal(signs, np.where(odd, -1, 1))
    signs, _ = parity("positive")
    assert (signs >= 0).all()


def test_value_heads_of_one_key_head_stand_side_by_side(x64):
    """Taking away what reads value heads 2 and 3 takes all influence of the second key head."""
    subject = Subject("G", example("G", gated_delta={"n_value_heads": 4, "key_dim": 3, "value_dim": 2}))
    x, params = subject.inputs(1), dict(subject.params)
    params["out"] = params["out"].at[4:].set(0.0)
    first = subject.apply(params, x)
    for name, touches in (("key", False), ("query", False), ("value", False)):
        half = params[name].shape[1] // 2
        changed = {**params, name: params[name].at[:, half:].multiply(-2.0)}
        assert np.array_equal(subject.apply(changed, x), first) is not touches, name
        changed = {**params, name: params[name].at[:, :half].multiply(-2.0)}
        assert not np.allclose(subject.apply(changed, x), first), name


def test_padding_between_two_chunks_is_as_if_it_were_not_there(x64):
    subject = Subject("G", example("G", gated_delta={"conv_bias": True}))
    extend = compiled(partial(subject.kind.extend, subject.view))
    x = subject.inputs(1, 9)
    fresh = subject.kind.state(subject.view, 1, 9)
    _, before, _ = extend(subject.params, x[:, :4], fresh, Context(jnp.arange(4)[None]))
    context = Context(positions=jnp.array([[4, 4, 4, 5, 6]]), padding=jnp.array([[False, False, True, True, True]]))
    y, state = extend(subject.params, x[:, 4:], before, context)[:2]
    wanted, exact = extend(subject.params, x[:, 6:], before, Context(jnp.array([[4, 5, 6]])))[:2]
    np.testing.assert_allclose(y[:, 2:], wanted, rtol=1e-9, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), state, exact)


def test_the_memory_stays_precise_in_a_narrow_model():
    config = example("G", compute_dtype="bfloat16")
    shapes = jax.eval_shape(lambda: KINDS["G"].state(config, 1, 8))
    assert shapes.memory.dtype == jnp.float32
    assert {tail.dtype for tail in (shapes.query, shapes.key, shapes.value)} == {jnp.dtype(jnp.bfloat16)}
