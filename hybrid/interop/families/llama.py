"""Llama (Touvron et al. 2023; Llama 3: Grattafiori et al. 2024): RMSNorm, rotary positions, grouped queries, SwiGLU."""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.family import GATED, Family, Json, choose, must, pick, read_rope, repeats, say, write_rope
from hybrid.interop.rules import Entry, ignored, linear, norm, same, tied


def read(json: Json) -> ModelConfig:
    bias = pick(json, "attention_bias", False)
    return ModelConfig(
        pattern=f"(A-){pick(json, 'num_hidden_layers', 32)}",
        **read_sizes(json),
        attention={"qkv_bias": bias, "out_bias": bias, **read_rope(json)},
        mlp={"activation": choose(json, "hidden_act", GATED, "silu"), "bias": pick(json, "mlp_bias", False)},
    )


def read_sizes(json: Json) -> dict[str, Any]:
    """The fields that Llama shares with the families that followed it."""
    return {
        "vocab_size": pick(json, "vocab_size", 32000),
        "d_model": pick(json, "hidden_size", 4096),
        "n_heads": pick(json, "num_attention_heads", 32),
        "n_kv_heads": json.get("num_key_value_heads"),
        "head_dim": json.get("head_dim"),
        "d_ff": pick(json, "intermediate_size", 11008),
        "max_length": json.get("max_position_embeddings"),
        "norm_eps": pick(json, "rms_norm_eps", 1e-6),
        "tie_embeddings": pick(json, "tie_word_embeddings", False),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "llama", positions="rope", norm="rmsnorm")
    return {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": repeats(config, "A-", "llama"),
        **write_sizes(config),
        "attention_bias": config.attention.qkv_bias,
        "rope_parameters": write_rope(config.attention),
        "hidden_act": say("mlp.activation", config.mlp.activation, GATED, "llama"),
        "mlp_bias": config.mlp.bias,
    }


def write_sizes(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_sizes`."""
    assert config.n_heads is not None
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads or config.n_heads,
        "head_dim": config.head_dim or config.d_model // config.n_heads,
        "intermediate_size": config.width_ff,
        **({} if config.max_length is None else {"max_position_embeddings": config.max_length}),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    table = outer(config)
    for i in range(config.n_layers // 2):
        attention, mlp = f"layers/{2 * i}", f"layers/{2 * i + 1}"
        table += [
            *norm(f"model.layers.{i}.input_layernorm", f"{attention}/norm"),
            *attention_rules(f"model.layers.{i}.self_attn", f"{attention}/sublayer", config.attention),
            *norm(f"model.layers.{i}.post_attention_layernorm", f"{mlp}/norm"),
            *gated_rules(f"model.layers.{i}.mlp", f"{mlp}/sublayer", config.mlp.bias),
        ]
    return table


def outer(config: ModelConfig) -> list[Entry]:
    """What is not of a layer: embedding, last norm, head."""
    embedding = "model.embed_tokens.weight"
    return [
        same(embedding, "embedding/tokens"),
        *norm("model.norm", "final_norm"),
        *([tied("lm_head.weight", embedding)] if config.tie_embeddings else linear("lm_head", "head/kernel")),
        ignored("model.layers.*.rotary_emb.inv_freq", "made from the config"),
    ]


def attention_rules(theirs: str, ours: str, group: Any) -> list[Entry]:
    """The four projections; `group` is the config of our attention."""
    return [
        *linear(f"{theirs}.q_proj", f"{ours}/query", group.qkv_bias),
        *linear(f"{theirs}.k_proj", f"{ours}/key", group.qkv_bias),
        *linear(f"{theirs}.v_proj", f"{ours}/value", group.qkv_bias),
        *linear(f"{theirs}.o_proj", f"{ours}/out", group.out_bias),
    ]


def gated_rules(theirs: str, ours: str, bias: bool = False) -> list[Entry]:
    """A gated MLP."""
    return [
        *linear(f"{theirs}.gate_proj", f"{ours}/gate", bias),
        *linear(f"{theirs}.up_proj", f"{ours}/up", bias),
        *linear(f"{theirs}.down_proj", f"{ours}/down", bias),
    ]


FAMILY = Family(model_types=("llama",), read=read, write=write, rules=rules)
