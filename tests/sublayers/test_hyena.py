"""Hyena: its filters' features, window and initial values; which form convolves how often."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.sublayers import KINDS
from hybrid.sublayers.hyena import filters, long_convs
from hybrid.testing import Subject, example


@pytest.fixture(scope="module")
def initial():
    config = example("H", d_model=96, hyena={"filter_length": 200})
    return config, Subject.init(config)["layers"]["0"]["sublayer"]


def test_rates_of_the_window_run_from_3_to_15(initial):
    """|ln 0.01| / 1.5 = 3.070 in the first channel to |ln 0.01| / 0.3 = 15.351 in the last, over time 0 to 1."""
    config, params = initial
    flat = dataclasses.replace(config, hyena=dataclasses.replace(config.hyena, slow_decay=1e9, fast_decay=1e9))
    ratio = np.asarray(filters(config, params, 200)[0] / filters(flat, params, 200)[0])
    rates = -np.log(ratio[:, 40]) / (40 / 199)
    np.testing.assert_allclose([rates[0], rates[-1]], [3.070, 15.351], atol=2e-3)
    np.testing.assert_allclose(rates, np.linspace(rates[0], rates[-1], 96), rtol=1e-3)
    np.testing.assert_allclose(ratio[:, 0], 1.0)


def test_the_shift_is_added_to_the_window(initial):
    config, params = initial
    shifted = dataclasses.replace(config, hyena=dataclasses.replace(config.hyena, decay_shift=0.05))
    flat = dataclasses.replace(config, hyena=dataclasses.replace(config.hyena, slow_decay=1e9, fast_decay=1e9))
    difference = filters(shifted, params, 200) - filters(config, params, 200)
    np.testing.assert_allclose(difference, 0.05 * filters(flat, params, 200), atol=1e-6)


def test_features_are_the_time_and_turns_of_it(initial):
    features = np.asarray(initial[1]["features"])
    assert features.shape == (200, 5)
    index = np.arange(200)
    np.testing.assert_allclose(features[:, 0], index / 199, atol=1e-6)
    for band, f in enumerate(np.linspace(1e-4, 1, 2)):
        turn = np.exp(-1j * f * 2 * np.pi * index / 200)
        np.testing.assert_allclose(features[:, 1 + band], turn.real, atol=1e-5)
        np.testing.assert_allclose(features[:, 3 + band], turn.imag, atol=1e-5)


def test_initial_values(initial):
    params = initial[1]
    assert (np.asarray(params["filter"]["frequency"]) == 10).all()
    assert params["filter"]["frequency"].shape == (64,)
    assert abs(float(params["skip"].std()) - 1) < 0.25
    for name, inputs in (("in", 96), ("out", 96), ("short", 3)):
        assert 0.97 < float(jnp.abs(params[name]).max()) * inputs**0.5 <= 1 + 1e-6
    assert float(jnp.abs(params["filter"]["out"]).max()) <= 64**-0.5


@pytest.mark.parametrize(("form", "order", "convs"), [("code", 2, 1), ("code", 4, 3), ("paper", 2, 2), ("paper", 3, 3)])
def test_long_convolutions_of_a_form(form, order, convs):
    config = example("H", hyena={"form": form, "order": order, "filter_length": 16})
    assert long_convs(config) == convs
    spec = KINDS["H"].spec(config)
    assert spec["filter"]["out"].shape == (64, convs, 8)
    assert spec["in"].shape == (8, (order + 1) * 8)
    assert ("skip" in spec) == (form == "code")
    shapes = jax.eval_shape(lambda: KINDS["H"].state(config, 2, 16))
    assert [leaf.shape for leaf in shapes.inputs] == [(2, 8, 16)] * convs


def test_a_shorter_input_uses_a_prefix_of_the_filter(initial):
    config, params = initial
    np.testing.assert_allclose(
        filters(config, params, 50), filters(config, params, 200)[..., :50], rtol=1e-4, atol=1e-6
    )


def test_filters_of_a_narrow_model_are_precise(initial):
    config, params = initial
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert filters(config, narrow, 20).dtype == jnp.float32
