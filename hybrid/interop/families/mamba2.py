"""Mamba-2 (Dao & Gu 2024), and what the hybrids with its mixer share: limits of the steps, tensors of the mixer.

transformers clips the steps to `time_step_limit` where it reads several tokens, and not where it reads one with a
cache. Ours clips in both, so that decoding gives what the whole gives; with the published limits (0, inf) they agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.families import mamba
from hybrid.interop.family import Family, Json, must, pick, repeats, require
from hybrid.interop.rules import CONV, TRANSPOSED, Entry, Leaf, Step, joined, norm, same, times
from hybrid.sublayers.mamba2 import STREAMS, sizes
from hybrid.validation import ConfigError


def read(json: Json) -> ModelConfig:
    require(json, hidden_act="silu")
    bias, heads, head_dim = pick(json, "use_bias", False), pick(json, "num_heads", 128), pick(json, "head_dim", 64)
    return ModelConfig(
        pattern=f"D{pick(json, 'num_hidden_layers', 64)}",
        vocab_size=pick(json, "vocab_size", 32768),
        d_model=pick(json, "hidden_size", 4096),
        norm_eps=pick(json, "layer_norm_epsilon", 1e-5),
        tie_embeddings=pick(json, "tie_word_embeddings", False),
        positions="none",
        mamba2={
            "d_state": pick(json, "state_size", 128),
            "d_conv": pick(json, "conv_kernel", 4),
            "expand": pick(json, "expand", 2),
            "d_inner": heads * head_dim,
            "head_dim": head_dim,
            "n_groups": pick(json, "n_groups", 8),
            "proj_bias": bias,
            "out_bias": bias,
            "conv_bias": pick(json, "use_conv_bias", True),
            **mamba.read_steps(json),
            **read_limits(json),
        },
    )


def read_limits(json: Json) -> dict[str, float | None]:
    """Our limits of the steps; infinity is a number of Python's json, or {"__float__": "Infinity"}."""
    said = json.get("time_step_limit")
    if said is None:
        return {}
    if not (isinstance(said, list | tuple) and len(said) == 2):
        raise ConfigError("config.json: time_step_limit", f"{said!r} is not read (read: two numbers)")
    low, high = (value.get("__float__", value) if isinstance(value, Mapping) else value for value in said)
    return {"dt_limit_min": low, "dt_limit_max": None if high in (math.inf, "Infinity") else high}


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "mamba2", norm="rmsnorm", norm_position="before")
    group, size = config.mamba2, sizes(config)
    return {
        "architectures": ["Mamba2ForCausalLM"],
        "num_hidden_layers": repeats(config, "D", "mamba2"),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "state_size": group.d_state,
        "conv_kernel": group.d_conv,
        "expand": expand_of(config, "mamba2"),
        "num_heads": size.n_heads,
        "head_dim": size.head_dim,
        "n_groups": group.n_groups,
        "use_bias": group.proj_bias,
        "use_conv_bias": group.conv_bias,
        **mamba.write_steps(group),
        **write_limits(group),
        **mamba.NO_TOKENS,
    }


def expand_of(config: ModelConfig, family: str) -> int:
    """d_inner / d_model of a family that has no other word for d_inner."""
    d_inner, group = sizes(config).d_inner, config.mamba2
    if d_inner != group.expand * config.d_model:
        allowed = f"can: mamba2.expand d_model = {group.expand * config.d_model}"
        raise ConfigError("mamba2.d_inner", f"{d_inner} cannot be said in a {family} model ({allowed})")
    return group.expand


def write_limits(group: Any) -> dict[str, Any]:
    if group.dt_limit_min == 0 and group.dt_limit_max is None:
        return {}
    high = {"__float__": "Infinity"} if group.dt_limit_max is None else group.dt_limit_max
    return {"time_step_limit": [group.dt_limit_min, high]}


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    table = mamba.outer(config)
    for i in range(config.n_layers):
        theirs, ours = f"backbone.layers.{i}", f"layers/{i}"
        table += [*norm(f"{theirs}.norm", f"{ours}/norm"), *mixer_rules(f"{theirs}.mixer", f"{ours}/sublayer", config)]
    return table


PROJECTIONS = ("z", "x", "B", "C", "dt")
"""The rows of `in_proj`."""


def mixer_rules(
    theirs: str,
    ours: str,
    config: ModelConfig,
    into: float = 1.0,
    inside: Mapping[str, float] | None = None,
    out: float = 1.0,
) -> list[Entry]:
    """The tensors of the mixer. into, inside (one a projection), out: published multipliers, folded into weights."""
    group = config.mamba2
    scales = {name: (inside or {}).get(name, 1.0) for name in PROJECTIONS}
    matrices = [Leaf(f"{ours}/in_{name}", (TRANSPOSED, *fold(into * scale))) for name, scale in scales.items()]
    table: list[Entry] = [
        joined(f"{theirs}.in_proj.weight", matrices),
        joined(f"{theirs}.conv1d.weight", [f"{ours}/conv_{name}" for name in STREAMS], CONV),
        same(f"{theirs}.dt_bias", f"{ours}/dt_bias"),
        same(f"{theirs}.A_log", f"{ours}/A_log"),
        same(f"{theirs}.D", f"{ours}/D"),
        same(f"{theirs}.out_proj.weight", f"{ours}/out", TRANSPOSED, *fold(out)),
    ]
    if group.proj_bias:
        biases = [Leaf(f"{ours}/in_{name}_bias", fold(scale)) for name, scale in scales.items()]
        table.append(joined(f"{theirs}.in_proj.bias", biases))
    if group.conv_bias:
        table.append(joined(f"{theirs}.conv1d.bias", [f"{ours}/conv_{name}_bias" for name in STREAMS]))
    if group.norm != "none":
        table.append(same(f"{theirs}.norm.weight", f"{ours}/norm"))
    if group.out_bias:
        table.append(same(f"{theirs}.out_proj.bias", f"{ours}/out_bias", *fold(out)))
    return table


def fold(factor: float) -> tuple[Step, ...]:
    """The step that multiplies by a factor; none for 1, so that numbers stay to the last bit."""
    return () if factor == 1.0 else (times(factor),)


FAMILY = Family(model_types=("mamba2",), read=read, write=write, rules=rules, renames=mamba.RENAMES)
