"""`A`: causal self-attention with any number of key and value heads (Vaswani et al. 2017; Ainslie et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.params import Param, normal, ones, zeros
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import Checked, ConfigError, PositiveFloat

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class AttentionConfig(Checked):
    """Heads and head_dim are the model's, and so is whether positions are rotary."""

    rope_theta: PositiveFloat = 10000.0
    qk_norm: bool = False
    """RMSNorm of each query and key head, before the rotation."""
    qkv_bias: bool = False
    out_bias: bool = False
    softcap: PositiveFloat | None = None
    """c: scores become c tanh(scores / c)."""
    form: Literal["auto", "reference", "plain", "chunked", "fused"] = "auto"
    """The form of hybrid.ops.attention."""


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


def heads(config: ModelConfig) -> tuple[int, int, int]:
    """(query heads, key and value heads, head_dim); ConfigError where they do not fit."""
    n_heads = config.n_heads
    if n_heads is None:
        raise ConfigError("n_heads", f"must be given: the pattern {config.pattern!r} has attention")
    n_kv_heads = config.n_kv_heads or n_heads
    if config.head_dim is None and config.d_model % n_heads:
        raise ConfigError("n_heads", f"{n_heads} is not allowed; must divide d_model = {config.d_model}")
    if n_heads % n_kv_heads:
        raise ConfigError("n_kv_heads", f"{n_kv_heads} is not allowed; must divide n_heads = {n_heads}")
    return n_heads, n_kv_heads, config.head_dim or config.d_model // n_heads


def check(config: ModelConfig) -> None:
    _, _, head_dim = heads(config)
    if config.positions == "rope" and head_dim % 2:
        raise ConfigError("head_dim", f"{head_dim} is not allowed; rotary positions need an even number")


def spec(config: ModelConfig) -> dict[str, Any]:
    n_heads, n_kv_heads, head_dim = heads(config)
    d_model, group = config.d_model, config.attention
    wide, narrow = n_heads * head_dim, n_kv_heads * head_dim
    tree = {
        "query": Param((d_model, wide), ("embed", "heads"), normal(config.init_std)),
        "key": Param((d_model, narrow), ("embed", "kv_heads"), normal(config.init_std)),
        "value": Param((d_model, narrow), ("embed", "kv_heads"), normal(config.init_std)),
        "out": Param((wide, d_model), ("heads", "embed"), normal(config.output_std)),
    }
    if group.qkv_bias:
        tree["query_bias"] = Param((wide,), ("heads",), zeros, decay=False)
        tree["key_bias"] = Param((narrow,), ("kv_heads",), zeros, decay=False)
        tree["value_bias"] = Param((narrow,), ("kv_heads",), zeros, decay=False)
    if group.out_bias:
        tree["out_bias"] = Param((d_model,), ("embed",), zeros, decay=False)
    if group.qk_norm:
        tree["query_norm"] = Param((head_dim,), (None,), ones, decay=False)
        tree["key_norm"] = Param((head_dim,), (None,), ones, decay=False)
    return tree


