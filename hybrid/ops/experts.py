"""Products of rows with the weight of the group that each row belongs to, and rows moved to their group and back.

Rows of one group stand together: group e has sizes[e] rows, after those of the groups before it. Rows after the last
group belong to none; their result is zero.

`blocks`  a loop over blocks of at most ROWS rows, each within one group. As many operations as there are rows.
`ragged`  `jax.lax.ragged_dot`, for accelerators (under vmap all three arrays must be batched). On a CPU it takes as
          many operations as there are rows times groups: 8 groups, 4096 x 128 by 128 x 256, forward and gradient, took
          128 ms, and `blocks` 16 to 25.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hybrid.ops.forms import by_platform, lookup

ROWS, LEAST = 128, 8
"""Rows of a block: enough for a product to be efficient, few enough that the last block of a group wastes little."""


def grouped_linear(x: jax.Array, weight: jax.Array, sizes: jax.Array, form: str = "auto") -> jax.Array:
    """y[m] = x[m] @ weight[group of m], in the dtype of x; sums are at least float32.

    x: (rows, d_in). weight: (groups, d_in, d_out), cast to the dtype of x. sizes: (groups,) int32, at most `rows` in
    all. form: of FORMS, or "auto".
    """
    if form == "auto":
        form = by_platform({"cpu": "blocks", "other": "ragged"})
    return lookup(FORMS, form)(x, weight, sizes)


def grouped_linear_reference(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    """The definition: every row with every weight, and a sum in which one of them counts."""
    ends = jnp.cumsum(sizes)
    row = jnp.arange(x.shape[0])[:, None]
    belongs = (row >= ends - sizes) & (row < ends)
    return jnp.einsum("md,gde,mg->me", x, weight, belongs.astype(x.dtype))


def _ragged(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    belongs = (jnp.arange(x.shape[0]) < sizes.sum())[:, None]  # some platforms leave other rows as they were
    y = jax.lax.ragged_dot(
        jnp.where(belongs, x, 0), weight.astype(x.dtype), sizes, preferred_element_type=_precise(x)
    )  # fmt: skip
    return jnp.where(belongs, y, 0).astype(x.dtype)


# --- blocks -----------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def _blocks(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    return _block_products(x, weight.astype(x.dtype), sizes, 0)


def _blocks_forward(x, weight, sizes):
    return _blocks(x, weight, sizes), (x, weight, sizes)


def _blocks_backward(saved, dy):
    x, weight, sizes = saved
    dx = _block_products(dy.astype(x.dtype), weight.astype(x.dtype), sizes, 1)
    return dx, _block_gradient(x, dy.astype(x.dtype), weight, sizes), None


_blocks.defvjp(_blocks_forward, _blocks_backward)

FORMS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {"blocks": _blocks, "ragged": _ragged}


def _block_rows(rows: int, groups: int) -> int:
    """Rows of a block, about as many as a group has where all are even: one token at a time is no whole block."""
    even = 1 << max(rows // groups - 1, 0).bit_length()
    return min(ROWS, max(LEAST, even))


def _walk(sizes: jax.Array, rows: int, body: Callable, start: jax.Array) -> jax.Array:
    """body(group, first row, end of the group's rows, carry) -> carry for each block, in the order of the rows."""
    blocks = (sizes + rows - 1) // rows
    last, ends = jnp.cumsum(blocks), jnp.cumsum(sizes)

    def step(i: jax.Array, carry: jax.Array) -> jax.Array:
        group = jnp.sum(i >= last)
        first = ends[group] - sizes[group] + rows * (i - last[group] + blocks[group])
        return body(group, first, ends[group], carry)

    return jax.lax.fori_loop(0, last[-1], step, start)


def _slice(x: jax.Array, first: jax.Array, rows: int, end: jax.Array) -> jax.Array:
    """`rows` rows from `first`, zero from `end` on."""
    part = jax.lax.dynamic_slice_in_dim(x, first, rows)
    return jnp.where((first + jnp.arange(rows) < end)[:, None], part, 0)


def _block_products(x: jax.Array, weight: jax.Array, sizes: jax.Array, contract: int) -> jax.Array:
    """Rows times their weight, over its axis `contract` (0: d_in, 1: d_out). What a block writes past the end of its
    group, the blocks after it write again."""
    rows = _block_rows(x.shape[0], weight.shape[0])
    padded = jnp.pad(x, ((0, rows), (0, 0)))

    def body(group, first, end, y):
        dimensions = (((1,), (contract,)), ((), ()))
        part = _slice(padded, first, rows, end)
        product = jax.lax.dot_general(part, weight[group], dimensions, preferred_element_type=_precise(x))
        return jax.lax.dynamic_update_slice_in_dim(y, product.astype(y.dtype), first, 0)

    y = jnp.zeros((padded.shape[0], weight.shape[2 - contract]), x.dtype)
    return _walk(sizes, rows, body, y)[: x.shape[0]]


def _block_gradient(x: jax.Array, dy: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    """The gradient to the weights, (groups, d_in, d_out)."""
    rows = _block_rows(x.shape[0], weight.shape[0])
    x, dy = (jnp.pad(array, ((0, rows), (0, 0))) for array in (x, dy))

    def body(group, first, end, total):
        part, cotangent = _slice(x, first, rows, end), jax.lax.dynamic_slice_in_dim(dy, first, rows)
        dimensions = (((0,), (0,)), ((), ()))
        return total.at[group].add(jax.lax.dot_general(part, cotangent, dimensions, preferred_element_type=_precise(x)))

    return _walk(sizes, rows, body, jnp.zeros(weight.shape, _precise(x))).astype(weight.dtype)


def _precise(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


# --- rows moved -------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def moved(x: jax.Array, index: jax.Array, back: jax.Array) -> jax.Array:
    """y[i] = x[index[i]], zero where index[i] is len(x).

    x: (n, d). index: (m,) int32. back: (n, r) int32, the places i at which a row of x stands, len(y) where there is no
    further one: with it the gradient is a sum of rows instead of a scatter, which is slow on every platform.
    """
    return _taken(x, index)


def moved_reference(x: jax.Array, index: jax.Array, back: jax.Array) -> jax.Array:
    """As a product with a matrix of zeros and ones."""
    return jax.nn.one_hot(index, x.shape[0], dtype=x.dtype) @ x


def _taken(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="fill", fill_value=0)


def _moved_forward(x, index, back):
    return _taken(x, index), back


def _moved_backward(back, dy):
    n, copies = back.shape
    rows = _taken(dy, back.reshape(-1)).reshape(n, copies, dy.shape[-1])
    total = rows[:, 0] if copies == 1 else jnp.sum(rows, axis=1, dtype=_precise(dy)).astype(dy.dtype)
    return total, None, None


moved.defvjp(_moved_forward, _moved_backward)
