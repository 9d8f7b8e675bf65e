"""RMSNorm and LayerNorm against their formulas, and in narrow types."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.norms import layer_norm, norm, rms_norm

DRAW = np.random.default_rng(0)
X, SCALE, BIAS = DRAW.standard_normal((2, 3, 8)) * 3 + 1, DRAW.standard_normal(8), DRAW.standard_normal(8)


def by_hand(x, scale, bias=None, eps=1e-3):
    if bias is not None:
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale
    return y if bias is None else y + bias


def test_formulas(x64):
    np.testing.assert_allclose(rms_norm(jnp.asarray(X), jnp.asarray(SCALE), 1e-3), by_hand(X, SCALE), rtol=1e-12)
    np.testing.assert_allclose(
        layer_norm(jnp.asarray(X), jnp.asarray(SCALE), jnp.asarray(BIAS), 1e-3), by_hand(X, SCALE, BIAS), rtol=1e-12
    )


def test_a_bias_makes_it_layer_norm(x64):
    x = jnp.asarray(X)
    np.testing.assert_array_equal(norm({"scale": jnp.asarray(SCALE)}, x, 1e-3), rms_norm(x, jnp.asarray(SCALE), 1e-3))
    both = {"scale": jnp.asarray(SCALE), "bias": jnp.asarray(BIAS)}
    np.testing.assert_array_equal(norm(both, x, 1e-3), layer_norm(x, both["scale"], both["bias"], 1e-3))


@pytest.mark.parametrize("params", [{"scale": SCALE}, {"scale": SCALE, "bias": BIAS}])
def test_narrow_inputs_are_normed_in_float32_and_rounded_once(params):
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    x = jnp.asarray(X * 1000, jnp.bfloat16)
    y = norm(params, x, 1e-5)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, norm(params, x.astype(jnp.float32), 1e-5).astype(jnp.bfloat16))


def test_a_row_of_zeros_has_finite_values_and_gradients():
    params = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    for chosen in (params, {"scale": params["scale"]}):
        gradient = jax.grad(lambda x, chosen=chosen: norm(chosen, x, 1e-5).sum())(jnp.zeros((1, 8)))
        assert np.isfinite(gradient).all()
