"""Positions: rotary embeddings, sinusoids, and the position of each token in its document."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def in_document(segment_ids: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """The position of each token in its document: counts from 0 where the segment id changes."""
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None]
    first = jnp.ones_like(segment_ids[:, :1], bool)
    starts = jnp.concatenate([first, segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def documents(segment_ids: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Documents numbered from 0 in each row: a segment id that comes back later is another document."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def frequencies(dim: int, theta: float, dtype: Any = jnp.float32) -> Float[Array, " half"]:
    """theta^(-2i/dim) for i in 0..dim/2 - 1 (Su et al. 2021, section 3.2.2; Vaswani et al. 2017, section 3.5)."""
    return 1.0 / theta ** (jnp.arange(0, dim, 2, dtype=dtype) / dim)


def rope(x: Float[Array, "B L H K"], positions: Int[Array, "B L"], theta: float) -> Float[Array, "B L H K"]:
    """Rotary position embedding on pairs (i, i + K/2), the order of Llama's published weights. K is even.

    Angles are float32 (float64 for float64 inputs), the result has the dtype of x.
    """
    precise = jnp.promote_types(x.dtype, jnp.float32)
    angles = positions[..., None].astype(precise) * frequencies(x.shape[-1], theta, precise)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(precise), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def sinusoids(positions: Int[Array, "B L"], width: int, dtype: Any = jnp.float32) -> Float[Array, "B L D"]:
    """Fixed positions, sines then cosines in turn (Vaswani et al. 2017, section 3.5). width is even."""
    precise = jnp.promote_types(dtype, jnp.float32)
    angles = positions[..., None].astype(precise) * frequencies(width, 10000.0, precise)
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*positions.shape, width).astype(dtype)
