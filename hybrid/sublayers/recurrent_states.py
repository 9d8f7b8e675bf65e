"""The horizontal direction of block-recurrent attention: how a window changes the states (Hutchins et al. 2022).

States attend to themselves and to the keys of two windows of tokens, and gates take what they found into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hybrid.lazy import jax, jnp
from hybrid.params import Param, normal, ones
from hybrid.sublayers.heads import heads

if TYPE_CHECKING:
    from hybrid.config import ModelConfig

Params = Mapping[str, Any]


# --- parameters -------------------------------------------------------------------------------------------------------


def projections(config: ModelConfig, queries: tuple[str, str], std: float) -> dict[str, Param]:
    """Two kinds of queries, keys and values of one source."""
    n_heads, n_kv_heads, head_dim = heads(config)
    d, wide, narrow = config.d_model, n_heads * head_dim, n_kv_heads * head_dim
    made = {name: Param((d, wide), ("embed", "heads"), normal(std)) for name in queries}
    return made | {name: Param((d, narrow), ("embed", "kv_heads"), normal(std)) for name in ("key", "value")}


def scales(config: ModelConfig, *names: str) -> dict[str, Param]:
    return {name: Param((heads(config)[0],), ("heads",), ones, decay=False) for name in names}


def states_spec(config: ModelConfig) -> dict[str, Any]:
    n_heads, _, head_dim = heads(config)
    d, group, found = config.d_model, config.block_recurrent, 2 * n_heads * head_dim
    d_ff = group.d_ff or config.width_ff
    tree: dict[str, Any] = {
        "initial": Param((group.n_states, d), (None, "embed"), normal(0.1), decay=False),
        "ids": Param((group.n_states, d), (None, "embed"), normal(1.0), decay=False),
        "norm": Param((d,), ("embed",), ones, decay=False),
        **projections(config, ("query", "token_query"), d**-0.5),
        **scales(config, "scale", "token_scale"),
    }
    if group.form != "single":
        out = Param((found, d), ("heads", "embed"), normal(found**-0.5))
        tree["mix"] = {"out": out, **_gate_spec(config, found, "heads")}
    if group.form != "skip":
        wide = d if group.form == "dual" else found
        tree["mlp"] = {
            "up": Param((wide, d_ff), ("embed", "mlp"), normal(wide**-0.5)),
            "down": Param((d_ff, d), ("mlp", "embed"), normal(d_ff**-0.5)),
            **_gate_spec(config, d_ff, "mlp"),
        }
    if group.form == "dual":
        tree["mlp"]["norm"] = Param((d,), ("embed",), ones, decay=False)
    return tree


def _gate_spec(config: ModelConfig, width: int, axis: str) -> dict[str, Param]:
    """Of a gate that looks at `width` numbers a state."""
    d = config.d_model
    bias = Param((d,), ("embed",), normal(0.1), decay=False)
    if config.block_recurrent.gate == "fixed":
        return {"gate_bias": bias}
    weight = Param((width, d), (axis, "embed"), normal((0.1 / width) ** 0.5))
    return {"input": weight, "input_bias": bias, "forget": weight, "forget_bias": bias}


# --- gates ------------------------------------------------------------------------------------------------------------


def _fixed_gate(config: ModelConfig, params: Params, memory: Any, hidden: Any, z: Any) -> Any:
    kept = jax.nn.sigmoid(params["gate_bias"].astype(memory.dtype))
    return kept * memory + (1 - kept) * z.astype(memory.dtype)


def _lstm_gate(config: ModelConfig, params: Params, memory: Any, hidden: Any, z: Any) -> Any:
    from hybrid.ops.linear import linear

    group, precise = config.block_recurrent, memory.dtype
    if group.lstm_input == "paper" and group.form != "single":  # `single` ends with tanh in any case
        z = jnp.tanh(z)
    forget = jax.nn.sigmoid(linear(hidden, params["forget"], params["forget_bias"]).astype(precise) + 1)
    take = jax.nn.sigmoid(linear(hidden, params["input"], params["input_bias"]).astype(precise) - 1)
    return forget * memory + take * z.astype(precise)


_GATES: dict[str, Callable[..., Any]] = {"fixed": _fixed_gate, "lstm": _lstm_gate}


def _gated_mix(config: ModelConfig, params: Params, memory: Any, found: Any) -> Any:
    from hybrid.ops.linear import linear

    mix = params["mix"]
    return _GATES[config.block_recurrent.gate](config, mix, memory, found, linear(found, mix["out"]))


def _gated_mlp(config: ModelConfig, params: Params, memory: Any, x: Any, last: Callable[[Any], Any]) -> Any:
    from hybrid.ops.linear import linear

    mlp = params["mlp"]
    hidden = jax.nn.relu(linear(x, mlp["up"]))
    return _GATES[config.block_recurrent.gate](config, mlp, memory, hidden, last(linear(hidden, mlp["down"])))


def _dual(config: ModelConfig, params: Params, memory: Any, found: Any) -> Any:
    from hybrid.norms import rms_norm

    memory = _gated_mix(config, params, memory, found)
    x = rms_norm(memory.astype(found.dtype), params["mlp"]["norm"], config.norm_eps)
    return _gated_mlp(config, params, memory, x, lambda z: z)


_FORMS: dict[str, Callable[..., Any]] = {
    "skip": _gated_mix,
    "single": lambda config, params, memory, found: _gated_mlp(config, params, memory, found, jnp.tanh),
    "dual": _dual,
}
"""(config, params of the states, memory, what attention found (batch, n_states, 2 wide)) -> memory."""


# --- attention --------------------------------------------------------------------------------------------------------


def vectors(params: Params, name: str, scale: str | None, x: Any, head_dim: int) -> Any:
    """(batch, length, heads, head_dim), of unit length times the scale of the head; values as they are."""
    from hybrid.ops.linear import linear

    v = linear(x, params[name]).reshape(*x.shape[:2], -1, head_dim)
    if name == "value":
        return v
    precise = v.astype(jnp.promote_types(v.dtype, jnp.float32))
    precise = precise * jax.lax.rsqrt((precise**2).sum(-1, keepdims=True) + 1e-6)
    if scale is not None:
        precise = precise * params[scale].astype(precise.dtype)[:, None]
    return precise.astype(v.dtype)


def seen_states(config: ModelConfig, params: Params, memory: Any, dtype: Any) -> tuple[Any, Any, Any]:
    """The states as they are looked at (batch, n_states, d_model), their keys and their values."""
    from hybrid.norms import rms_norm

    head_dim = heads(config)[2]
    h = rms_norm(memory.astype(dtype), params["norm"], config.norm_eps) + params["ids"].astype(dtype)
    return h, vectors(params, "key", None, h, head_dim), vectors(params, "value", None, h, head_dim)


def next_memory(config: ModelConfig, params: Params, memory: Any, keys: Any, values: Any) -> Any:
    """The states after a window. keys, values: (batch, 2 window, n_kv_heads, head_dim)."""
    head_dim = heads(config)[2]
    h, own_keys, own_values = seen_states(config, params, memory, keys.dtype)
    own = attend_all(vectors(params, "query", "scale", h, head_dim), own_keys, own_values)
    read = attend_all(vectors(params, "token_query", "token_scale", h, head_dim), keys, values)
    found = jnp.concatenate([own, read], axis=2)
    return _FORMS[config.block_recurrent.form](config, params, memory, found.reshape(*found.shape[:2], -1))


def attend_all(q: Any, k: Any, v: Any) -> Any:
    """Attention to all keys."""
    from hybrid.ops.attention import attention

    return attention(q, k, v, causal=False, scale=1.0, form="plain")
