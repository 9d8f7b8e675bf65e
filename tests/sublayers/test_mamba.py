"""Mamba: theorem 1 of its paper, its initial values, padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops.scan import FORMS, selective_scan
from hybrid.testing import Subject, example
from hybrid.validation import ConfigError


@pytest.mark.parametrize("form", FORMS)
def test_theorem_1_a_gated_recurrence(x64, form):
    """With N = 1, A = -1, B = 1 and dt = softplus(z), a zero-order hold gives h = (1 - g) h + g x, g = sigmoid(z).

    exp(-dt) is 1 - g. The code's Euler rule feeds dt x where the theorem has (1 - exp(-dt)) x = g x, so B is g / dt
    for the theorem; with B = 1 the input's weight is dt.
    """
    draw = np.random.default_rng(0)
    x, z = draw.standard_normal((2, 2, 11, 3))
    gate, dt = 1 / (1 + np.exp(-z)), np.log1p(np.exp(z))
    one_channel = [(x[..., c : c + 1], z[..., c : c + 1], gate[..., c : c + 1], dt[..., c : c + 1]) for c in range(3)]
    for x_c, _, gate_c, dt_c in one_channel:
        for b, weight in ((gate_c / dt_c, gate_c), (np.ones_like(dt_c), dt_c)):
            h, wanted = np.zeros((2, 1)), []
            for t in range(11):
                h = (1 - gate_c[:, t]) * h + weight[:, t] * x_c[:, t]
                wanted.append(h)
            arrays = (x_c, dt_c, -np.ones((1, 1)), b, np.ones_like(dt_c))
            y, last = selective_scan(*map(jnp.asarray, arrays), form=form)
            np.testing.assert_allclose(y, np.stack(wanted, axis=1), rtol=1e-10, atol=1e-13)
            np.testing.assert_allclose(last[:, :, 0], wanted[-1], rtol=1e-10)


@pytest.fixture(scope="module")
def initial():
    config = example("M", d_model=512, mamba={"dt_rank": 9})
    return {name: np.asarray(leaf) for name, leaf in Subject.init(config)["layers"]["0"]["sublayer"].items()}


def test_initial_recurrence(initial):
    np.testing.assert_allclose(np.exp(initial["A_log"]), np.broadcast_to(np.arange(1, 17), (1024, 16)), rtol=1e-6)
    assert (initial["D"] == 1).all()


def test_initial_steps_are_log_uniform_between_a_thousandth_and_a_tenth(initial):
    steps = np.log(np.log1p(np.exp(initial["dt_bias"].astype(np.float64))))
    low, high = np.log(0.001), np.log(0.1)
    assert low - 1e-3 < steps.min() < low + 0.1
    assert high - 0.1 < steps.max() < high + 1e-3
    shares = np.histogram(steps, bins=4, range=(low - 1e-3, high + 1e-3))[0] / steps.size
    np.testing.assert_allclose(shares, 0.25, atol=0.06)


@pytest.mark.parametrize(
    ("name", "bound"),
    [("in_x", 512), ("in_z", 512), ("conv", 4), ("conv_bias", 4), ("x_proj", 1024), ("dt_proj", 9), ("out", 1024)],
)
def test_initial_projections_are_uniform_up_to_the_root_of_their_inputs(initial, name, bound):
    values = initial[name] * bound**0.5
    assert 0.98 < np.abs(values).max() <= 1 + 1e-6
    assert abs(values.std() * 3**0.5 - 1) < 0.08
    assert abs(values.mean()) < 0.08


def test_the_floor_of_the_steps():
    config = example("M", d_model=64, mamba={"dt_floor": 0.05})
    bias = np.asarray(Subject.init(config)["layers"]["0"]["sublayer"]["dt_bias"], np.float64)
    np.testing.assert_allclose(np.log1p(np.exp(bias)).min(), 0.05, rtol=1e-4)


def test_left_padding_is_as_if_the_tokens_were_not_there(x64):
    subject = Subject("M")
    x = subject.inputs(1)
    padding = jnp.arange(x.shape[1])[None] >= 4
    padded = subject.apply(subject.params, x, None, padding)
    np.testing.assert_allclose(padded[:, 4:], subject.apply(subject.params, x[:, 4:]), rtol=1e-9, atol=1e-12)


def test_the_state_stays_precise_in_a_narrow_model():
    from hybrid.sublayers import KINDS

    config = example("M", compute_dtype="bfloat16")
    shapes = jax.eval_shape(lambda: KINDS["M"].state(config, 1, 8))
    assert shapes.hidden.dtype == jnp.float32
    assert shapes.conv.dtype == jnp.bfloat16


def test_sizes():
    from hybrid.sublayers.mamba import sizes

    assert sizes(example("M", d_model=100)) == (200, 7)  # ceil(100 / 16)
    assert sizes(example("M", d_model=768)) == (1536, 48)


@pytest.mark.parametrize(
    ("selective", "absent", "columns"),
    [("dt,B,C", {"B", "C"}, 33), ("dt", {}, 1), ("B,C", {"B", "C", "dt_proj"}, 32), ("none", {"x_proj", "dt_proj"}, 0)],
)
def test_what_is_not_selective_is_a_constant_of_its_own(selective, absent, columns):
    """d_model 8: one column for dt, 16 for each of B and C."""
    leaves = Subject.init(example("M", mamba={"selective": selective}))["layers"]["0"]["sublayer"]
    assert not set(absent) & set(leaves)
    assert ("x_proj" in leaves) == (columns > 0)
    assert columns == 0 or leaves["x_proj"].shape == (16, columns)
    for name in ("B", "C"):
        assert (name in leaves) == (name not in selective)
        assert name not in leaves or leaves[name].shape == (16, 16)


def test_without_selection_the_mixer_does_not_depend_on_the_input(x64):
    """The scan is then a convolution: with no convolution, activation or gate before it, it adds up."""
    subject = Subject("M", example("M", mamba={"selective": "none", "conv": False}))
    x = subject.inputs()
    arrays = {name: subject.params[name] for name in ("A_log", "B", "C", "D", "dt_bias")}
    dt = jnp.broadcast_to(jax.nn.softplus(arrays["dt_bias"]), (*x.shape[:2], 16))

    def mix(u):
        return selective_scan(u, dt, -jnp.exp(arrays["A_log"]), arrays["B"], arrays["C"], arrays["D"])[0]

    u = jnp.concatenate([x, 2 * x], axis=-1)
    np.testing.assert_allclose(mix(u + u**2), mix(u) + mix(u**2), rtol=1e-9, atol=1e-12)
    z = jax.nn.silu(x @ subject.params["in_z"])
    wanted = (mix(jax.nn.silu(x @ subject.params["in_x"])) * z) @ subject.params["out"]
    np.testing.assert_allclose(subject.apply(subject.params, x), wanted, rtol=1e-9, atol=1e-12)


def test_the_selective_ones_are_kept_in_one_order():
    from hybrid.config import as_plain

    for given in ("C, dt", ("C", "dt"), ["dt", "C", "dt"], "dt,C"):
        assert example("M", mamba={"selective": given}).mamba.selective == "dt,C"
    for given in ("none", "", ()):
        assert example("M", mamba={"selective": given}).mamba.selective == "none"
    with pytest.raises(ConfigError, match=r"mamba\.selective: 'delta' is not allowed.*dt, B, C, none"):
        example("M", mamba={"selective": "delta"})
    config = example("M", mamba={"selective": "B"})
    assert type(config)(**as_plain(config)) == config


def test_without_a_convolution_there_is_none_to_keep():
    subject = Subject("M", example("M", mamba={"conv": False}))
    assert not {"conv", "conv_bias"} & set(subject.kind.spec(subject.view))
    assert subject.kind.state(subject.given, 2, 8).conv.shape == (2, 0, 16)