def project(config: ModelConfig, params: Mapping[str, Any], x: Any, positions: Any) -> tuple[Any, Any, Any]:
    """Queries (batch, length, n_heads, head_dim), keys and values (batch, length, n_kv_heads, head_dim)."""
    from hybrid.norms import rms_norm
    from hybrid.ops.linear import linear
    from hybrid.positions import rope

    n_heads, n_kv_heads, head_dim = heads(config)
    q, k, v = (
        linear(x, params[name], params.get(f"{name}_bias")).reshape(*x.shape[:2], n, head_dim)
        for name, n in (("query", n_heads), ("key", n_kv_heads), ("value", n_kv_heads))
    )
    if config.attention.qk_norm:
        q = rms_norm(q, params["query_norm"], config.norm_eps)
        k = rms_norm(k, params["key_norm"], config.norm_eps)
    if config.positions == "rope":
        q = rope(q, positions, config.attention.rope_theta)
        k = rope(k, positions, config.attention.rope_theta)
    return q, k, v


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    from hybrid.ops.attention import attention
    from hybrid.ops.linear import linear

    q, k, v = project(config, params, x, context.positions)
    # Without positions, causality goes by the place in the row; segments part documents.
    mixed = attention(
        q, k, v, q_segments=context.segment_ids, k_segments=context.segment_ids, k_valid=context.padding,
        softcap=config.attention.softcap, form=config.attention.form,
    )  # fmt: skip
    return linear(mixed.reshape(*x.shape[:2], -1), params["out"], params.get("out_bias")), Aux()


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
    """x, y: (batch, new tokens, d_model); the tokens take the next slots."""
    from hybrid.ops.attention import attention
    from hybrid.ops.linear import linear

    _fits(x, state.valid)
    q, k, v = project(config, params, x, context.positions)
    write = jax.vmap(lambda cache, new, at: jax.lax.dynamic_update_slice_in_dim(cache, new, at, 0))
    state = AttentionState(
        keys=write(state.keys, k.astype(state.keys.dtype), state.filled),
        values=write(state.values, v.astype(state.values.dtype), state.filled),
        positions=write(state.positions, context.positions.astype(jnp.int32), state.filled),
        valid=write(state.valid, jnp.ones(x.shape[:2], bool), state.filled),
        filled=state.filled + x.shape[1],
    )
    mixed = attention(
        q, state.keys.astype(q.dtype), state.values.astype(q.dtype), q_positions=context.positions,
        k_positions=state.positions, k_valid=state.valid, softcap=config.attention.softcap, form="plain",
    )  # fmt: skip
    return linear(mixed.reshape(*x.shape[:2], -1), params["out"], params.get("out_bias")), state, Aux()


def reference(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
    """One query at a time, head by head; rotations as products of complex numbers."""
    n_heads, n_kv_heads, head_dim = heads(config)
    batch, length, _ = x.shape
    half = head_dim // 2

    def vectors(name: str, head: int) -> Any:
        columns = slice(head * head_dim, (head + 1) * head_dim)
        v = x @ params[name][:, columns] + params.get(f"{name}_bias", jnp.zeros(n_heads * head_dim))[columns]
        if name == "value":
            return v
        if config.attention.qk_norm:
            power = (v**2).sum(-1, keepdims=True) / head_dim
            v = v / jnp.sqrt(power + config.norm_eps) * params[f"{name}_norm"]
        if config.positions == "rope":
            turns = jnp.array([config.attention.rope_theta ** (-2.0 * i / head_dim) for i in range(half)])
            z = (v[..., :half] + 1j * v[..., half:]) * jnp.exp(1j * context.positions[..., None] * turns)
            v = jnp.concatenate([z.real, z.imag], axis=-1)
        return v

    queries = [vectors("query", head) for head in range(n_heads)]
    keys, values = ([vectors(name, head) for head in range(n_kv_heads)] for name in ("key", "value"))
    document = jnp.zeros((batch, length), int) if context.segment_ids is None else context.segment_ids
    real = jnp.ones((batch, length), bool) if context.padding is None else context.padding

    def position(t: Any) -> Any:
        seen = (jnp.arange(length) <= t) & (document == document[:, t, None]) & real
        outputs = []
        for head in range(n_heads):
            shared = head // (n_heads // n_kv_heads)
            scores = (keys[shared] * queries[head][:, t, None]).sum(-1) / math.sqrt(head_dim)
            if config.attention.softcap is not None:
                scores = config.attention.softcap * jnp.tanh(scores / config.attention.softcap)
            weights = jnp.where(seen, jnp.exp(scores), 0.0)
            total = weights.sum(-1, keepdims=True)  # 0 where all is padding
            weights = weights / jnp.where(total > 0, total, 1.0)
            outputs.append((weights[..., None] * values[shared]).sum(1))
        return jnp.concatenate(outputs, axis=-1)

    mixed = jax.lax.map(position, jnp.arange(length)).swapaxes(0, 1)
    return mixed @ params["out"] + params.get("out_bias", 0.0)


KIND = Kind(
    symbol="A",
    group="attention",
    config=AttentionConfig,
    traits=lambda config: Traits(),
    spec=spec,
    apply=apply,
    reference=reference,
    state=state,
    extend=extend,
    check=check,
    counted={"form": "plain"},
)
