"""Causal attention inside a window, in blocks: time and memory linear in the length, and no array of length x length.

The row is cut into blocks of w = `window` positions. The w keys that a query sees, its own and the w - 1 before it, all
lie in its own block or the one before, so each block of queries attends to 2w keys and the rest is never computed. Half
of the 2w x w scores of a block are masked: the price of blocks of one shape.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hybrid.ops.forms import by_platform
from hybrid.ops.visibility import Visibility

Attend = Callable[[jax.Array, jax.Array, jax.Array, Visibility], jax.Array]
"""(q, k, v, visibility) -> the outputs of short rows, with all of their scores at once."""

QUERIES = {"gpu": 16384, "other": 1024}
"""Queries of a row whose scores are there at one time; those of others are computed again in the backward pass."""


def block_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility, attend: Attend, queries: int | None = None
) -> jax.Array:
    """Arguments and result as in hybrid/ops/attention.py; `attend` is what one block of queries does with its keys.

    visibility: causal, with a window, over as many queries as keys, whose positions are their places in the row.
    Temporaries: O(queries window) scores a head and O(length) copies of the inputs.
    """
    assert visibility.causal and visibility.window is not None
    batch, length = q.shape[:2]
    width = visibility.window
    if length <= 2 * width:
        return attend(q, k, v, visibility)
    queries = by_platform(QUERIES) if queries is None else queries
    together = max(1, min(queries // width, -(-length // width)))  # blocks
    rows = -(-length // (width * together))
    row = width * together

    def cut(array: jax.Array) -> jax.Array:
        """(batch, length, ...) -> (rows, batch, together width, ...), zeros at the end."""
        padded = jnp.pad(array, ((0, 0), (0, rows * row - length), *((0, 0),) * (array.ndim - 2)))
        return padded.reshape(batch, rows, row, *array.shape[2:]).swapaxes(0, 1)

    def with_before(array: jax.Array) -> jax.Array:
        """(rows, batch, (together + 1) width, ...): after the last block of the row before; zeros before the first."""
        before = jnp.pad(array[:-1, :, row - width :], ((1, 0), *((0, 0),) * (array.ndim - 1)))
        return jnp.concatenate([before, array], axis=2)

    def keys(array: jax.Array) -> jax.Array:
        """(batch, (together + 1) width, ...) -> (batch together, 2 width, ...)."""
        blocks = array.reshape(batch, together + 1, width, *array.shape[2:])
        pairs = jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=2)
        return pairs.reshape(batch * together, 2 * width, *array.shape[2:])

    def own(array: jax.Array) -> jax.Array:
        return array.reshape(batch * together, width, *array.shape[2:])

    # Zeros are no keys: `valid` says so.
    valid = jnp.ones((batch, length), bool) if visibility.k_valid is None else visibility.k_valid

    def one_row(parts: dict[str, jax.Array]) -> jax.Array:
        seen = Visibility(
            own(parts["q_positions"]), keys(parts["k_positions"]),
            own(parts["q_segments"]) if "q_segments" in parts else None,
            keys(parts["k_segments"]) if "k_segments" in parts else None,
            keys(parts["valid"]), causal=True, window=visibility.window,
        )  # fmt: skip
        out = attend(own(parts["q"]), keys(parts["k"]), keys(parts["v"]), seen)
        return out.reshape(batch, row, *out.shape[2:])

    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    given = {"q": cut(q), "q_positions": cut(index)}
    given |= {"k": with_before(cut(k)), "v": with_before(cut(v)), "valid": with_before(cut(valid))}
    given["k_positions"] = with_before(cut(index))
    if visibility.q_segments is not None and visibility.k_segments is not None:
        given |= {"q_segments": cut(visibility.q_segments), "k_segments": with_before(cut(visibility.k_segments))}
    if rows == 1:
        out = one_row({name: array[0] for name, array in given.items()})[None]
    else:
        out = jax.lax.map(jax.checkpoint(one_row), given)
    return out.swapaxes(0, 1).reshape(batch, rows * row, *out.shape[3:])[:, :length]
