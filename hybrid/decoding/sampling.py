"""One token from a row of logits: temperature, and the cuts of top-k and top-p (nucleus: Holtzman et al. 2019)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

COLDEST = 1e-30
"""Temperatures below are taken as this one, at which only the likeliest tokens have a probability."""


def kept(logits: Float[Array, "B V"], top_k: int | None = None, top_p: float | None = None) -> Bool[Array, "B V"]:
    """Which tokens may be drawn.

    top_k: the k likeliest. top_p: of those, with their probabilities made to add up to 1, the fewest of the likeliest
    whose probabilities reach p; at least one. Of equally likely tokens the lower ids come first.
    """
    if top_k is None and top_p is None:
        return jnp.ones(logits.shape, bool)
    vocabulary = logits.shape[-1]
    if top_p is None:
        assert top_k is not None
        values, tokens = jax.lax.top_k(logits, min(top_k, vocabulary))  # the lower index first where they are equal
        return _at(tokens, values > -jnp.inf, vocabulary)
    order = jnp.argsort(logits, axis=-1, stable=True, descending=True)
    ordered = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(vocabulary)
    if top_k is not None:
        ordered = jnp.where(rank < top_k, ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    chosen = (before < top_p) & (ordered > -jnp.inf) | (rank == 0)
    return _at(order, chosen, vocabulary)


def _at(index: Any, values: Any, size: int) -> Any:
    """(B, size) of False with values (B, K) at index (B, K)."""
    rows = jnp.arange(index.shape[0])[:, None]
    return jnp.zeros((index.shape[0], size), bool).at[rows, index].set(values)


def sample(
    logits: Float[Array, "B V"], key: Any, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Int[Array, " B"]:
    """One token a row from its logits; temperature 0 takes the likeliest (the lowest id where several are)."""
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / max(temperature, COLDEST)
    if top_k is not None or top_p is not None:
        logits = jnp.where(kept(logits, top_k, top_p), logits, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
