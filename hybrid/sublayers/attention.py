"""`A`: causal self-attention with any number of key and value heads (Vaswani et al. 2017; Ainslie et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid.lazy import jnp, struct
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
    """(batch, n_kv_heads, head_dim, capacity): as hybrid/ops/cached_attention.py reads it"""
    values: Any
    """(batch, n_kv_heads, capacity, head_dim)"""
    positions: Any
    """(batch, capacity) int32"""
    valid: Any
    """(batch, capacity) bool"""
    filled: Any
    """(batch,) int32: the slot that the next token takes"""


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    from hybrid.ops.on_mesh import attention

    group = config.attention
    q, k, v = project(config, group, params, x, context.positions)
    # Without positions, causality goes by the place in the row; segments part documents.
    mixed = attention(
        q, k, v, segment_ids=context.segment_ids, k_valid=context.padding,
        scale=group.scale, softcap=group.softcap, bias=score_bias(config, context, causal=True), form=group.form,
    )  # fmt: skip
    return finish(params, x, mixed), Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> AttentionState:
    """Two caches of batch n_kv_heads capacity head_dim numbers in the compute dtype, and 5 bytes a slot."""
    _, n_kv_heads, head_dim = heads(config)
    return AttentionState(
        keys=jnp.zeros((batch, n_kv_heads, head_dim, capacity), config.compute_dtype),
        values=jnp.zeros((batch, n_kv_heads, capacity, head_dim), config.compute_dtype),
        positions=jnp.zeros((batch, capacity), jnp.int32),
        valid=jnp.zeros((batch, capacity), bool),
        filled=jnp.zeros((batch,), jnp.int32),
    )


def _fits(x: Any, slots: Any) -> None:
    if x.shape[1] > slots.shape[1]:
        raise ConfigError("capacity", f"the state has room for {slots.shape[1]} tokens; {x.shape[1]} were given")


def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: AttentionState, context: Context) -> tuple:
    """x, y: (batch, new tokens, d_model); the tokens take the next slots, padding takes slots that are not valid."""
    from hybrid.ops.cached_attention import cached_attention, put

    _fits(x, state.valid)
    group = config.attention
    q, k, v = project(config, group, params, x, context.positions)
    real = jnp.ones(x.shape[:2], bool) if context.padding is None else context.padding
    state = AttentionState(
        keys=put(state.keys, k.transpose(0, 2, 3, 1), state.filled, axis=3),
        values=put(state.values, v.swapaxes(1, 2), state.filled, axis=2),
        positions=put(state.positions, context.positions, state.filled, axis=1),
        valid=put(state.valid, real, state.filled, axis=1),
        filled=state.filled + x.shape[1],
    )
    mixed = cached_attention(
        q, state.keys, state.values, q_positions=context.positions, k_positions=state.positions, k_valid=state.valid,
        used=state.filled.max(), scale=group.scale, softcap=group.softcap,
        bias=score_bias(config, context, causal=True), form=cached_form(group),
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
