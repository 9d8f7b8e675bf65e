"""`S`: causal self-attention that sees the last `window` keys alone (Beltagy et al. 2020; Jiang et al. 2023: Mistral).

A token sees itself and the window - 1 tokens before it. Time and memory are linear in the length, and decoding carries
`window` slots whatever the capacity: the slot of a token is its number modulo the slots, so each new token takes the
place of the one that has just left the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.sublayers.heads import (
    HeadsConfig,
    cached_form,
    check_heads,
    finish,
    heads,
    heads_spec,
    project,
    reference,
    score_bias,
)
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import PositiveInt

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class SlidingWindowConfig(HeadsConfig):
    """The fields that all kinds of attention share, and the window."""

    window: PositiveInt = 128
    """Keys that a token sees, its own included."""
    form: Literal["auto", "reference", "plain", "chunked", "blocks", "fused"] = "auto"  # type: ignore[assignment]
    """The form of hybrid.ops.attention; `blocks` is for windows alone."""


@struct
class SlidingWindowState:
    """The last keys and values of each row in a ring. Constant in length."""

    keys: Any
    """(batch, n_kv_heads, head_dim, min(window, capacity)): as hybrid/ops/cached_attention.py reads it"""
    values: Any
    """(batch, n_kv_heads, slots, head_dim)"""
    positions: Any
    """(batch, slots) int32"""
    valid: Any
    """(batch, slots) bool"""
    filled: Any
    """(batch,) int32: real tokens so far; the next one takes slot filled % slots"""


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    from hybrid.ops.on_mesh import attention

    group = config.sliding_window
    q, k, v = project(config, group, params, x, context.positions)
    # Without positions, the window goes by the place in the row; segments part documents.
    mixed = attention(
        q, k, v, segment_ids=context.segment_ids, k_valid=context.padding,
        window=group.window, scale=group.scale, softcap=group.softcap, bias=score_bias(config, context, causal=True),
        form=group.form,
    )  # fmt: skip
    return finish(params, x, mixed), Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> SlidingWindowState:
    """Two rings of batch n_kv_heads min(window, capacity) head_dim numbers in the compute dtype, and 5 bytes a slot."""
    _, n_kv_heads, head_dim = heads(config)
    slots = min(config.sliding_window.window, capacity)
    return SlidingWindowState(
        keys=jnp.zeros((batch, n_kv_heads, head_dim, slots), config.compute_dtype),
        values=jnp.zeros((batch, n_kv_heads, slots, head_dim), config.compute_dtype),
        positions=jnp.zeros((batch, slots), jnp.int32),
        valid=jnp.zeros((batch, slots), bool),
        filled=jnp.zeros((batch,), jnp.int32),
    )


def extend(
    config: ModelConfig, params: Mapping[str, Any], x: Any, state: SlidingWindowState, context: Context
) -> tuple:
    """x, y: (batch, new tokens, d_model), any number of new tokens; padding takes no slot."""
    group = config.sliding_window
    q, k, v = project(config, group, params, x, context.positions)
    real = jnp.ones(x.shape[:2], bool) if context.padding is None else context.padding
    new = (k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), context.positions, real)
    read = _one if x.shape[1] == 1 else _several
    after, mixed = read(group, score_bias(config, context, causal=True), q, state, new)
    return finish(params, x, mixed), after, Aux()


def _one(group: SlidingWindowConfig, bias: Any, q: Any, state: SlidingWindowState, new: tuple) -> tuple:
    """One token a row: it takes its slot, in place, and reads the ring."""
    from hybrid.ops.cached_attention import cached_attention, put

    slots, real = state.valid.shape[1], new[3][:, 0]
    rings = (state.keys, state.values, state.positions, state.valid)
    keys, values, positions, valid = (
        put(ring, array, state.filled % slots, axis=axis, real=real)
        for ring, array, axis in zip(rings, new, SLOTS, strict=True)
    )
    filled = state.filled + real
    mixed = cached_attention(
        q, keys, values, q_positions=new[2], k_positions=positions, k_valid=valid,
        used=jnp.minimum(filled.max(), slots), window=group.window, scale=group.scale, softcap=group.softcap,
        bias=bias, form=cached_form(group),
    )  # fmt: skip
    return SlidingWindowState(keys=keys, values=values, positions=positions, valid=valid, filled=filled), mixed


def _several(group: SlidingWindowConfig, bias: Any, q: Any, state: SlidingWindowState, new: tuple) -> tuple:
    """The first of several tokens need keys that the last overwrite: they read the ring and the new keys."""
    from hybrid.ops.attention import attention

    rings, real = (state.keys, state.values, state.positions, state.valid), new[3]
    both = zip(rings, new, SLOTS, strict=True)
    keys, values, positions, valid = (
        jnp.concatenate([ring, array.astype(ring.dtype)], axis) for ring, array, axis in both
    )
    mixed = attention(
        q, keys.transpose(0, 3, 1, 2).astype(q.dtype), values.swapaxes(1, 2).astype(q.dtype), q_positions=new[2],
        k_positions=positions, k_valid=valid, window=group.window, scale=group.scale, softcap=group.softcap, bias=bias,
    )  # fmt: skip
    source, taken = _newest(real, state.filled, state.valid.shape[1])
    keys, values, positions, valid = (
        _replace(ring, array.astype(ring.dtype), source, taken, axis)
        for ring, array, axis in zip(rings, new, SLOTS, strict=True)
    )
    filled = state.filled + real.sum(1, dtype=jnp.int32)
    return SlidingWindowState(keys=keys, values=values, positions=positions, valid=valid, filled=filled), mixed


SLOTS = (3, 2, 1, 1)
"""The axis of the slots in keys, values, positions, validity."""


def _newest(real: Any, filled: Any, slots: int) -> tuple[Any, Any]:
    """For each slot (batch, slots): the new token that it holds afterwards, and whether it holds a new one at all."""
    count = jnp.cumsum(real, axis=1, dtype=jnp.int32)
    last = (filled + count[:, -1] - 1)[:, None]  # the number of the newest real token
    number = last - (last - jnp.arange(slots, dtype=jnp.int32)) % slots - filled[:, None]
    source = jax.vmap(jnp.searchsorted)(count, number + 1)
    return jnp.clip(source, 0, real.shape[1] - 1), number >= 0


def _replace(ring: Any, new: Any, source: Any, taken: Any, axis: int) -> Any:
    """The ring with new[source] in the slots that are taken."""
    picked = jax.vmap(lambda array, index: jnp.take(array, index, axis=axis - 1))(new, source)
    return jnp.where(
        taken.reshape(taken.shape[0], *(1,) * (axis - 1), -1, *(1,) * (ring.ndim - axis - 1)), picked, ring
    )


KIND = Kind(
    symbol="S",
    group="sliding_window",
    config=SlidingWindowConfig,
    traits=lambda config: Traits(reach="window"),
    spec=lambda config: heads_spec(config, config.sliding_window),
    apply=apply,
    reference=lambda config, params, x, context: reference(
        config, config.sliding_window, params, x, context, window=config.sliding_window.window
    ),
    state=state,
    extend=extend,
    check=lambda config: check_heads(config, config.sliding_window),
    counted={"form": "blocks"},
)
