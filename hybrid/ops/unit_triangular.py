"""Inverses of unit lower triangular matrices, many small ones at once, in matrix products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

_SUBSTITUTED = 16
"""Rows of the blocks on the diagonal that are inverted row by row."""


@jax.custom_vjp
def inverse(below: jax.Array) -> jax.Array:
    """(I + L)^-1, L what `below` (..., n, n) has below its diagonal; its other entries are not looked at.

    Blocks of 16 rows on the diagonal are inverted by substitution, all at once; then pairs of neighbouring blocks are
    put together, [[P, 0], [M, R]]^-1 = [[P^-1, 0], [-R^-1 M P^-1, R^-1]]. This is as exact as substitution, whatever
    the size of the entries (a product of I - L, I + L^2, I + L^4 ... is not). A solver of triangular systems in jax
    0.10 takes ten times as long on a CPU.
    """
    n = below.shape[-1]
    size = _SUBSTITUTED
    while size < n:
        size *= 2
    block = min(_SUBSTITUTED, n)
    if n > block and size != n:  # to 16, 32, 64 ... rows; what is added stands alone
        below = jnp.pad(below, [(0, 0)] * (below.ndim - 2) + [(0, size - n)] * 2)
    inverted = _by_substitution(_on_diagonal(below, block))  # (..., blocks, block, block)
    while inverted.shape[-3] > 1:
        upper, lower = inverted[..., ::2, :, :], inverted[..., 1::2, :, :]
        block = inverted.shape[-1]
        middle = _on_diagonal(below, 2 * block)[..., block:, :block]
        corner = -(lower @ (middle @ upper))
        inverted = jnp.concatenate(
            [
                jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1),
                jnp.concatenate([corner, lower], axis=-1),
            ],
            axis=-2,
        )
    return inverted[..., 0, :n, :n]


def _on_diagonal(matrix: jax.Array, block: int) -> jax.Array:
    """(..., n, n) -> (..., n / block, block, block)."""
    starts = range(0, matrix.shape[-1], block)
    return jnp.stack([matrix[..., i : i + block, i : i + block] for i in starts], axis=-3)


def _by_substitution(below: jax.Array) -> jax.Array:
    """Row i of the inverse is e_i minus what the rows above it give: T[i] = e_i - L[i, :i] T[:i]."""
    n = below.shape[-1]
    many = below.reshape(-1, n, n)
    identity = jnp.eye(n, dtype=below.dtype)

    def row(i: jax.Array, done: jax.Array) -> jax.Array:  # rows from i on are zero
        weights = lax.dynamic_index_in_dim(many, i, axis=1, keepdims=False)
        new = lax.dynamic_index_in_dim(identity, i, axis=0, keepdims=False) - jnp.einsum("mj,mjk->mk", weights, done)
        return lax.dynamic_update_index_in_dim(done, new, i, axis=1)

    return lax.fori_loop(0, n, row, jnp.zeros_like(many)).reshape(below.shape)


def _forward(below: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverted = inverse(below)
    return inverted, inverted


def _backward(inverted: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    turned = inverted.swapaxes(-1, -2)
    return (-jnp.tril(turned @ cotangent @ turned, -1),)


inverse.defvjp(_forward, _backward)
