"""The product of a tied head: its definition in every form, and the form that the sizes ask for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops.tied import tied, tied_reference

FEW, PLAIN, PAGES = ((1, 1, 6), (9, 6)), ((2, 7, 6), (9, 6)), ((2, 7, 6), (1024, 6))


@pytest.mark.parametrize(("shape", "table"), [FEW, PLAIN, PAGES], ids=["few rows", "plain", "pages"])
def test_equals_the_definition_in_value_and_gradient(x64, shape, table):
    generator = np.random.default_rng(0)
    arrays = [jnp.asarray(generator.normal(size=size)) for size in (shape, table)]
    results = []
    for product in (tied, tied_reference):
        y, pull = jax.vjp(jax.jit(product), *arrays)
        results.append((y, pull(jnp.cos(y))))
    for mine, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-11)


@pytest.mark.parametrize(("shape", "table"), [PLAIN, PAGES], ids=["plain", "pages"])
def test_16_bit_operands_are_added_up_in_float32(shape, table):
    x = jnp.ones((*shape[:-1], 4096), jnp.bfloat16)
    y = tied(x, jnp.full((table[0], 4096), 1 + 2**-7, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype(jnp.float32), 4096 + 32)


def _text(shape, table):
    shapes = [jax.ShapeDtypeStruct(size, "float32") for size in (shape, table)]
    return str(jax.make_jaxpr(tied)(*shapes))


def test_a_table_is_read_as_it_lies_for_few_rows():
    assert "transpose" not in _text(*FEW)


def test_a_table_is_copied_only_where_rows_of_logits_are_whole_pages():
    assert "optimization_barrier" in _text(*PAGES)
    assert "optimization_barrier" not in _text(*PLAIN)


def test_the_gradient_to_a_table_of_whole_pages_is_compiled_as_a_product_by_rows():
    (shape, table), width = PAGES, PAGES[1][1]
    shapes = [jax.ShapeDtypeStruct(size, "float32") for size in (shape, table)]
    gradient = jax.grad(lambda x, table: jnp.sin(tied(x, table)).sum(), argnums=1)
    text = jax.jit(gradient).lower(*shapes).compile().as_text()
    results = [line.split("=")[1].split("{")[0].strip() for line in text.splitlines() if " dot(" in line]
    assert f"f32[{width},{table[0]}]" in results  # not folded with the transposition behind it
    assert f"f32[{table[0]},{width}]" not in results


def test_members_side_by_side_get_what_each_gets_alone(x64):
    generator = np.random.default_rng(1)
    x, table = (jnp.asarray(generator.normal(size=(3, *size))) for size in PAGES)
    gradient = jax.grad(lambda x, table: jnp.sin(tied(x, table)).sum(), argnums=1)
    alone = jnp.stack([gradient(x[i], table[i]) for i in range(3)])
    np.testing.assert_allclose(jax.vmap(gradient)(x, table), alone, atol=1e-12)
