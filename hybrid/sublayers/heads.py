"""What the kinds of softmax attention share: fields, projections to heads, rotation, biases, and the naive reference.

Every function takes the config and the kind's own group of it, so that an `A` and an `S` of one stack may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp
from hybrid.params import Param, normal, ones, zeros
from hybrid.sublayers.kind import Context
from hybrid.validation import Checked, ConfigError, PositiveFloat, PositiveInt, Share

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class HeadsConfig(Checked):
    """Heads and head_dim are the model's, and so is how positions are told."""

    rope_theta: PositiveFloat = 10000.0
    rope_fraction: Share = 1.0
    """The part of each head that is turned, its first numbers."""
    rope_scaling: Literal["none", "linear", "llama3"] = "none"
    """How a model is stretched past the length that it was trained on: all frequencies divided by rope_factor, or the
    low ones alone (Llama 3.1)."""
    rope_factor: PositiveFloat = 1.0
    rope_low: PositiveFloat = 1.0
    """llama3: frequencies that turn fewer times than this in rope_original_length are divided in full."""
    rope_high: PositiveFloat = 4.0
    """llama3: frequencies that turn more often than this are left alone."""
    rope_original_length: PositiveInt = 8192
    qk_norm: bool = False
    """RMSNorm of each query and key head, before the rotation."""
    qkv_bias: bool = False
    out_bias: bool = False
    scale: PositiveFloat | None = None
    """Of the scores; None: 1 / sqrt(head_dim)."""
    softcap: PositiveFloat | None = None
    """c: scores become c tanh(scores / c)."""
    gate: bool = False
    """Multiplies what the heads give by a sigmoid of the input, channel by channel (Qiu et al. 2025)."""
    form: Literal["auto", "reference", "plain", "chunked", "fused"] = "auto"
    """The form of hybrid.ops.attention."""

    def check(self) -> None:
        if self.rope_low >= self.rope_high:
            raise ConfigError("rope_low", f"{self.rope_low} is not allowed; must be below rope_high = {self.rope_high}")


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


def turned(config: ModelConfig, group: HeadsConfig) -> int:
    """Numbers of a head that the rotation turns."""
    return int(heads(config)[2] * group.rope_fraction)


def check_heads(config: ModelConfig, group: HeadsConfig) -> None:
    _, _, head_dim = heads(config)
    if config.positions == "rope" and (turned(config, group) % 2 or turned(config, group) == 0):
        field = "head_dim" if group.rope_fraction == 1.0 else "rope_fraction"
        value = head_dim if group.rope_fraction == 1.0 else group.rope_fraction
        raise ConfigError(field, f"{value} is not allowed; rotary positions need an even number")


def heads_spec(config: ModelConfig, group: HeadsConfig) -> dict[str, Any]:
    n_heads, n_kv_heads, head_dim = heads(config)
    d_model = config.d_model
    wide, narrow = n_heads * head_dim, n_kv_heads * head_dim
    tree = {
        "query": Param((d_model, wide), ("embed", "heads"), normal(config.init_std)),
        "key": Param((d_model, narrow), ("embed", "kv_heads"), normal(config.init_std)),
        "value": Param((d_model, narrow), ("embed", "kv_heads"), normal(config.init_std)),
        "out": Param((wide, d_model), ("heads", "embed"), normal(config.output_std)),
    }
    if group.gate:
        tree["gate"] = Param((d_model, wide), ("embed", "heads"), normal(config.init_std))
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


def _vectors(
    config: ModelConfig, group: HeadsConfig, params: Mapping[str, Any], name: str, n: int, x: Any, positions: Any
) -> Any:
    """(batch, length, n heads, head_dim) of "query", "key" or "value"."""
    from hybrid.norms import rms_norm
    from hybrid.ops.linear import linear
    from hybrid.positions import frequencies, rope, scale_frequencies

    v = linear(x, params[name], params.get(f"{name}_bias")).reshape(*x.shape[:2], n, -1)
    if name == "value":
        return v
    if group.qk_norm:
        v = rms_norm(v, params[f"{name}_norm"], config.norm_eps)
    if config.positions == "rope" and positions is not None:
        turns = frequencies(turned(config, group), group.rope_theta, jnp.promote_types(v.dtype, jnp.float32))
        v = rope(v, positions, scale_frequencies(turns, group))
    return v


def project(
    config: ModelConfig, group: HeadsConfig, params: Mapping[str, Any], x: Any, positions: Any
) -> tuple[Any, Any, Any]:
    """Queries (batch, length, n_heads, head_dim), keys and values (batch, length, n_kv_heads, head_dim)."""
    q = project_queries(config, group, params, x, positions)
    return q, *project_memory(config, group, params, x, positions)


def project_queries(config: ModelConfig, group: HeadsConfig, params: Mapping[str, Any], x: Any, positions: Any) -> Any:
    """(batch, length, n_heads, head_dim). positions None: nothing is turned."""
    return _vectors(config, group, params, "query", heads(config)[0], x, positions)


def project_memory(
    config: ModelConfig, group: HeadsConfig, params: Mapping[str, Any], x: Any, positions: Any
) -> tuple[Any, Any]:
    """Keys and values (batch, length, n_kv_heads, head_dim)."""
    n_kv_heads = heads(config)[1]
    return (
        _vectors(config, group, params, "key", n_kv_heads, x, positions),
        _vectors(config, group, params, "value", n_kv_heads, x, positions),
    )


def finish(params: Mapping[str, Any], x: Any, mixed: Any) -> Any:
    """(batch, length, n_heads, head_dim) of the heads, gated by x if there is a gate -> (batch, length, d_model)."""
    from hybrid.ops.linear import linear

    mixed = mixed.reshape(*x.shape[:2], -1)
    if "gate" in params:
        mixed = mixed * jax.nn.sigmoid(linear(x, params["gate"]))
    return linear(mixed, params["out"], params.get("out_bias"))


