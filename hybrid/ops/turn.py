"""A transposition that is fast where XLA's own is not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid.ops.forms import by_platform
from hybrid.ops.room import room


def turned(x: jax.Array, front: int = 0) -> jax.Array:
    """(rows, columns) -> (columns, front + rows), with `front` zeros in front of each new row.

    XLA's CPU backend transposes inside of elementwise loops, one number at a time: 25 times the time of a copy once an
    array has left the caches. Here a loop turns blocks that stay in them. One of the two axes should be a few hundred
    long at most.
    """
    rows, columns = x.shape
    block = by_platform(_BLOCK)
    if block is None or x.size < _LEAST or max(x.shape) < block:
        return jnp.pad(x.T, ((0, 0), (front, 0)))
    out = room((columns, front + rows), x.dtype, after=x)
    out = lax.dynamic_update_slice(out, jnp.zeros((columns, front), x.dtype), (0, 0)) if front else out
    long = 0 if rows >= columns else 1
    whole = max(rows, columns) // block

    def step(i: jax.Array, out: jax.Array) -> jax.Array:
        piece = lax.dynamic_slice_in_dim(x, i * block, block, axis=long)
        return lax.dynamic_update_slice(out, piece.T, _place(i * block, long, front))

    out = lax.fori_loop(0, whole, step, out)
    rest = lax.slice_in_dim(x, whole * block, None, axis=long)
    return lax.dynamic_update_slice(out, rest.T, _place(whole * block, long, front)) if rest.size else out


def _place(at: Any, long: int, front: int) -> tuple[Any, Any]:
    """Where in the output the block stands that begins at `at` along the axis `long` of the input."""
    return (0, front + at) if long == 0 else (at, front)


_BLOCK = {"cpu": 256, "other": None}
_LEAST = 2**20
"""Numbers: below this the caches hold all of it."""
