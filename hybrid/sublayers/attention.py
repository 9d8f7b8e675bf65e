"""`A`: causal self-attention with any number of key and value heads (Vaswani et al. 2017; Ainslie et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid.lazy import jax, jnp, struct
from hybrid.sublayers.heads import (
    HeadsConfig,
    check_heads,
    finish,
    heads,
    heads_spec,
    project,
    reference,
    score_bias,
)
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import ConfigError

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class AttentionConfig(HeadsConfig):
    """The fields that all kinds of attention share."""


@struct
class AttentionState:
    """Keys and values of the tokens so far, each slot with its position, so that slots can be evicted."""

    keys: Any
    """(batch, capacity, n_kv_heads, head_dim)"""
    values: Any
    positions: Any
    """(batch, capacity) int32"""
    valid: Any
    """(batch, capacity) bool"""
    filled: Any
    """(batch,) int32: the slot that the next token takes"""


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    from hybrid.ops.attention import attention

    group = config.attention
    q, k, v = project(config, group, params, x, context.positions)
    # Without positions, causality goes by the place in the row; segments part documents.
    mixed = attention(
        q, k, v, q_segments=context.segment_ids, k_segments=context.segment_ids, k_valid=context.padding,
        scale=group.scale, softcap=group.softcap, bias=score_bias(config, context, causal=True), form=group.form,
    )  # fmt: skip
    return finish(params, x, mixed), Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> AttentionState:
    """Two caches of (batch, capacity, n_kv_heads, head_dim) in the compute dtype, and 5 bytes a slot."""
    _, n_kv_heads, head_dim = heads(config)
    cache = jnp.zeros((batch, capacity, n_kv_heads, head_dim), config.compute_dtype)
    return AttentionState(
        keys=cache,
        values=cache,
        positions=jnp.zeros((batch, capacity), jnp.int32),
        valid=jnp.zeros((batch, capacity), bool),
        filled=jnp.zeros((batch,), jnp.int32),
    )


def _fits(x: Any, slots: Any) -> None:
    if x.shape[1] > slots.shape[1]:
        raise ConfigError("capacity", f"the state has room for {slots.shape[1]} tokens; {x.shape[1]} were given")


def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: AttentionState, context: Context) -> tuple:
    """x, y: (batch, new tokens, d_model); the tokens take the next slots, padding takes slots that are not valid."""
    from hybrid.ops.attention import attention

    _fits(x, state.valid)
    group = config.attention
    q, k, v = project(config, group, params, x, context.positions)
    real = jnp.ones(x.shape[:2], bool) if context.padding is None else context.padding
    write = jax.vmap(lambda cache, new, at: jax.lax.dynamic_update_slice_in_dim(cache, new, at, 0))
    state = AttentionState(
        keys=write(state.keys, k.astype(state.keys.dtype), state.filled),
        values=write(state.values, v.astype(state.values.dtype), state.filled),
        positions=write(state.positions, context.positions.astype(jnp.int32), state.filled),
        valid=write(state.valid, real, state.filled),
        filled=state.filled + x.shape[1],
    )
    mixed = attention(
        q, state.keys.astype(q.dtype), state.values.astype(q.dtype), q_positions=context.positions,
        k_positions=state.positions, k_valid=state.valid, scale=group.scale, softcap=group.softcap,
        bias=score_bias(config, context, causal=True), form="plain",
    )  # fmt: skip
    return finish(params, x, mixed), state, Aux()


KIND = Kind(
    symbol="A",
    group="attention",
    config=AttentionConfig,
    traits=lambda config: Traits(),
    spec=lambda config: heads_spec(config, config.attention),
    apply=apply,
    reference=lambda config, params, x, context: reference(config, config.attention, params, x, context),
    state=state,
    extend=extend,
    check=lambda config: check_heads(config, config.attention),
    counted={"form": "plain"},
)
