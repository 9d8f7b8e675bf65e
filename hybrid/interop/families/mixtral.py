"""Mixtral (Jiang et al. 2024): Llama's attention, and in every layer experts whose chosen weights sum to 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.families import llama
from hybrid.interop.family import GATED, Family, Json, choose, must, pick, read_rope, repeats, say, write_rope
from hybrid.interop.rules import TRANSPOSED, Entry, linear, norm, stacked
from hybrid.validation import ConfigError


def read(json: Json) -> ModelConfig:
    defaults = {"intermediate_size": 14336, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, **json}
    window = json.get("sliding_window")
    rope = read_rope(json, theta=1e6)
    groups = {"attention": rope} if window is None else {"sliding_window": {"window": window, **rope}}
    return ModelConfig(
        pattern=f"({'A' if window is None else 'S'}E){pick(json, 'num_hidden_layers', 32)}",
        **llama.read_sizes(defaults),
        moe={
            "n_experts": pick(json, "num_local_experts", 8),
            "top_k": pick(json, "num_experts_per_tok", 2),
            "activation": choose(json, "hidden_act", GATED, "silu"),
            "gate": "mixtral",
        },
        **groups,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "mixtral", positions="rope", norm="rmsnorm")
    has_window = "S" in config.sequence
    attention = config.sliding_window if has_window else config.attention
    if attention.qkv_bias or attention.out_bias:
        raise ConfigError("attention.qkv_bias", "a mixtral model has no biases")
    return {
        "architectures": ["MixtralForCausalLM"],
        "num_hidden_layers": repeats(config, "SE" if has_window else "AE", "mixtral"),
        **llama.write_sizes(config),
        "sliding_window": attention.window if has_window else None,
        "rope_parameters": write_rope(attention),
        "hidden_act": say("moe.activation", config.moe.activation, GATED, "mixtral"),
        "num_local_experts": config.moe.n_experts,
        "num_experts_per_tok": config.moe.top_k,
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    table = llama.outer(config)
    group = config.sliding_window if "S" in config.sequence else config.attention
    for i in range(config.n_layers // 2):
        theirs, attention, experts = f"model.layers.{i}", f"layers/{2 * i}", f"layers/{2 * i + 1}"
        table += [
            *norm(f"{theirs}.input_layernorm", f"{attention}/norm"),
            *llama.attention_rules(f"{theirs}.self_attn", f"{attention}/sublayer", group),
            *norm(f"{theirs}.post_attention_layernorm", f"{experts}/norm"),
            *linear(f"{theirs}.block_sparse_moe.gate", f"{experts}/sublayer/router"),
            *expert_rules(f"{theirs}.block_sparse_moe.experts", f"{experts}/sublayer", config, NAMES),
        ]
    return table


NAMES = {"w1": "gate", "w2": "down", "w3": "up"}


def expert_rules(theirs: str, ours: str, config: ModelConfig, names: Mapping[str, str]) -> list[Entry]:
    """Experts that are stored one by one, as `theirs.0.NAME.weight`. names: theirs -> ours."""
    each = range(config.moe.n_experts)
    return [
        stacked([f"{theirs}.{e}.{name}.weight" for e in each], f"{ours}/{leaf}", TRANSPOSED)
        for name, leaf in names.items()
    ]


FAMILY = Family(
    model_types=("mixtral",),
    read=read,
    write=write,
    rules=rules,
    renames=((r"\.mlp\.(gate\.|experts\.\d)", r".block_sparse_moe.\1"),),
)
