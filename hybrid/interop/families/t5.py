"""T5 (Raffel et al. 2020) 1.0 and 1.1: encoder and decoder, learned biases of distance, scores that are not scaled.

1.0 has ReLU and a head that is tied and scaled by 1 / sqrt(d_model); 1.1 (also mT5's and FLAN-T5's form) a gated GELU
and a head of its own.
"""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.family import Family, Json, choose, must, pick, require, say
from hybrid.interop.rules import Entry, ignored, linear, norm, or_else, same, tied
from hybrid.validation import ConfigError

FEED_FORWARD = {
    "relu": "relu",
    "gated-gelu": "geglu_tanh",
    "gated-silu": "swiglu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
}
"""feed_forward_proj -> our activation."""


def read(json: Json) -> ModelConfig:
    require(json, is_encoder_decoder=True)
    layers, width = pick(json, "num_layers", 6), pick(json, "d_model", 512)
    # Files of 1.1 say tie_word_embeddings=false; transformers 5 says scale_decoder_outputs=false.
    is_scaled = pick(json, "scale_decoder_outputs", json.get("tie_word_embeddings") is not False)
    heads = {"scale": 1.0}
    return ModelConfig(
        pattern=f"(AX-){pick(json, 'num_decoder_layers', layers)}",
        encoder=f"(B-){layers}",
        vocab_size=pick(json, "vocab_size", 32128),
        d_model=width,
        n_heads=pick(json, "num_heads", 8),
        head_dim=pick(json, "d_kv", 64),
        d_ff=pick(json, "d_ff", 2048),
        positions="t5",
        relative_buckets=pick(json, "relative_attention_num_buckets", 32),
        relative_distance=pick(json, "relative_attention_max_distance", 128),
        norm_eps=pick(json, "layer_norm_epsilon", 1e-6),
        tie_embeddings=is_scaled,
        logit_scale=width**-0.5 if is_scaled else 1.0,
        attention=heads,
        bidirectional_attention=heads,
        cross_attention=heads,
        mlp={"activation": choose(json, "feed_forward_proj", FEED_FORWARD, "relu")},
    )


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "t5", positions="t5", norm="rmsnorm")
    encoder = config.encoder_config
    n_decoder, rest = divmod(config.n_layers, 3)
    letters = "" if encoder is None else "".join(encoder.sequence)
    if rest or "".join(config.sequence) != "AX-" * n_decoder or letters != "B-" * (len(letters) // 2):
        problem = f"{config.pattern!r} with encoder {config.encoder!r} cannot be said in a t5 model"
        raise ConfigError("pattern", f"{problem} (can: (AX-)n with encoder (B-)n)")
    assert config.n_heads is not None
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "num_layers": len(letters) // 2,
        "num_decoder_layers": n_decoder,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "num_heads": config.n_heads,
        "d_kv": config.head_dim or config.d_model // config.n_heads,
        "d_ff": config.width_ff,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_distance,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.tie_embeddings,
        "feed_forward_proj": say("mlp.activation", config.mlp.activation, FEED_FORWARD, "t5"),
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": None,
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    words = "shared.weight"
    bias = "relative_attention_bias.weight"
    head = linear("lm_head", "head/kernel")
    table: list[Entry] = [
        same(words, "embedding/tokens"),
        tied("encoder.embed_tokens.weight", words),
        tied("decoder.embed_tokens.weight", words),
        *([tied("lm_head.weight", words)] if config.tie_embeddings else or_else(head, words)),
        same(f"encoder.block.0.layer.0.SelfAttention.{bias}", "encoder/shared/relative_bias"),
        same(f"decoder.block.0.layer.0.SelfAttention.{bias}", "shared/relative_bias"),
        ignored(f"decoder.block.0.layer.1.EncDecAttention.{bias}", "left over in the first release, not used"),
        *norm("encoder.final_layer_norm", "encoder/final_norm"),
        *norm("decoder.final_layer_norm", "final_norm"),
    ]
    encoder = config.encoder_config
    assert encoder is not None
    stacks = {"encoder": ("encoder/layers", encoder, 2), "decoder": ("layers", config, 3)}
    for stack, (ours, part, size) in stacks.items():
        for i, letter in enumerate(part.sequence):
            theirs = f"{stack}.block.{i // size}.layer.{i % size}"
            table += norm(f"{theirs}.layer_norm", f"{ours}/{i}/norm")
            table += LAYERS[letter](theirs, f"{ours}/{i}/sublayer", config)
    return table


def _attention(name: str) -> Any:
    def rules(theirs: str, ours: str, config: ModelConfig) -> list[Entry]:
        pairs = {"q": "query", "k": "key", "v": "value", "o": "out"}
        return [entry for t, o in pairs.items() for entry in linear(f"{theirs}.{name}.{t}", f"{ours}/{o}")]

    return rules


def _feed_forward(theirs: str, ours: str, config: ModelConfig) -> list[Entry]:
    is_gated = config.mlp.activation in ("geglu_tanh", "swiglu")
    inner = {"wi_0": "gate", "wi_1": "up"} if is_gated else {"wi": "up"}
    pairs = {**inner, "wo": "down"}
    return [entry for t, o in pairs.items() for entry in linear(f"{theirs}.DenseReluDense.{t}", f"{ours}/{o}")]


LAYERS = {
    "A": _attention("SelfAttention"),
    "B": _attention("SelfAttention"),
    "X": _attention("EncDecAttention"),
    "-": _feed_forward,
}

FAMILY = Family(model_types=("t5",), read=read, write=write, rules=rules)