def score_bias(config: ModelConfig, context: Context, causal: bool) -> Callable[[Any, Any], Any] | None:
    """What is added to the scores for the distance of query and key, as a function of their positions (or None)."""
    from hybrid.positions import alibi, relative_bias

    if config.positions == "alibi":
        return jax.tree_util.Partial(partial(alibi, n_heads=heads(config)[0]))
    if config.positions == "t5":

        def bias(table: Any, q: Any, k: Any) -> Any:
            return relative_bias(q, k, table, causal, config.relative_distance)

        return jax.tree_util.Partial(bias, context.shared["relative_bias"])
    return None


def cached_form(group: HeadsConfig) -> str:
    """The form of hybrid.ops.cached_attention: `plain` where the group asks for all scores at once in training too."""
    return "plain" if group.form in ("plain", "reference") else "auto"


def reference(
    config: ModelConfig,
    group: HeadsConfig,
    params: Mapping[str, Any],
    x: Any,
    context: Context,
    *,
    causal: bool = True,
    window: int | None = None,
    memory: Any = None,
) -> Any:
    """One query at a time, head by head; rotations as products of complex numbers, biases distance by distance.

    memory: (batch, memory length, d_model) whose keys are read in place of x's own; all of them are seen.
    """
    n_heads, n_kv_heads, head_dim = heads(config)
    batch, length, _ = x.shape
    source = x if memory is None else memory
    half = turned(config, group) // 2

    def frequency(i: int) -> float:
        turn = group.rope_theta ** (-i / half)
        rounds = group.rope_original_length * turn / (2 * math.pi)
        slow = 1.0 / group.rope_factor
        share = {"none": 1.0, "linear": slow}.get(group.rope_scaling)
        if share is None:  # llama3
            kept = (rounds - group.rope_low) / (group.rope_high - group.rope_low)
            kept = min(max(kept, 0.0), 1.0)
            share = kept + (1.0 - kept) * slow
        return turn * share

    def vectors(name: str, head: int, x: Any) -> Any:
        columns = slice(head * head_dim, (head + 1) * head_dim)
        v = x @ params[name][:, columns] + params.get(f"{name}_bias", jnp.zeros(n_heads * head_dim))[columns]
        if name == "value":
            return v
        if group.qk_norm:
            power = (v**2).sum(-1, keepdims=True) / head_dim
            v = v / jnp.sqrt(power + config.norm_eps) * params[f"{name}_norm"]
        if config.positions == "rope" and memory is None:
            turns = jnp.array([frequency(i) for i in range(half)])
            z = (v[..., :half] + 1j * v[..., half : 2 * half]) * jnp.exp(1j * context.positions[..., None] * turns)
            v = jnp.concatenate([z.real, z.imag, v[..., 2 * half :]], axis=-1)
        return v

    def bias(head: int, distance: int) -> Any:
        """Of a key that stands `distance` before its query."""
        if memory is not None:
            return 0.0
        if config.positions == "alibi":
            whole = 2 ** int(math.log2(n_heads))
            order = head + 1 if head < whole else head - whole + 0.5
            return -(2.0 ** (-8 * order / whole)) * abs(distance)
        if config.positions == "t5":
            table = context.shared["relative_bias"]
            buckets, first = table.shape[0], 0
            if not causal:
                buckets //= 2
                first = buckets if distance < 0 else 0
            near, exact = abs(distance) if not causal else max(distance, 0), buckets // 2
            if near >= exact:
                spread = math.log(near / exact) / math.log(config.relative_distance / exact)
                near = min(exact + int(spread * (buckets - exact)), buckets - 1)
            return table[first + near, head]
        return 0.0

    queries = [vectors("query", head, x) for head in range(n_heads)]
    keys, values = ([vectors(name, head, source) for head in range(n_kv_heads)] for name in ("key", "value"))
    seen = jnp.ones((batch, length, source.shape[1]), bool)
    valid = context.padding if memory is None else context.memory_padding
    if valid is not None:
        seen &= valid[:, None]
    if memory is None:
        behind = jnp.arange(length)[:, None] - jnp.arange(length)[None]
        seen &= (behind >= 0) if causal else True
        seen &= (jnp.abs(behind) < window) if window is not None else True
        if context.segment_ids is not None:
            seen &= context.segment_ids[:, :, None] == context.segment_ids[:, None]
    outputs = []
    for head in range(n_heads):
        shared = head // (n_heads // n_kv_heads)
        distances = [[bias(head, t - s) for s in range(source.shape[1])] for t in range(length)]
        biases = jnp.stack([jnp.stack([jnp.asarray(b, x.dtype) for b in row]) for row in distances])

        def position(t: Any, head: int = head, shared: int = shared, biases: Any = biases) -> Any:
            scale = 1.0 / math.sqrt(head_dim) if group.scale is None else group.scale
            scores = (keys[shared] * queries[head][:, t, None]).sum(-1) * scale
            if group.softcap is not None:
                scores = group.softcap * jnp.tanh(scores / group.softcap)
            weights = jnp.where(seen[:, t], jnp.exp(scores + biases[t]), 0.0)
            total = weights.sum(-1, keepdims=True)  # 0 where all is padding
            return ((weights / jnp.where(total > 0, total, 1.0))[..., None] * values[shared]).sum(1)

        outputs.append(jax.lax.map(position, jnp.arange(length)).swapaxes(0, 1))
    mixed = jnp.concatenate(outputs, axis=-1)
    if group.gate:
        mixed = mixed / (1.0 + jnp.exp(-(x @ params["gate"])))
    return mixed @ params["out"] + params.get("out_bias", 0.0)
