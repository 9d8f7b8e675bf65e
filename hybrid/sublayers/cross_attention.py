"""`X`: attention from a decoder to the memory that an encoder made (Vaswani et al. 2017, section 3.2.3).

All of the memory is seen and no position is told: neither rotation nor bias (as T5 has it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid.lazy import jnp, struct
from hybrid.sublayers.heads import (
    HeadsConfig,
    finish,
    heads,
    heads_spec,
    project_memory,
    project_queries,
    reference,
)
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import ConfigError

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class CrossAttentionConfig(HeadsConfig):
    """The fields that all kinds of attention share; those of the rotation do nothing here."""


@struct
class CrossAttentionState:
    """Keys and values of the memory, computed once."""

    keys: Any
    """(batch, memory length, n_kv_heads, head_dim)"""
    values: Any
    valid: Any
    """(batch, memory length) bool"""


def _attend(config: ModelConfig, params: Mapping[str, Any], x: Any, k: Any, v: Any, valid: Any) -> Any:
    from hybrid.ops.on_mesh import attention

    group = config.cross_attention
    q = project_queries(config, group, params, x, None)
    mixed = attention(
        q, k.astype(q.dtype), v.astype(q.dtype), k_valid=valid, causal=False, scale=group.scale, softcap=group.softcap,
        form=group.form,
    )  # fmt: skip
    return finish(params, x, mixed)


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model); context.memory: (batch, memory length, d_model)."""
    if context.memory is None:
        raise ConfigError("memory", "must be given: X (cross_attention) reads the memory of an encoder")
    k, v = project_memory(config, config.cross_attention, params, context.memory, None)
    return _attend(config, params, x, k, v, context.memory_padding), Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> CrossAttentionState:
    """Of a memory of `capacity` positions, none of them valid: what `prepare` gives has this form."""
    _, n_kv_heads, head_dim = heads(config)
    cache = jnp.zeros((batch, capacity, n_kv_heads, head_dim), config.compute_dtype)
    return CrossAttentionState(keys=cache, values=cache, valid=jnp.zeros((batch, capacity), bool))


def prepare(config: ModelConfig, params: Mapping[str, Any], memory: Any, padding: Any = None) -> CrossAttentionState:
    """memory: (batch, memory length, d_model); padding: (batch, memory length), True at real positions."""
    k, v = project_memory(config, config.cross_attention, params, memory, None)
    valid = jnp.ones(memory.shape[:2], bool) if padding is None else padding
    dtype = config.compute_dtype
    return CrossAttentionState(keys=k.astype(dtype), values=v.astype(dtype), valid=valid)


def extend(
    config: ModelConfig, params: Mapping[str, Any], x: Any, state: CrossAttentionState, context: Context
) -> tuple:
    """x, y: (batch, new tokens, d_model); the state stays."""
    return _attend(config, params, x, state.keys, state.values, state.valid), state, Aux()


def check(config: ModelConfig) -> None:
    heads(config)


KIND = Kind(
    symbol="X",
    group="cross_attention",
    config=CrossAttentionConfig,
    # Documents of a packed row would need a memory each.
    traits=lambda config: Traits(reach="none", packing="refused"),
    spec=lambda config: heads_spec(config, config.cross_attention),
    apply=apply,
    reference=lambda config, params, x, context: reference(
        config, config.cross_attention, params, x, context, memory=context.memory
    ),
    state=state,
    extend=extend,
    prepare=prepare,
    check=check,
    counted={"form": "plain"},
)
