"""A matrix product over the last axis, in the form that XLA compiles best on every platform."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hybrid.ops.few_rows import few_rows
from hybrid.ops.spread import spread
from hybrid.sequence import shards


def linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`x @ weight + bias` for x (..., d_in), weight (d_in, d_out), bias (d_out,); the result has the dtype of x.

    x is flattened to two axes first: with three, XLA's CPU backend transposes the cotangent for the gradient to the
    weight inside an elementwise fusion, which made a whole training step a third slower. The weight is cast to
    the dtype of x (parameters may be float32 under a bfloat16 model). Products of 16-bit operands are accumulated in
    float32, in the gradients too, and rounded once; the gradient to a float32 weight is not rounded at all.
    """
    # Batch and length stay two axes where both are cut: of one, a device would have to be given all the length.
    flat = x if x.ndim > 2 and shards(x.shape[1]) > 1 else x.reshape(-1, x.shape[-1])
    narrow = x.dtype in (jnp.bfloat16, jnp.float16)
    if narrow:
        y = _narrow_product(flat, weight)
    elif flat.ndim == 2:
        y = few_rows(flat, weight.astype(x.dtype))
    else:
        y = flat @ weight.astype(x.dtype)
    if bias is not None:
        y = y + spread(bias.astype(y.dtype), y.shape)
    return y.astype(x.dtype).reshape(*x.shape[:-1], weight.shape[-1])


def linear_reference(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """The definition: y[..., e] = sum over d of x[..., d] weight[d, e], plus bias[e]."""
    y = jnp.sum(x[..., :, None] * weight, axis=-2)
    return y if bias is None else y + bias


def _dot(left: jax.Array, right: jax.Array, contract: tuple[Sequence[int], Sequence[int]]) -> jax.Array:
    return jax.lax.dot_general(left, right, (contract, ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _narrow_product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """(..., d_in) 16-bit times (d_in, d_out) -> float32.

    The derivative is written out because jax's own would multiply a float32 cotangent with a 16-bit operand, which
    leaves the fast 16-bit units of a GPU, TPU or CPU unused.
    """
    return _dot(x, weight.astype(x.dtype), ((x.ndim - 1,), (0,)))


def _narrow_forward(x, weight):
    return _narrow_product(x, weight), (x, weight)


def _narrow_backward(saved, dy):
    x, weight = saved
    dy = dy.astype(x.dtype)
    rows = range(x.ndim - 1)
    dx = _dot(dy, weight.astype(x.dtype), ((x.ndim - 1,), (1,))).astype(x.dtype)
    dweight = _dot(x, dy, (rows, rows)).astype(weight.dtype)
    return dx, dweight


_narrow_product.defvjp(_narrow_forward, _narrow_backward)
