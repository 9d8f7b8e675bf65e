"""Which experts a token goes to, with what weights, and where its copies stand.

Scores s of a token over the experts, from the logits of the router, and weights w of the k that are chosen:

`mixtral`   s = softmax(logits);  w = s / sum of the chosen s, which is a softmax over the chosen logits
            (Jiang et al. 2024)
`jamba`     s = softmax(logits);  w = s as they are, so that they sum to less than 1 (Lieber et al. 2024; Switch)
`sigmoid`   s = sigmoid(logits);  w = s / sum of the chosen s (DeepSeek-V3, eqs. 12 to 16)

The chosen are the k greatest of s + bias; the bias moves the choice and never the weights (Wang et al. 2024). Of equal
scores the expert of the lower index is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hybrid.lazy import struct
from hybrid.ops.forms import lookup


@dataclass(frozen=True)
class Gate:
    scores: Callable[[jax.Array], jax.Array]
    normalised: bool
    """Whether the weights of the chosen are divided by their sum."""


GATES: dict[str, Gate] = {
    "mixtral": Gate(lambda logits: jax.nn.softmax(logits, axis=-1), normalised=True),
    "jamba": Gate(lambda logits: jax.nn.softmax(logits, axis=-1), normalised=False),
    "sigmoid": Gate(jax.nn.sigmoid, normalised=True),
}


@struct
class Choice:
    """What a router says of T tokens."""

    experts: jax.Array
    """(T, k) int32, the best first"""
    weights: jax.Array
    """(T, k)"""
    probabilities: jax.Array
    """(T, E): the scores, divided by their sum where they are no distribution"""


def choose(logits: jax.Array, top_k: int, gate: str, bias: jax.Array | None = None) -> Choice:
    """logits: (T, E), at least float32. bias: (E,), added to the scores in the choice alone."""
    chosen = lookup(GATES, gate)
    scores = chosen.scores(logits)
    ranked = scores if bias is None else scores + bias
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(ranked), top_k)
    weights = jnp.take_along_axis(scores, experts, axis=-1)
    if chosen.normalised:
        weights = weights / weights.sum(-1, keepdims=True)
    return Choice(experts=experts, weights=weights, probabilities=scores / scores.sum(-1, keepdims=True))


# --- what is to be kept even ------------------------------------------------------------------------------------------


def load(experts: jax.Array, real: jax.Array, n_experts: int) -> jax.Array:
    """(E,) float32: the share of all choices of the real tokens that fell on each expert; sums to 1.

    experts: (T, k). real: (T,) bool.
    """
    counts = (jax.nn.one_hot(experts, n_experts, dtype=jnp.float32) * real[:, None, None]).sum((0, 1))
    return counts / jnp.maximum(counts.sum(), 1.0)


def mean_over(values: jax.Array, real: jax.Array) -> jax.Array:
    """The mean over the real tokens of values (T, ...)."""
    weights = real.astype(values.dtype)
    return jnp.tensordot(weights, values, axes=1) / jnp.maximum(weights.sum(), 1)


def balance(shares: jax.Array, probabilities: jax.Array, real: jax.Array) -> jax.Array:
    """E sum_e f_e P_e: f is `load`, P the mean probability. Exactly 1 where either is even, E where one expert has all.

    The loss of Fedus et al. (2022) for any k: f counts all k choices and is divided by k, where other code bases leave
    out the division (their even value is then k).
    """
    return shares.shape[0] * jnp.sum(shares * mean_over(probabilities, real))


def router_z(logits: jax.Array, real: jax.Array) -> jax.Array:
    """The mean of logsumexp(logits)^2 (Zoph et al. 2022, eq. 5)."""
    return mean_over(jnp.square(jax.nn.logsumexp(logits, axis=-1)), real)


def entropy(distribution: jax.Array) -> jax.Array:
    """- sum p log p over the last axis, in nats; 0 log 0 = 0."""
    return -jnp.sum(distribution * jnp.log(jnp.where(distribution > 0, distribution, 1.0)), axis=-1)


# --- places -----------------------------------------------------------------------------------------------------------


@struct
class Places:
    """Where the copies of tokens stand. With S slots: `moved(x, token, slot)` fills them, the result of slot
    slot[t, j] is that of choice j of token t."""

    token: jax.Array
    """(S,) int32: the token in each slot, T in an empty one"""
    choice: jax.Array
    """(S,) int32: which of all choices (t k + j) it is for, T k in an empty one"""
    slot: jax.Array
    """(T, k) int32: the slot of each choice, S where there is none"""


def sorted_places(experts: jax.Array, real: jax.Array, n_experts: int) -> tuple[Places, jax.Array]:
    """A slot for every choice, those of an expert together: (places of T k slots, how many each expert has).

    Choices of tokens that are not real stand last, behind those of all experts.
    """
    tokens, k = experts.shape
    owner = jnp.where(real[:, None], experts, n_experts).reshape(-1)
    order = jnp.argsort(owner, stable=True).astype(jnp.int32)
    slot = jnp.zeros_like(order).at[order].set(jnp.arange(tokens * k, dtype=jnp.int32), unique_indices=True)
    sizes = (owner[:, None] == jnp.arange(n_experts)).sum(0, dtype=jnp.int32)
    return Places(token=order // k, choice=order, slot=slot.reshape(tokens, k)), sizes


def capacity_places(experts: jax.Array, real: jax.Array, n_experts: int, capacity: int) -> Places:
    """`capacity` slots for each of E experts, (expert, place) in order; a choice that finds its expert full has none.

    Earlier tokens come first, and of one token the better choice, so that no token takes the place of an earlier one.
    """
    tokens, k = experts.shape
    owner = experts.reshape(-1)
    taken = (owner[:, None] == jnp.arange(n_experts)) & jnp.repeat(real, k)[:, None]
    place = jnp.take_along_axis(jnp.cumsum(taken, axis=0, dtype=jnp.int32), owner[:, None], axis=1)[:, 0] - 1
    slots = n_experts * capacity
    kept = (place < capacity) & jnp.repeat(real, k)
    slot = jnp.where(kept, owner * capacity + place, slots).astype(jnp.int32)
    empty = jnp.full((slots,), tokens * k, jnp.int32)
    choice = empty.at[slot].set(jnp.arange(tokens * k, dtype=jnp.int32), mode="drop")
    return Places(token=choice // k, choice=choice, slot=slot.reshape(tokens, k))
