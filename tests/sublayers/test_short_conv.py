"""The short convolution: it is BaseConv, and it cannot recall."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.testing import Subject, example
from hybrid.validation import ConfigError


def test_gated_is_a_linear_projection_times_a_convolution(x64):
    """BaseConv of the zoology of recall: y = (x W + b) * (h * x), here with numbers that can be read."""
    subject = Subject("C", example("C", d_model=1, short_conv={"width": 3}))
    params = {
        "conv": jnp.array([[100.0], [10.0], [1.0]]),
        "conv_bias": jnp.array([0.5]),
        "gate": jnp.array([[2.0]]),
        "gate_bias": jnp.array([1.0]),
    }
    y = subject.apply(params, jnp.array([[[1.0], [2.0], [3.0], [4.0]]]))
    convolved = np.array([1.5, 12.5, 123.5, 234.5])
    np.testing.assert_allclose(y[0, :, 0], convolved * np.array([3.0, 5.0, 7.0, 9.0]))


@pytest.mark.parametrize(("form", "leaves"), [("gated", {"gate"}), ("projected", {"in", "out"}), ("plain", set())])
def test_leaves(form, leaves):
    for bias in (True, False):
        config = example("C", short_conv={"form": form, "bias": bias})
        names = {"conv", *leaves}
        wanted = names | {f"{name}_bias" for name in names} if bias else names
        assert set(Subject.init(config)["layers"]["0"]["sublayer"]) == wanted


def test_the_state_is_the_last_inputs_alone():
    config = example("C", compute_dtype="bfloat16", short_conv={"width": 5})
    state = Subject("C", config).kind.state(config, 3, 1000)
    assert state.inputs.shape == (3, 4, 8) and state.inputs.dtype == jnp.bfloat16


def test_a_form_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"short_conv\.form.*did you mean 'gated'"):
        example("C", short_conv={"form": "gate"})
