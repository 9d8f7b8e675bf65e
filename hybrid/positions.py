"""Positions: rotary embeddings, sinusoids, biases of distance, and the position of each token in its document."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


def scale_frequencies(turns: Float[Array, " half"], rule: Any) -> Float[Array, " half"]:
    """Frequencies of a model that is stretched past its trained length, by the fields `rope_*` of `rule`.

    `linear` divides all by the factor (Chen et al. 2023). `llama3` divides those that turn fewer than rope_low times in
    rope_original_length positions, leaves those that turn more than rope_high times, and goes over linearly between.
    """
    if rule.rope_scaling == "none":
        return turns
    slow = turns / rule.rope_factor
    if rule.rope_scaling == "linear":
        return slow
    rounds = rule.rope_original_length * turns / (2 * math.pi)
    kept = jnp.clip((rounds - rule.rope_low) / (rule.rope_high - rule.rope_low), 0.0, 1.0)
    return (1.0 - kept) * slow + kept * turns


def rope(
    x: Float[Array, "B L H K"], positions: Int[Array, "B L"], turns: Float[Array, " half"]
) -> Float[Array, "B L H K"]:
    """Rotary position embedding: pairs (i, i + half), the order of Llama's published weights, turn with the position.

    turns: angles a position, as `frequencies` gives them; where 2 half < K, the rest of a head stays as it is. Angles
    are float32 (float64 for float64 inputs), the result has the dtype of x.
    """
    precise, half = jnp.promote_types(x.dtype, jnp.float32), turns.shape[0]
    angles = positions[..., None].astype(precise) * turns
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = x[..., :half].astype(precise), x[..., half : 2 * half].astype(precise)
    parts = [(first * cos - second * sin).astype(x.dtype), (second * cos + first * sin).astype(x.dtype)]
    return jnp.concatenate([*parts, x[..., 2 * half :]], axis=-1)


def alibi(q_positions: Int[Array, "B Q"], k_positions: Int[Array, "B K"], n_heads: int) -> Float[Array, "B H Q K"]:
    """-slope * distance (Press et al. 2021). Slopes are 2^(-8 i / n); between powers of two, those of the next power in
    turns, as the published code has it."""
    whole = 2 ** (n_heads.bit_length() - 1)
    exponents = [(i + 1) / whole for i in range(whole)] + [(i + 0.5) / whole for i in range(n_heads - whole)]
    slopes = 2.0 ** (-8.0 * jnp.asarray(exponents, jnp.float32))
    distance = jnp.abs(q_positions[:, None, :, None] - k_positions[:, None, None, :])
    return -slopes[None, :, None, None] * distance


def relative_bias(
    q_positions: Int[Array, "B Q"],
    k_positions: Int[Array, "B K"],
    table: Float[Array, "buckets H"],
    causal: bool,
    longest: int,
) -> Float[Array, "B H Q K"]:
    """T5's bias (Raffel et al. 2020): a learned number a head for each bucket of distances.

    Half of the buckets are single distances, the others grow geometrically up to `longest`. Without causality the
    second half of the table is for keys after the query.
    """
    behind = q_positions[:, :, None] - k_positions[:, None, :]
    n = table.shape[0] if causal else table.shape[0] // 2
    distance = jnp.maximum(behind, 0) if causal else jnp.abs(behind)
    bucket = jnp.zeros_like(distance)
    for start in bucket_starts(n, longest)[1:]:
        bucket = bucket + (distance >= start)
    if not causal:
        bucket = bucket + jnp.where(behind < 0, n, 0)
    return jnp.moveaxis(table[bucket], -1, 1)


@functools.cache
def bucket_starts(n: int, longest: int) -> tuple[int, ...]:
    """The smallest distance of each of n buckets; in float32 as published, so that borders fall on the same side."""
    exact = n // 2
    distances = np.arange(exact, longest + 1, dtype=np.float32)
    spread = np.log(distances / exact) / np.float32(math.log(longest / exact))
    buckets = np.minimum(exact + (spread * (n - exact)).astype(np.int64), n - 1)
    # A bucket may be empty: it starts with the next one.
    return (*range(exact), *(int(distances[np.argmax(buckets >= bucket)]) for bucket in range(exact, n)))


def sinusoids(positions: Int[Array, "B L"], width: int, dtype: Any = jnp.float32) -> Float[Array, "B L D"]:
    """Fixed positions, sines then cosines in turn (Vaswani et al. 2017, section 3.5). width is even."""
    precise = jnp.promote_types(dtype, jnp.float32)
    angles = positions[..., None].astype(precise) * frequencies(width, 10000.0, precise)
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*positions.shape, width).astype(dtype)
