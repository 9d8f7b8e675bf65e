"""Grouped products against their definition, for groups of any size; rows moved and their gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.flops import count_jaxpr
from hybrid.ops import experts
from hybrid.ops.experts import FORMS, grouped_linear, grouped_linear_reference, moved, moved_reference

SIZES = {
    "even": (5, 5, 5),
    "one has all": (0, 15, 0),
    "rows that are nobody's": (3, 0, 7),
    "none at all": (0, 0, 0),
    "longer than a block": (9, 2, 4),
}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(experts, "ROWS", 4)


def arrays(sizes, rows=15, dtype=float):
    draw = np.random.default_rng(0)
    return (
        jnp.asarray(draw.standard_normal((rows, 3)), dtype),
        jnp.asarray(draw.standard_normal((len(sizes), 3, 2)), dtype),
        jnp.asarray(sizes, jnp.int32),
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SIZES)
def test_grouped_products_and_their_gradients_are_those_of_the_definition(x64, small_blocks, form, name):
    x, weight, sizes = arrays(SIZES[name])
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((15, 2)))

    def run(product):
        y, back = jax.vjp(lambda x, weight: product(x, weight, sizes), x, weight)
        return y, back(cotangent)

    got = run(lambda *a: grouped_linear(*a, form=form))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(run(grouped_linear_reference)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_groups_of_other_sizes_side_by_side_under_vmap(x64, small_blocks, form):
    """As models of several seeds are: each with rows, weights and sizes of its own."""
    x, weight, _ = arrays((0, 0, 0))
    sizes = jnp.asarray(list(SIZES.values()), jnp.int32)
    xs, weights = (jnp.stack([a * i for i in range(len(SIZES))]) for a in (x, weight))
    one_by_one = jnp.stack([grouped_linear_reference(*each) for each in zip(xs, weights, sizes, strict=True)])
    together = jax.vmap(lambda *a: grouped_linear(*a, form))(xs, weights, sizes)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_products_of_16_bits_are_summed_in_32(small_blocks, form):
    """4096 terms of 1 + 2^-7: their sum is not one that 16 bits reach by adding."""
    x = jnp.ones((6, 4096), jnp.bfloat16)
    weight = jnp.full((2, 4096, 1), 1.0078125, jnp.float32)
    sizes = jnp.asarray([2, 4], jnp.int32)
    y = grouped_linear(x, weight, sizes, form)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, float), 4128, rtol=1e-6)
    dweight = jax.grad(lambda w: grouped_linear(jnp.ones((600, 2), jnp.bfloat16), w, jnp.asarray([600]), form).sum())(
        jnp.ones((1, 2, 1), jnp.float32)
    )
    assert dweight.dtype == jnp.float32
    np.testing.assert_allclose(dweight, 600.0)


def test_counted_are_the_rows_and_not_the_groups_in_all_three_products():
    x, weight, sizes = arrays((5, 5, 5), dtype=jnp.float32)

    def loss(x, weight):
        return grouped_linear(x, weight, sizes, "ragged").sum()

    once = 2 * 15 * 3 * 2
    forward = count_jaxpr(jax.make_jaxpr(lambda x, w: grouped_linear(x, w, sizes, "ragged"))(x, weight))
    backward = count_jaxpr(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, weight))
    assert forward == once
    assert backward - 3 * once in range(0, 31)  # and the sum of the loss


def test_rows_are_moved_and_their_gradients_come_back(x64):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2)))
    index = jnp.asarray([2, 0, 3, 2], jnp.int32)  # 3: nothing
    back = jnp.asarray([[1, 4], [4, 4], [0, 3]], jnp.int32)  # 4: no further place
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((4, 2)))
    got = jax.value_and_grad(lambda x: (weights * moved(x, index, back)).sum())(x)
    wanted = jax.value_and_grad(lambda x: (weights * moved_reference(x, index, back)).sum())(x)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-12)
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-12)
