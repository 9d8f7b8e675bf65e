"""`spread` is broadcasting, and its gradient the sum over what it broadcast to, by a dot and not a reduction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops.spread import spread


@pytest.mark.parametrize(("shape", "axis"), [((2, 5, 3), -1), ((2, 3, 5), 1), ((3,), 0), ((3, 4), 0), ((0, 3), -1)])
def test_equals_broadcasting_in_value_and_gradient(x64, shape, axis):
    vector = jnp.arange(1.0, 4.0)
    cotangent = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    out, pull = jax.vjp(lambda v: spread(v, shape, axis), vector)
    others = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    np.testing.assert_array_equal(out, jnp.broadcast_to(jnp.expand_dims(vector, others), shape))
    np.testing.assert_allclose(pull(cotangent)[0], cotangent.sum(others), atol=1e-12)


def test_gradient_has_no_reduction_and_sums_bfloat16_in_float32():
    def gradient(cotangent):
        return jax.vjp(lambda v: spread(v, cotangent.shape), jnp.ones(1, cotangent.dtype))[1](cotangent)[0]

    ones = jnp.ones((4096, 1), jnp.bfloat16)
    assert gradient(ones)[0] == 4096
    assert "reduce_sum" not in str(jax.make_jaxpr(gradient)(ones))
