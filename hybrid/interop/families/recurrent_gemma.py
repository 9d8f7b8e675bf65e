"""RecurrentGemma (Botev et al. 2024), the published Griffin: two recurrent blocks to one of attention with a window.

transformers leaves a trace of left padding: the short convolution of a recurrent block reads padded positions. Ours
gives what the row gives without them.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.families import llama
from hybrid.interop.family import Family, Json, choose, must, pick, read_rope, say, write_rope
from hybrid.interop.rules import CONV, Entry, ignored, linear, norm, plus, reshaped, same, tied
from hybrid.sublayers.rglru import sizes
from hybrid.validation import ConfigError

KINDS = {"recurrent": "L", "attention": "S"}
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
GATED = {"gelu_tanh": "geglu_tanh", "gelu": "geglu"}
ONE_PLUS = plus(1.0)
"""Its norms multiply by 1 + w."""


def embedding_scale(width: int) -> float:
    """sqrt(width) in bfloat16, as the published model has it."""
    bits = int.from_bytes(struct.pack(">f", math.sqrt(width)), "big")
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return struct.unpack(">f", rounded.to_bytes(4, "big"))[0]


def read(json: Json) -> ModelConfig:
    width = pick(json, "hidden_size", 2560)
    activation = choose(json, "hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")
    return ModelConfig(
        pattern="".join(f"{KINDS[kind]}-" for kind in block_types(json)),
        vocab_size=pick(json, "vocab_size", 256000),
        d_model=width,
        n_heads=pick(json, "num_attention_heads", 10),
        n_kv_heads=json.get("num_key_value_heads"),
        d_ff=pick(json, "intermediate_size", 7680) // 2,
        norm_eps=pick(json, "rms_norm_eps", 1e-6),
        tie_embeddings=pick(json, "tie_word_embeddings", True),
        embedding_scale=embedding_scale(width),
        logit_softcap=pick(json, "logits_soft_cap", 30.0),
        sliding_window={
            "window": pick(json, "attention_window_size", 2048),
            "qkv_bias": pick(json, "attention_bias", False),
            "out_bias": True,
            **read_rope(json, fraction=0.5),
        },
        rglru={
            "width": json.get("lru_width"),
            "d_conv": pick(json, "conv1d_width", 4),
            "activation": activation,
        },
        mlp={"activation": GATED[activation], "bias": True},
    )


def block_types(json: Json) -> list[str]:
    """One entry a layer: `block_types`, over and over."""
    types = pick(json, "block_types", ["recurrent", "recurrent", "attention"])
    if not types or not set(types) <= set(KINDS):
        raise ConfigError("config.json: block_types", f"{types!r} is not read; each must be of {', '.join(KINDS)}")
    return [types[i % len(types)] for i in range(pick(json, "num_hidden_layers", 26))]


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "recurrent_gemma", positions="rope", norm="rmsnorm", norm_position="before")
    must(config, "recurrent_gemma", embedding_scale=embedding_scale(config.d_model))
    mixers, channels = config.sequence[::2], config.sequence[1::2]
    kinds = {ours: theirs for theirs, ours in KINDS.items()}
    if set(mixers) - set(kinds) or set(channels) != {"-"} or config.n_layers % 2:
        raise ConfigError("pattern", f"{config.pattern!r} cannot be said in a recurrent_gemma model (can: L- and S-)")
    if config.logit_softcap is None:
        raise ConfigError("logit_softcap", "None cannot be said in a recurrent_gemma model")
    width, blocks = sizes(config)
    if blocks != config.n_heads:
        problem = f"{blocks} cannot be said in a recurrent_gemma model (can: n_heads = {config.n_heads})"
        raise ConfigError("rglru.blocks", problem)
    activation = config.rglru.activation
    if config.mlp.activation != GATED[activation]:
        problem = f"{config.mlp.activation!r} cannot be said in a recurrent_gemma model (can: {GATED[activation]!r})"
        raise ConfigError("mlp.activation", problem)
    group = config.sliding_window
    return {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "num_hidden_layers": len(mixers),
        "block_types": [kinds[mixer] for mixer in mixers],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads or config.n_heads,
        "intermediate_size": 2 * config.width_ff,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "logits_soft_cap": config.logit_softcap,
        "attention_window_size": group.window,
        "attention_bias": group.qkv_bias,
        "rope_parameters": {**write_rope(group), "partial_rotary_factor": group.rope_fraction},
        "lru_width": width,
        "conv1d_width": config.rglru.d_conv,
        "hidden_activation": say("rglru.activation", activation, ACTIVATIONS, "recurrent_gemma"),
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    embedding = "model.embed_tokens.weight"
    table: list[Entry] = [
        same(embedding, "embedding/tokens"),
        *([tied("lm_head.weight", embedding)] if config.tie_embeddings else linear("lm_head", "head/kernel")),
        *norm("model.final_norm", "final_norm", False, ONE_PLUS),
        ignored("model.normalizer", "made from the config"),
    ]
    for i, mixer in enumerate(config.sequence[::2]):
        theirs, ours, mlp = f"model.layers.{i}", f"layers/{2 * i}", f"layers/{2 * i + 1}"
        table += [
            *norm(f"{theirs}.temporal_pre_norm", f"{ours}/norm", False, ONE_PLUS),
            *norm(f"{theirs}.channel_pre_norm", f"{mlp}/norm", False, ONE_PLUS),
            *llama.gated_rules(f"{theirs}.mlp_block", f"{mlp}/sublayer", True),
        ]
        block, ours = f"{theirs}.temporal_block", f"{ours}/sublayer"
        if mixer == "S":
            table += llama.attention_rules(block, ours, config.sliding_window)
        else:
            table += recurrent_rules(block, ours, config)
    return table


def recurrent_rules(theirs: str, ours: str, config: ModelConfig) -> list[Entry]:
    """A recurrent block; the gates' matrices are (blocks, in, out) there too."""
    width, blocks = sizes(config)
    by_block = reshaped((blocks, width // blocks), (width,))
    table: list[Entry] = [
        *linear(f"{theirs}.linear_x", f"{ours}/in", True),
        *linear(f"{theirs}.linear_y", f"{ours}/gate", True),
        *linear(f"{theirs}.linear_out", f"{ours}/out", True),
        same(f"{theirs}.conv_1d.weight", f"{ours}/conv", CONV),
        same(f"{theirs}.conv_1d.bias", f"{ours}/conv_bias"),
        same(f"{theirs}.rg_lru.recurrent_param", f"{ours}/rate"),
    ]
    for gate, name in (("input_gate", "input_gate"), ("recurrent_gate", "recurrence_gate")):
        table += [
            same(f"{theirs}.rg_lru.{gate}_weight", f"{ours}/{name}"),
            same(f"{theirs}.rg_lru.{gate}_bias", f"{ours}/{name}_bias", by_block),
        ]
    return table


FAMILY = Family(model_types=("recurrent_gemma",), read=read, write=write, rules=rules)
