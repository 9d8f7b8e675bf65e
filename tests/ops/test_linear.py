"""`linear` is x @ weight + bias in every rank and dtype, in its gradients too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops.linear import linear, linear_reference


def arrays(shape, d_out=5, dtype=None):
    generator = np.random.default_rng(0)
    x, weight, bias = (generator.normal(size=s) for s in (shape, (shape[-1], d_out), (d_out,)))
    return tuple(jnp.asarray(array, dtype) for array in (x, weight, bias))


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), (2, 1, 4, 3)])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_equals_the_reference_in_value_and_gradient(x64, shape, with_bias):
    x, weight, bias = arrays(shape)
    args = (x, weight, bias) if with_bias else (x, weight)

    def both(function):
        y, pull = jax.vjp(function, *args)
        return y, pull(jnp.cos(y))

    assert linear(*args).shape == (*shape[:-1], 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), both(linear), both(linear_reference))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types_are_accumulated_in_float32_and_rounded_once(dtype):
    ones = jnp.ones((1, 4096), dtype)
    assert linear(ones, jnp.ones((4096, 1)))[0, 0] == 4096  # a bfloat16 sum of ones stops growing at 256

    x, weight, _ = arrays((64, 48), dtype=jnp.float32)
    weight = weight.astype(dtype).astype(jnp.float32)
    x = x.astype(dtype)
    y = linear(x, weight)
    assert y.dtype == dtype
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64)
    np.testing.assert_array_less(np.abs(np.asarray(y, np.float64) - exact), jnp.finfo(dtype).eps * np.abs(exact) + 1e-5)


def test_gradient_to_a_float32_weight_is_not_rounded_to_bfloat16():
    x, weight, _ = arrays((64, 48), dtype=jnp.float32)
    x = x.astype(jnp.bfloat16)
    dx, dweight = jax.grad(lambda x, w: linear(x, w).astype(jnp.float32).sum(), (0, 1))(x, weight)
    assert dx.dtype == jnp.bfloat16 and dweight.dtype == jnp.float32
    np.testing.assert_allclose(dweight[:, 0], x.astype(jnp.float32).sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_product_in_forward_or_gradient_has_more_than_two_axes(dtype):
    """Three axes are a third slower on a CPU; and 16-bit operands stay 16-bit."""
    x, weight, bias = arrays((2, 4, 3), dtype=jnp.float32)
    jaxpr = jax.make_jaxpr(jax.grad(lambda *a: linear(*a).astype(jnp.float32).sum(), (0, 1, 2)))(
        x.astype(dtype), weight, bias
    )
    products = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "dot_general"]
    matrices = [eqn for eqn in products if all(v.aval.ndim > 1 for v in eqn.invars)]  # the bias sums with a vector
    assert len(matrices) >= 2
    for eqn in matrices:
        assert all(v.aval.ndim == 2 and v.aval.dtype == dtype for v in eqn.invars)


def equations(jaxpr):
    """All equations of a jaxpr, those of the functions it calls too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
