"""Jamba (Lieber et al. 2024): attention without positions in every so many layers and Mamba in the others, experts in
every so many and dense MLPs in the others.

Mamba's dt, B and C are normalised. The weights of the chosen experts are left as the softmax over all of them has them.
"""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.families.llama import attention_rules, gated_rules
from hybrid.interop.families.mamba import mixer_rules
from hybrid.interop.families.mixtral import expert_rules
from hybrid.interop.family import GATED, Family, Json, choose, must, pick, say
from hybrid.interop.rules import Entry, linear, norm, same, tied
from hybrid.readers import from_period
from hybrid.validation import ConfigError


def read(json: Json) -> ModelConfig:
    activation, eps = choose(json, "hidden_act", SILU, "silu"), pick(json, "rms_norm_eps", 1e-6)
    experts, rank = pick(json, "num_experts", 16), json.get("mamba_dt_rank", "auto")
    pattern = from_period(
        pick(json, "num_hidden_layers", 32),
        pick(json, "attn_layer_period", 8),
        pick(json, "attn_layer_offset", 4),
        pick(json, "expert_layer_period", 2),
        pick(json, "expert_layer_offset", 1),
        expert="E" if experts > 1 else "-",
    )
    return ModelConfig(
        pattern=pattern,
        vocab_size=pick(json, "vocab_size", 65536),
        d_model=pick(json, "hidden_size", 4096),
        n_heads=pick(json, "num_attention_heads", 32),
        n_kv_heads=json.get("num_key_value_heads", 8),
        head_dim=json.get("head_dim"),
        d_ff=pick(json, "intermediate_size", 14336),
        norm_eps=eps,
        tie_embeddings=pick(json, "tie_word_embeddings", False),
        positions="none",
        max_length=json.get("max_position_embeddings"),
        mamba={
            "d_state": pick(json, "mamba_d_state", 16),
            "d_conv": pick(json, "mamba_d_conv", 4),
            "expand": pick(json, "mamba_expand", 2),
            "dt_rank": None if rank == "auto" else rank,
            "conv_bias": pick(json, "mamba_conv_bias", True),
            "proj_bias": pick(json, "mamba_proj_bias", False),
            "inner_norm": True,
            "inner_norm_eps": eps,
        },
        mlp={"activation": activation},
        moe={
            "n_experts": experts,
            "top_k": min(pick(json, "num_experts_per_tok", 2), experts),
            "activation": activation,
            "gate": "jamba",
        },
    )


SILU = {"silu": GATED["silu"]}
"""The activation is Mamba's too."""


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "jamba", norm="rmsnorm", norm_position="before")
    mixers, channels = config.sequence[::2], config.sequence[1::2]
    if config.n_layers % 2 or not {*mixers} <= {"A", "M"} or not {*channels} <= {"-", "E"}:
        problem = "cannot be said in a jamba model (can: M or A and then - or E, again and again)"
        raise ConfigError("pattern", f"{config.pattern!r} {problem}")
    attention = periodic(mixers, "A")
    experts = periodic(channels, "E")
    group, inner = config.mamba, {"mlp": "-", "moe": "E"}
    for name, symbol in inner.items():
        if symbol in channels:
            say(f"{name}.activation", getattr(config, name).activation, SILU, "jamba")
    heads = config.n_heads or 1
    return {
        "architectures": ["JambaForCausalLM"],
        "num_hidden_layers": len(mixers),
        "attn_layer_period": attention[0],
        "attn_layer_offset": attention[1],
        "expert_layer_period": experts[0],
        "expert_layer_offset": experts[1],
        "num_experts": config.moe.n_experts if "E" in channels else 1,
        "num_experts_per_tok": config.moe.top_k,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.width_ff,
        "num_attention_heads": heads,
        "num_key_value_heads": config.n_kv_heads or heads,
        **({} if config.head_dim is None else {"head_dim": config.head_dim}),
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **({} if config.max_length is None else {"max_position_embeddings": config.max_length}),
        "mamba_d_state": group.d_state,
        "mamba_d_conv": group.d_conv,
        "mamba_expand": group.expand,
        "mamba_dt_rank": group.dt_rank or "auto",
        "mamba_conv_bias": group.conv_bias,
        "mamba_proj_bias": group.proj_bias,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def periodic(symbols: tuple[str, ...], wanted: str) -> tuple[int, int]:
    """(period, offset) that put `wanted` where it stands; ConfigError where none do."""
    where = {i for i, symbol in enumerate(symbols) if symbol == wanted}
    for period in range(1, len(symbols) + 2):
        offset = min(where, default=period - 1)
        if offset < period and where == set(range(offset, len(symbols), period)):
            return period, offset
    raise ConfigError("pattern", f"{wanted} in layers {sorted(where)} of {len(symbols)} have no period and offset")


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    embedding = "model.embed_tokens.weight"
    table: list[Entry] = [
        same(embedding, "embedding/tokens"),
        *norm("model.final_layernorm", "final_norm"),
        *([tied("lm_head.weight", embedding)] if config.tie_embeddings else linear("lm_head", "head/kernel")),
    ]
    for i in range(config.n_layers // 2):
        theirs, mixer, channel = f"model.layers.{i}", f"layers/{2 * i}", f"layers/{2 * i + 1}"
        table += norm(f"{theirs}.input_layernorm", f"{mixer}/norm")
        if config.sequence[2 * i] == "A":
            table += attention_rules(f"{theirs}.self_attn", f"{mixer}/sublayer", config.attention)
        else:
            table += mamba_rules(f"{theirs}.mamba", f"{mixer}/sublayer", config)
        table += norm(f"{theirs}.pre_ff_layernorm", f"{channel}/norm")
        if config.sequence[2 * i + 1] == "E":
            table += linear(f"{theirs}.feed_forward.router", f"{channel}/sublayer/router")
            table += expert_rules(f"{theirs}.feed_forward.experts", f"{channel}/sublayer", config, NAMES)
        else:
            table += gated_rules(f"{theirs}.feed_forward", f"{channel}/sublayer")
    return table


NAMES = {"gate_proj": "gate", "down_proj": "down", "up_proj": "up"}


def mamba_rules(theirs: str, ours: str, config: ModelConfig) -> list[Entry]:
    """Mamba's, and its inner norms."""
    norms = [same(f"{theirs}.{name.lower()}_layernorm.weight", f"{ours}/{name}_norm") for name in ("dt", "B", "C")]
    return [*mixer_rules(theirs, ours, config), *(norms if config.mamba.inner_norm else [])]


FAMILY = Family(model_types=("jamba",), read=read, write=write, rules=rules)
