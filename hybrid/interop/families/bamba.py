"""Bamba (IBM, Princeton, UIUC 2024): Mamba-2 and a few layers of attention, each with a SwiGLU MLP behind it."""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.families import llama, mamba2
from hybrid.interop.family import GATED, Family, Json, choose, must, pick, read_rope, require, say, write_rope
from hybrid.interop.rules import Entry, ignored, linear, norm, same, tied
from hybrid.sublayers.mamba2 import sizes
from hybrid.validation import ConfigError


def read(json: Json) -> ModelConfig:
    n, bias = pick(json, "num_hidden_layers", 32), pick(json, "attention_bias", False)
    attention = pick(json, "attn_layer_indices", [])
    if not set(attention) <= set(range(n)):
        raise ConfigError("config.json: attn_layer_indices", f"{attention} is not read; must lie in 0 to {n - 1}")
    require(json, hidden_act="silu")  # of the mixers too
    turned = pick(pick(json, "rope_parameters", {}), "partial_rotary_factor", 0.5)
    return ModelConfig(
        pattern="".join("A-" if i in attention else "D-" for i in range(n)),
        **read_sizes(json),
        attention={"qkv_bias": bias, "out_bias": bias, **read_rope(json), "rope_fraction": turned},
        mamba2={**read_mixer(json), **read_out_bias(json)},
        mlp={"activation": choose(json, "hidden_act", GATED, "silu"), "bias": pick(json, "mlp_bias", False)},
    )


def read_sizes(json: Json) -> dict[str, Any]:
    """Those of Llama, with the defaults of transformers' classes of Bamba and Falcon-H1."""
    return llama.read_sizes(
        {"vocab_size": 128000, "intermediate_size": 14336, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, **json}
    )


def read_mixer(json: Json, d_inner: int | None = None) -> dict[str, Any]:
    """The fields `mamba_*`. d_inner: None where it is expand times the width."""
    expand, heads = pick(json, "mamba_expand", 2), pick(json, "mamba_n_heads", 128)
    d_inner = d_inner or expand * pick(json, "hidden_size", 4096)
    head_dim = json.get("mamba_d_head", "auto")
    if heads < 1 or d_inner % heads or head_dim not in ("auto", None, d_inner // heads):
        problem = f"{head_dim!r} is not read; {heads} heads must make up {d_inner} channels"
        raise ConfigError("config.json: mamba_d_head", problem)
    return {
        "d_state": pick(json, "mamba_d_state", 256),
        "d_conv": pick(json, "mamba_d_conv", 4),
        "expand": expand,
        "d_inner": d_inner,
        "head_dim": d_inner // heads,
        "n_groups": pick(json, "mamba_n_groups", 1),
        "conv_bias": pick(json, "mamba_conv_bias", True),
        "proj_bias": pick(json, "mamba_proj_bias", False),
        **mamba2.read_limits(json),
    }


def read_out_bias(json: Json) -> dict[str, bool]:
    return {"out_bias": pick(json, "mamba_proj_bias", False)}


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "bamba", norm="rmsnorm", norm_position="before", positions="rope")
    mixers, channels = config.sequence[::2], config.sequence[1::2]
    if set(mixers) - {"A", "D"} or set(channels) != {"-"} or config.n_layers % 2:
        raise ConfigError("pattern", f"{config.pattern!r} cannot be said in a bamba model (can: A- and D-)")
    return {
        "architectures": ["BambaForCausalLM"],
        "num_hidden_layers": len(mixers),
        "attn_layer_indices": [i for i, mixer in enumerate(mixers) if mixer == "A"],
        **llama.write_sizes(config),
        "pad_token_id": None,
        "attention_bias": config.attention.qkv_bias,
        "rope_parameters": {**write_rope(config.attention), "partial_rotary_factor": config.attention.rope_fraction},
        **write_mixer(config),
        "mamba_expand": mamba2.expand_of(config, "bamba"),
        "hidden_act": say("mlp.activation", config.mlp.activation, {"silu": "swiglu"}, "bamba"),
        "mlp_bias": config.mlp.bias,
    }


def write_mixer(config: ModelConfig) -> dict[str, Any]:
    group, size = config.mamba2, sizes(config)
    return {
        "mamba_d_state": group.d_state,
        "mamba_d_conv": group.d_conv,
        "mamba_expand": group.expand,
        "mamba_n_heads": size.n_heads,
        "mamba_d_head": size.head_dim,
        "mamba_n_groups": group.n_groups,
        "mamba_conv_bias": group.conv_bias,
        "mamba_proj_bias": group.proj_bias,
        **mamba2.write_limits(group),
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    table = outer(config)
    for i, mixer in enumerate(config.sequence[::2]):
        theirs, ours, mlp = f"model.layers.{i}", f"layers/{2 * i}", f"layers/{2 * i + 1}"
        table += [
            *norm(f"{theirs}.input_layernorm", f"{ours}/norm"),
            *norm(f"{theirs}.pre_ff_layernorm", f"{mlp}/norm"),
            *llama.gated_rules(f"{theirs}.feed_forward", f"{mlp}/sublayer", config.mlp.bias),
        ]
        if mixer == "A":
            table += llama.attention_rules(f"{theirs}.self_attn", f"{ours}/sublayer", config.attention)
        else:
            table += mamba2.mixer_rules(f"{theirs}.mamba", f"{ours}/sublayer", config)
    return table


def outer(config: ModelConfig) -> list[Entry]:
    """What is not of a layer: embedding, last norm, head."""
    embedding = "model.embed_tokens.weight"
    return [
        same(embedding, "embedding/tokens"),
        *norm("model.final_layernorm", "final_norm"),
        *([tied("lm_head.weight", embedding)] if config.tie_embeddings else linear("lm_head", "head/kernel")),
        ignored("model.rotary_emb.inv_freq", "made from the config"),
    ]


FAMILY = Family(model_types=("bamba",), read=read, write=write, rules=rules)
