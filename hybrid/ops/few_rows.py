"""A matrix product for very few rows: decoding, where each weight is read once for a row or two.

XLA's CPU backend multiplies one row with a matrix below about a million numbers on one thread, so half of the machine's
bandwidth lies idle. As a batched product over parts of the rows of the weight, whose results are added, the parts go to
threads of their own: one row through 48 matrices of 256 x 512 took 0.65 instead of 1.15 ms on two cores.
"""

from __future__ import annotations

import math

import jax

from hybrid.ops.forms import by_platform

FEW = 4
"""Rows up to which this form is the faster one: each row reads the weight for itself, after the first from a cache."""

PART = 2**18
"""Bytes of a part; XLA does not start a thread for less."""

MOST = 8
"""Parts. Their number goes by the sizes alone, so that results do not depend on the number of threads."""

_LIMIT = {"cpu": FEW, "other": 0}


def few(x: jax.Array) -> bool:
    """Whether x (..., d) has so few rows that the forms here are the faster ones."""
    return math.prod(x.shape[:-1]) <= by_platform(_LIMIT)


def parts(rows: int, shape: tuple[int, ...], itemsize: int) -> int:
    """How many parts the rows of a weight of this shape are cut into; 1: the plain product is as good."""
    if rows > by_platform(_LIMIT):
        return 1
    count = 1
    while 2 * count <= MOST and shape[0] % (2 * count) == 0 and math.prod(shape) * itemsize >= 2 * count * PART:
        count *= 2
    return count


def few_rows(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x (rows, d_in) @ weight (d_in, d_out), row by row, by `parts`; both of one dtype."""
    rows, d_in = x.shape
    count = parts(rows, weight.shape, weight.dtype.itemsize)
    if count == 1:
        return x @ weight
    cut = weight.reshape(count, d_in // count, -1)

    def product(row: jax.Array) -> jax.Array:
        batched = (((2,), (1,)), ((0,), (0,)))
        each = jax.lax.dot_general(row.reshape(count, 1, -1), cut, batched)
        return sum((each[i] for i in range(1, count)), each[0])

    return jax.lax.concatenate([product(x[row : row + 1]) for row in range(rows)], 0)
