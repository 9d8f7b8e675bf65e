"""A product for few rows: the same numbers as a plain one, cut only where the weight is large."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops import few_rows as module
from hybrid.ops.few_rows import FEW, few_rows, parts
from hybrid.ops.linear import linear


@pytest.mark.parametrize("rows", [1, 3, FEW, FEW + 1])
def test_equals_the_plain_product_in_value_and_gradient(x64, rows, monkeypatch):
    monkeypatch.setattr(module, "PART", 64)
    generator = np.random.default_rng(rows)
    x, weight = (jnp.asarray(generator.normal(size=shape)) for shape in ((rows, 24), (24, 10)))
    assert parts(rows, weight.shape, 8) == (8 if rows <= FEW else 1)

    def both(product):
        y, pull = jax.vjp(product, x, weight)
        return y, pull(jnp.cos(y))

    for mine, plain in zip(jax.tree.leaves(both(few_rows)), jax.tree.leaves(both(jnp.matmul)), strict=True):
        np.testing.assert_allclose(mine, plain, atol=1e-12)


def test_parts_are_large_and_divide_the_rows():
    assert parts(1, (256, 512), 4) == 2
    assert parts(1, (256, 511), 4) == 1  # a part would be too small
    assert parts(1, (255, 4096), 4) == 1  # an odd number of rows
    assert parts(1, (4096, 4096), 4) == module.MOST
    assert parts(FEW + 1, (256, 512), 4) == 1


def test_linear_takes_it_for_one_token_and_not_for_many():
    def products(tokens):
        shapes = jax.ShapeDtypeStruct((tokens, 256), "float32"), jax.ShapeDtypeStruct((256, 512), "float32")
        jaxpr = jax.make_jaxpr(linear)(*shapes).jaxpr
        return [eqn.params["dimension_numbers"][1] for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]

    assert products(1) == [((0,), (0,))]  # one product of two parts
    assert products(FEW + 1) == [((), ())]
