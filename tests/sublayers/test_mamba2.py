"""Mamba-2: its published sizes and counts, initial values, norms, limits of the steps, padding."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.accounting import count, parameters
from hybrid.config import ModelConfig
from hybrid.sublayers import KINDS, Context
from hybrid.sublayers.mamba2 import sizes
from hybrid.testing import Subject, example
from hybrid.validation import ConfigError


@pytest.mark.parametrize(("n_layers", "d_model", "published"), [(24, 768, 128_989_632), (64, 2560, 2_702_599_680)])
def test_parameters_of_the_published_models(n_layers, d_model, published):
    """mamba2-130m and 2.7b: heads of 64, 128 states, one group, the vocabulary padded to a multiple of 16."""
    config = ModelConfig(pattern=f"D{n_layers}", vocab_size=50288, d_model=d_model, positions="none")
    assert parameters(config).total == published
    assert sizes(config).n_heads == 2 * d_model // 64


@pytest.fixture(scope="module")
def initial():
    config = example("D", d_model=512, mamba2={"head_dim": 1, "d_state": 16, "n_groups": 2})
    return {name: np.asarray(leaf) for name, leaf in Subject.init(config)["layers"]["0"]["sublayer"].items()}


def test_initial_decays_are_uniform_between_1_and_16_and_skips_one(initial):
    decays = np.exp(initial["A_log"])
    assert 1 <= decays.min() < 1.1 and 15.9 < decays.max() <= 16
    np.testing.assert_allclose(np.histogram(decays, bins=4, range=(1, 16))[0] / decays.size, 0.25, atol=0.06)
    assert (initial["D"] == 1).all() and (initial["norm"] == 1).all()


def test_initial_steps_are_log_uniform_between_a_thousandth_and_a_tenth(initial):
    steps = np.log(np.log1p(np.exp(initial["dt_bias"].astype(np.float64))))
    low, high = np.log(0.001), np.log(0.1)
    assert low - 1e-3 < steps.min() < low + 0.1 and high - 0.1 < steps.max() < high + 1e-3
    shares = np.histogram(steps, bins=4, range=(low - 1e-3, high + 1e-3))[0] / steps.size
    np.testing.assert_allclose(shares, 0.25, atol=0.06)


@pytest.mark.parametrize(
    ("name", "bound"),
    [("in_z", 512), ("in_x", 512), ("in_B", 512), ("in_C", 512), ("in_dt", 512), ("conv_x", 4), ("out", 1024)],
)
def test_initial_projections_are_uniform_up_to_the_root_of_their_inputs(initial, name, bound):
    values = initial[name] * bound**0.5
    assert 0.98 < np.abs(values).max() <= 1 + 1e-6
    assert abs(values.std() * 3**0.5 - 1) < 0.08


def one_position(**fields):
    """(y before the output projection, z, params) of a sublayer whose output projection is the identity."""
    subject = Subject("D", example("D", mamba2={"d_inner": 8, "head_dim": 2, "d_state": 3, **fields}))
    params = {**subject.params, "out": jnp.eye(8)}
    x = subject.inputs(1, 1)
    return subject.apply(params, x), x, params


def silu(v):
    return v / (1 + np.exp(-v))


def test_the_norm_stands_after_the_gate_before_it_or_nowhere(x64):
    """With one position, y is known from the norm-free form; groups are runs of neighbouring channels."""
    gated, x, params = one_position(norm="none")
    gate = silu(np.asarray(x @ params["in_z"]))
    bare = np.asarray(gated) / gate
    scale = 1 + 0.1 * np.arange(8)

    def normed(v, groups):
        parts = v.reshape(1, 1, groups, -1)
        return (parts / np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-3)).reshape(v.shape) * scale

    for groups in (1, 2, 4):
        for norm, wanted in (("after_gate", normed(bare * gate, groups)), ("before_gate", normed(bare, groups) * gate)):
            fields = {"d_inner": 8, "head_dim": 2, "d_state": 3, "norm": norm, "norm_groups": groups, "norm_eps": 1e-3}
            subject = Subject("D", example("D", mamba2=fields))
            y = subject.apply({**params, "norm": jnp.asarray(scale)}, x)
            np.testing.assert_allclose(y, wanted, rtol=1e-9, atol=1e-12)


def test_norm_groups_are_those_of_b_and_c_unless_told():
    assert sizes(example("D", mamba2={"n_groups": 2})).norm_groups == 2
    assert sizes(example("D", mamba2={"n_groups": 2, "norm_groups": 1})).norm_groups == 1


def test_steps_are_clipped_to_their_limits(x64):
    """At limits that are one number the step does not depend on the input: h decays by exp(-A dt) at each position."""
    fields = {"dt_limit_min": 0.5, "dt_limit_max": 0.5, "d_state": 1, "conv_bias": False}
    subject = Subject("D", example("D", mamba2=fields))
    x = jnp.concatenate([subject.inputs(1, 1), jnp.zeros((1, 6, 8))], axis=1)  # the convolution forgets after 4
    context = Context(positions=jnp.arange(7)[None])
    states = []
    for length in (5, 6, 7):
        state = KINDS["D"].state(subject.view, 1, 8)
        states.append(KINDS["D"].extend(subject.view, subject.params, x[:, :length], state, context)[1].hidden)
    decay = np.exp(-0.5 * np.exp(np.asarray(subject.params["A_log"])))
    for before, after in itertools.pairwise(states):
        np.testing.assert_allclose(after[0, :, 0, 0], decay * before[0, :, 0, 0], rtol=1e-9)


@pytest.mark.parametrize("fields", [{}, {"proj_bias": True, "dt_limit_min": 0.01}])
def test_left_padding_is_as_if_the_tokens_were_not_there(x64, fields):
    """Whole and in decoding; a bias of the projections stays out of the convolution."""
    subject = Subject("D", example("D", mamba2=fields))
    x = subject.inputs(1)
    padding = jnp.arange(x.shape[1])[None] >= 4
    alone = subject.apply(subject.params, x[:, 4:])
    padded = subject.apply(subject.params, x, None, padding)
    np.testing.assert_allclose(padded[:, 4:], alone, rtol=1e-9, atol=1e-12)
    extend, fresh = KINDS["D"].extend, KINDS["D"].state(subject.view, 1, 16)
    positions = jnp.arange(x.shape[1])[None]
    y, state = extend(subject.view, subject.params, x, fresh, Context(positions=positions, padding=padding))[:2]
    _, wanted = extend(subject.view, subject.params, x[:, 4:], fresh, Context(positions=positions[:, 4:]))[:2]
    np.testing.assert_allclose(y[:, 4:], alone, rtol=1e-9, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), state, wanted)


def test_padding_in_front_of_later_tokens_leaves_no_trace(x64):
    """A second call whose rows begin with padding: as if only the tokens had come."""
    subject = Subject("D")
    x, extend = subject.inputs(1), KINDS["D"].extend
    positions = jnp.arange(x.shape[1])[None]
    read = extend(subject.view, subject.params, x[:, :5], KINDS["D"].state(subject.view, 1, 16), Context(positions))[1]
    real = jnp.asarray([[False, False, True, True]])
    y, state = extend(subject.view, subject.params, x[:, 5:9], read, Context(positions[:, 5:9], padding=real))[:2]
    alone, wanted = extend(subject.view, subject.params, x[:, 7:9], read, Context(positions[:, 5:7]))[:2]
    np.testing.assert_allclose(y[:, 2:], alone, rtol=1e-9, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), state, wanted)


def test_the_state_stays_precise_in_a_narrow_model():
    config = example("D", compute_dtype="bfloat16", mamba2={"n_groups": 2, "d_state": 8})
    shapes = jax.eval_shape(lambda: KINDS["D"].state(config, 1, 8))
    assert shapes.hidden.dtype == jnp.float32 and shapes.hidden.shape == (1, 2, 8, 8)
    assert {name: (leaf.dtype, leaf.shape[2]) for name, leaf in shapes.conv.items()} == {
        "x": (jnp.bfloat16, 16), "B": (jnp.bfloat16, 16), "C": (jnp.bfloat16, 16)
    }  # fmt: skip


def test_sizes():
    size = sizes(example("D", d_model=100))
    assert (size.d_inner, size.head_dim, size.n_heads) == (200, 4, 50)
    size = sizes(example("D", d_model=100, mamba2={"d_inner": 96, "head_dim": 32, "n_groups": 3}))
    assert (size.d_inner, size.head_dim, size.n_heads, size.d_group) == (96, 32, 3, 384)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_dim": 3}, r"mamba2\.head_dim: 3 .*divide d_inner = 16"),
        ({"n_groups": 3}, r"mamba2\.n_groups: 3 .*divide the 2 heads"),
        ({"norm_groups": 3}, r"mamba2\.norm_groups: 3 .*divide d_inner = 16"),
        ({"dt_min": 0.2}, r"mamba2\.dt_min: 0\.2 .*at most dt_max"),
        ({"dt_limit_min": 2, "dt_limit_max": 1}, r"mamba2\.dt_limit_min: 2\.0 .*at most dt_limit_max"),
    ],
)
def test_errors_name_the_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        example("D", mamba2=fields)


def test_operations_grow_linearly_with_the_length():
    config = example("D", d_model=32, mamba2={"d_state": 16})
    short, long = (count(config, length).flops.forward for length in (256, 512))
    assert 1.99 < long / short < 2.01
