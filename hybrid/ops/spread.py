"""Broadcasting a vector whose gradient is summed by a matrix product."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from hybrid.sequence import shards


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def spread(vector: jax.Array, shape: tuple[int, ...], axis: int = -1) -> jax.Array:
    """`vector` (n,) repeated to `shape`, whose `axis` has length n: scales, biases and taps of every position.

    `vector * x` means the same. Its gradient is a sum over positions, though, which XLA's CPU backend of jax 0.10 hands
    to a library that took 10 ms for a 2048 x 512 array where a product with a vector of ones takes less than one.
    """
    before, after = _around(shape, axis)
    return jnp.broadcast_to(vector[:, None], (before, vector.shape[0], after)).reshape(shape)


def _around(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    axis %= len(shape)
    return math.prod(shape[:axis]), math.prod(shape[axis + 1 :])


def _spread_forward(vector, shape, axis):
    return spread(vector, shape, axis), None


def _spread_backward(shape, axis, _, cotangent):
    accumulate = jnp.promote_types(cotangent.dtype, jnp.float32)
    if shards(*shape[1:2]) > 1:  # one axis of batch and length would have to be gathered
        others = tuple(i for i in range(len(shape)) if i != axis % len(shape))
        return (jnp.sum(cotangent, others, dtype=accumulate).astype(cotangent.dtype),)
    before, after = _around(shape, axis)
    parts = cotangent.reshape(before, shape[axis], after)
    if after != 1:
        ones = jnp.ones(after, cotangent.dtype)
        parts = jnp.einsum("bna,a->bn", parts, ones, preferred_element_type=accumulate)
    total = jnp.einsum(
        "bn,b->n", parts.reshape(before, shape[axis]), jnp.ones(before, parts.dtype), preferred_element_type=accumulate
    )
    return (total.astype(cotangent.dtype),)


spread.defvjp(_spread_forward, _spread_backward)
