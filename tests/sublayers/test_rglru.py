"""RG-LRU: its initial values, the first token of a document, gradients where the square root is steep, padding."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.sublayers import KINDS, Context
from hybrid.sublayers.rglru import bounded_sqrt, sizes
from hybrid.testing import Subject, example
from hybrid.testing.subject import compiled
from hybrid.validation import ConfigError


@pytest.fixture(scope="module")
def initial():
    config = example("L", d_model=512, n_heads=4)
    return {
        name: np.asarray(leaf, np.float64) for name, leaf in Subject.init(config)["layers"]["0"]["sublayer"].items()
    }


def test_initial_radii_fill_the_ring_between_0_9_and_0_999(initial):
    """exp(-softplus(p)): squares uniform, as many in each quarter of the ring."""
    radius = 1 / (1 + np.exp(initial["rate"]))
    assert 0.9 <= radius.min() < 0.902 and 0.998 < radius.max() <= 0.999 + 1e-6
    shares = np.histogram(radius**2, bins=4, range=(0.81, 0.999**2 + 1e-6))[0] / radius.size
    np.testing.assert_allclose(shares, 0.25, atol=0.08)


def test_initial_projections(initial):
    for name, fan_in in (("in", 512), ("gate", 512), ("out", 512), ("input_gate", 128), ("recurrence_gate", 128)):
        assert abs(initial[name].std() * fan_in**0.5 - 1) < 0.03, name
    for name in ("in_bias", "gate_bias", "out_bias", "conv_bias", "input_gate_bias", "recurrence_gate_bias"):
        assert (initial[name] == 0).all(), name


def straight(subject):
    """Parameters under which the branch is its input: no convolution, gate 1 (GeLU of 30 is 30), i and r one half."""
    eye = jnp.eye(8)
    zero = {name: jnp.zeros(leaf.shape) for name, leaf in subject.kind.spec(subject.view).items()}
    conv = zero["conv"].at[-1].set(1.0)
    return {**zero, "in": eye, "out": eye / 30, "gate_bias": jnp.full(8, 30.0), "conv": conv, "rate": jnp.zeros(8)}


def test_the_first_token_of_a_document_is_not_scaled_and_the_others_are(x64):
    """r = i = 1/2, softplus(0) = log 2: a = exp(-8 / 2 log 2) = 1/16."""
    subject = Subject("L")
    x = jnp.ones((1, 4, 8))
    y = subject.apply(straight(subject), x, jnp.array([[0, 0, 1, 1]]))
    scale = (1 - 1 / 256) ** 0.5
    wanted = [0.5, 0.5 / 16 + scale * 0.5, 0.5, 0.5 / 16 + scale * 0.5]
    np.testing.assert_allclose(y[0, :, 3], wanted, rtol=1e-9)


def test_positions_that_start_later_are_no_first_token(x64):
    subject = Subject("L")
    x, later = jnp.ones((1, 2, 8)), Context(positions=jnp.array([[5, 6]]))
    y, _ = subject.kind.apply(subject.view, straight(subject), x, later)
    np.testing.assert_allclose(y[0, 0, 0], (1 - 1 / 256) ** 0.5 * 0.5, rtol=1e-9)


def test_the_root_is_exact_where_one_minus_a_squared_would_cancel():
    """a = exp(-1e-6): 1 - a^2 in float32 has one digit or none; the multiplier is sqrt(2e-6)."""
    subject = Subject("L")
    params = straight(subject)
    params["rate"] = jnp.full(8, np.log(np.expm1(1e-6 / 4)), jnp.float32)  # 8 softplus(p) / 2 = 1e-6
    y, _ = subject.kind.apply(subject.given, params, jnp.ones((1, 1, 8)), Context(positions=jnp.array([[3]])))
    np.testing.assert_allclose(y, 0.5 * np.sqrt(-np.expm1(-2e-6)), rtol=1e-5)


def test_a_closed_recurrence_gate_has_a_finite_gradient():
    """sigmoid(-200) is 0: a = 1, where the root has no derivative."""
    subject = Subject("L")
    params = subject.init(subject.given)["layers"]["0"]["sublayer"]
    params["recurrence_gate_bias"] = jnp.full(8, -200.0)
    x = jnp.ones((1, 5, 8), jnp.float32)
    context = Context(positions=jnp.arange(5)[None])
    loss = compiled(jax.grad(lambda params: subject.kind.apply(subject.given, params, x, context)[0].sum()))
    gradients = loss(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_the_slope_of_the_root_is_bounded():
    slope = jax.vmap(jax.grad(bounded_sqrt))(jnp.array([4.0, 1e-4, 1e-12, 0.0]))
    np.testing.assert_allclose(slope, [0.25, 50.0, 1000.0, 1000.0], rtol=1e-5)
    assert bounded_sqrt(jnp.float32(4.0)) == 2.0


def test_padding_between_two_chunks_is_as_if_it_were_not_there(x64):
    """The second chunk of the first row is shorter than that of the other: padding stands in front of it."""
    subject = Subject("L")
    extend = compiled(partial(subject.kind.extend, subject.view))
    x = subject.inputs(2, 9)
    fresh = subject.kind.state(subject.view, 2, 9)
    positions = jnp.array([[0, 1, 2, 3]] * 2)
    _, before, _ = extend(subject.params, x[:, :4], fresh, Context(positions=positions))
    real = jnp.array([[False, False, True, True, True], [True] * 5])
    positions = jnp.array([[4, 4, 4, 5, 6], [4, 5, 6, 7, 8]])
    context = Context(positions=positions, padding=real)
    y, state, _ = extend(subject.params, x[:, 4:], before, context)
    alone = jax.tree.map(lambda leaf: leaf[:1], before)
    context = Context(positions=positions[:1, 2:])
    wanted, wanted_state, _ = extend(subject.params, x[:1, 6:], alone, context)
    np.testing.assert_allclose(y[:1, 2:], wanted, rtol=1e-9, atol=1e-12)
    for leaf, exact in zip(jax.tree.leaves(state), jax.tree.leaves(wanted_state), strict=True):
        np.testing.assert_allclose(leaf[:1], exact, rtol=1e-9, atol=1e-12)


def test_the_state_stays_precise_in_a_narrow_model():
    config = example("L", compute_dtype="bfloat16")
    shapes = jax.eval_shape(lambda: KINDS["L"].state(config, 1, 8))
    assert shapes.hidden.dtype == jnp.float32
    assert shapes.conv.dtype == jnp.bfloat16


def test_sizes():
    assert sizes(example("L", d_model=12, n_heads=3)) == (12, 3)
    assert sizes(example("L", rglru={"width": 20, "blocks": 5})) == (20, 5)
    with pytest.raises(ConfigError, match=r"rglru\.blocks.*must divide the width, 8"):
        example("L", rglru={"blocks": 3})
    with pytest.raises(ConfigError, match=r"rglru\.blocks.*no n_heads"):
        example("L", n_heads=None)
    with pytest.raises(ConfigError, match=r"rglru\.min_radius"):
        example("L", rglru={"min_radius": 0.9999})
