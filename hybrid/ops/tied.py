"""The product of a head that is tied to the embedding, in the form that is fastest for the rows and the table."""

from __future__ import annotations

import jax

from hybrid.ops.few_rows import few
from hybrid.ops.forms import accumulator, by_platform
from hybrid.ops.linear import linear

_PAGE = {"cpu": 4096, "other": None}
"""Bytes. XLA's CPU backend reads the logits' gradient column by column for that to the table, which is slow where rows
lie a multiple of this apart (they then share sets of a cache): the product alone took 1.3 to 5 times as long as by
rows, in float32 on one thread. Head and loss of 256 tokens, vocabulary 8,192, d_model 64 went from 13.4 to 8.5 ms;
with 8,000 words they took 9.1 as they were. At vocabularies of 32,000 and 50,257 the copy made them slower."""


def tied(x: jax.Array, table: jax.Array) -> jax.Array:
    """x (..., d) @ table.T for a table (n, d): (..., n) with the dtype of x, accumulated in float32 at least.

    The same numbers in any form, `tied_reference` is the definition; the form goes by sizes and platform:

    - few rows (decoding): the last axes are contracted as they lie; of `x @ table.T` XLA's CPU backend makes a
      transposed copy of the table at every step of a loop;
    - rows of pages (`_PAGE`): a transposed copy of the table, so that the gradient is a product whose rows are read as
      they lie;
    - otherwise `linear`.
    """
    if few(x):
        table = table.astype(x.dtype)
        axes = (((x.ndim - 1,), (1,)), ((), ()))
        return jax.lax.dot_general(x, table, axes, preferred_element_type=accumulator(x, table)).astype(x.dtype)
    page = by_platform(_PAGE)
    if page and len(table) * x.dtype.itemsize % page == 0:
        # Without the barrier XLA folds the transposition into the product, and into its gradient.
        return linear(x, jax.lax.optimization_barrier(table.T))
    return linear(x, table.T)


def tied_reference(x: jax.Array, table: jax.Array) -> jax.Array:
    """The definition: y[..., n] = sum over d of x[..., d] table[n, d]."""
    return (x[..., None, :] * table).sum(-1)
