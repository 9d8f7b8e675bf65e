"""Mistral 7B (Jiang et al. 2023): Llama with a sliding window, or without one where the file says null (v0.2, v0.3)."""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.families import llama
from hybrid.interop.family import GATED, Family, Json, choose, must, pick, read_rope, repeats, say, write_rope
from hybrid.interop.rules import Entry
from hybrid.validation import ConfigError


def read(json: Json) -> ModelConfig:
    defaults = {"intermediate_size": 14336, "num_key_value_heads": 8, **json}
    window = json.get("sliding_window", 4096)  # null is no window, absent is the class's default
    groups: dict[str, Any] = {"attention": read_rope(json)}
    if window is not None:
        groups = {"sliding_window": {"window": window, **read_rope(json)}}
    return ModelConfig(
        pattern=f"({'A' if window is None else 'S'}-){pick(json, 'num_hidden_layers', 32)}",
        **llama.read_sizes(defaults),
        mlp={"activation": choose(json, "hidden_act", GATED, "silu")},
        **groups,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "mistral", positions="rope", norm="rmsnorm")
    has_window = "S" in config.sequence
    group = config.sliding_window if has_window else config.attention
    if group.qkv_bias or group.out_bias or config.mlp.bias:
        raise ConfigError("mlp.bias" if config.mlp.bias else "qkv_bias", "a mistral model has no biases")
    return {
        "architectures": ["MistralForCausalLM"],
        "num_hidden_layers": repeats(config, "S-" if has_window else "A-", "mistral"),
        **llama.write_sizes(config),
        "sliding_window": group.window if has_window else None,
        "rope_parameters": write_rope(group),
        "hidden_act": say("mlp.activation", config.mlp.activation, GATED, "mistral"),
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    return llama.rules(config, json)


FAMILY = Family(model_types=("mistral",), read=read, write=write, rules=rules)
