"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each sublayer, biases, tied head."""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.family import ACTIVATIONS, Family, Json, choose, must, pick, repeats, require, say
from hybrid.interop.rules import Entry, ignored, joined, norm, same, tied


def read(json: Json) -> ModelConfig:
    require(
        json, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False,
        tie_word_embeddings=True,
    )  # fmt: skip
    return ModelConfig(
        pattern=f"(A-){pick(json, 'n_layer', 12)}",
        vocab_size=pick(json, "vocab_size", 50257),
        d_model=pick(json, "n_embd", 768),
        n_heads=pick(json, "n_head", 12),
        d_ff=json.get("n_inner"),
        max_length=pick(json, "n_positions", 1024),
        positions="learned",
        norm="layernorm",
        norm_eps=pick(json, "layer_norm_epsilon", 1e-5),
        residual_init="depth",
        attention={"qkv_bias": True, "out_bias": True},
        mlp={"activation": choose(json, "activation_function", ACTIVATIONS, "gelu_new"), "bias": True},
    )


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "gpt2", positions="learned", norm="layernorm", tie_embeddings=True)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": repeats(config, "A-", "gpt2"),
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": say("mlp.activation", config.mlp.activation, ACTIVATIONS, "gpt2"),
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    """Its Conv1D holds (in, out), as ours does."""
    table: list[Entry] = [
        same("transformer.wte.weight", "embedding/tokens"),
        same("transformer.wpe.weight", "embedding/positions"),
        *norm("transformer.ln_f", "final_norm", bias=True),
        tied("lm_head.weight", "transformer.wte.weight"),
        ignored("transformer.h.*.attn.bias", "the causal mask"),
        ignored("transformer.h.*.attn.masked_bias", "the value of masked scores"),
    ]
    for i in range(config.n_layers // 2):
        theirs, attention, mlp = f"transformer.h.{i}", f"layers/{2 * i}", f"layers/{2 * i + 1}"
        table += [
            *norm(f"{theirs}.ln_1", f"{attention}/norm", bias=True),
            joined(f"{theirs}.attn.c_attn.weight", [f"{attention}/sublayer/{n}" for n in QKV], axis=1),
            joined(f"{theirs}.attn.c_attn.bias", [f"{attention}/sublayer/{n}_bias" for n in QKV]),
            same(f"{theirs}.attn.c_proj.weight", f"{attention}/sublayer/out"),
            same(f"{theirs}.attn.c_proj.bias", f"{attention}/sublayer/out_bias"),
            *norm(f"{theirs}.ln_2", f"{mlp}/norm", bias=True),
            same(f"{theirs}.mlp.c_fc.weight", f"{mlp}/sublayer/up"),
            same(f"{theirs}.mlp.c_fc.bias", f"{mlp}/sublayer/up_bias"),
            same(f"{theirs}.mlp.c_proj.weight", f"{mlp}/sublayer/down"),
            same(f"{theirs}.mlp.c_proj.bias", f"{mlp}/sublayer/down_bias"),
        ]
    return table


QKV = ("query", "key", "value")

FAMILY = Family(
    model_types=("gpt2",),
    read=read,
    write=write,
    rules=rules,
    renames=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),  # files of the model without a head
)
