"""Gemma 3, the text model (Gemma Team 2025): five layers with a window to one without, norms before and after."""

from __future__ import annotations

import math
from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.families import llama
from hybrid.interop.family import GATED, Family, Json, choose, must, pick, read_rope, require, say, write_rope
from hybrid.interop.rules import Entry, norm, plus, same, tied
from hybrid.validation import ConfigError

KINDS = {"sliding_attention": "S", "full_attention": "A"}
GROUPS = {"sliding_attention": "sliding_window", "full_attention": "attention"}
ONE_PLUS = plus(1.0)
"""Its norms multiply by 1 + w."""


def read(json: Json) -> ModelConfig:
    # transformers reads attn_logit_softcapping and does nothing with it
    require(json, use_bidirectional_attention=False, attn_logit_softcapping=None)
    bias, width = pick(json, "attention_bias", False), pick(json, "hidden_size", 2304)
    shared = {
        "qk_norm": True,
        "qkv_bias": bias,
        "out_bias": bias,
        "scale": float(pick(json, "query_pre_attn_scalar", 256)) ** -0.5,
    }
    defaults = {
        "vocab_size": 262208, "hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "intermediate_size": 9216, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, **json,
    }  # fmt: skip
    return ModelConfig(
        pattern="".join(f"{KINDS[kind]}-" for kind in layer_types(json)),
        **llama.read_sizes(defaults),
        norm_position="both",
        embedding_scale=math.sqrt(width),
        logit_softcap=json.get("final_logit_softcapping"),
        attention={**shared, **_rope(json, "full_attention")},
        sliding_window={**shared, "window": pick(json, "sliding_window", 4096), **_rope(json, "sliding_attention")},
        mlp={"activation": choose(json, "hidden_activation", GATED, "gelu_pytorch_tanh")},
    )


def layer_types(json: Json) -> list[str]:
    """One entry a layer; files from before `layer_types` give the period of the layers without a window."""
    n, period = pick(json, "num_hidden_layers", 26), pick(json, "sliding_window_pattern", 6)
    kinds = pick(json, "layer_types", ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(n)])
    if len(kinds) != n or not set(kinds) <= set(KINDS):
        raise ConfigError("config.json: layer_types", f"must have {n} entries, each of {', '.join(KINDS)}")
    return kinds


def _rope(json: Json, kind: str) -> dict[str, Any]:
    said = pick(json, "rope_parameters", {}).get(kind)
    theta = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}[kind]
    if said is not None:
        return read_rope({"rope_parameters": said}, theta)
    if kind == "sliding_attention":  # rope_scaling of older files is for the layers without a window
        return read_rope({"rope_theta": json.get("rope_local_base_freq")}, theta)
    return read_rope({"rope_theta": json.get("rope_theta"), "rope_scaling": json.get("rope_scaling")}, theta)


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "gemma3_text", positions="rope", norm="rmsnorm", norm_position="both")
    mixers, channels = config.sequence[::2], config.sequence[1::2]
    kinds = {ours: theirs for theirs, ours in KINDS.items()}
    if set(mixers) - set(kinds) or set(channels) != {"-"} or config.n_layers % 2:
        raise ConfigError("pattern", f"{config.pattern!r} cannot be said in a gemma3_text model (can: S- and A-)")
    group = config.sliding_window if "S" in mixers else config.attention
    sizes = llama.write_sizes(config)
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": len(mixers),
        **sizes,
        "layer_types": [kinds[mixer] for mixer in mixers],
        "sliding_window": config.sliding_window.window,
        "rope_parameters": {theirs: write_rope(getattr(config, ours)) for theirs, ours in GROUPS.items()},
        "query_pre_attn_scalar": sizes["head_dim"] if group.scale is None else round(group.scale**-2),
        "attention_bias": group.qkv_bias,
        "final_logit_softcapping": config.logit_softcap,
        "hidden_activation": say("mlp.activation", config.mlp.activation, GATED, "gemma3_text"),
        "pad_token_id": None,
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    table: list[Entry] = [
        same("model.embed_tokens.weight", "embedding/tokens"),
        tied("lm_head.weight", "model.embed_tokens.weight"),
        *norm("model.norm", "final_norm", False, ONE_PLUS),
    ]
    for i, kind in enumerate(layer_types(json)):
        theirs, mixer, mlp = f"model.layers.{i}", f"layers/{2 * i}", f"layers/{2 * i + 1}"
        table += [
            *norm(f"{theirs}.input_layernorm", f"{mixer}/norm", False, ONE_PLUS),
            *llama.attention_rules(f"{theirs}.self_attn", f"{mixer}/sublayer", getattr(config, GROUPS[kind])),
            same(f"{theirs}.self_attn.q_norm.weight", f"{mixer}/sublayer/query_norm", ONE_PLUS),
            same(f"{theirs}.self_attn.k_norm.weight", f"{mixer}/sublayer/key_norm", ONE_PLUS),
            *norm(f"{theirs}.post_attention_layernorm", f"{mixer}/norm_after", False, ONE_PLUS),
            *norm(f"{theirs}.pre_feedforward_layernorm", f"{mlp}/norm", False, ONE_PLUS),
            *llama.gated_rules(f"{theirs}.mlp", f"{mlp}/sublayer"),
            *norm(f"{theirs}.post_feedforward_layernorm", f"{mlp}/norm_after", False, ONE_PLUS),
        ]
    return table


FAMILY = Family(model_types=("gemma3_text",), read=read, write=write, rules=rules)
