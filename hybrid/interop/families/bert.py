"""BERT (Devlin et al. 2018): an encoder with norms after the sublayers, and its masked-language-model head.

A file of the plain encoder (sentence encoders such as MiniLM) has no head: its hidden states are what
`hybrid.forward` gives, and the logits of such a model mean nothing.
"""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.family import ACTIVATIONS, Family, Json, choose, must, pick, repeats, require, say
from hybrid.interop.rules import Entry, ignored, linear, norm, same, tied
from hybrid.validation import ConfigError

WITH_HEAD = ("BertForMaskedLM", "BertForPreTraining")


def read(json: Json) -> ModelConfig:
    require(json, is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    activation = choose(json, "hidden_act", ACTIVATIONS, "gelu")
    head: dict[str, Any] = {}
    if has_head(json):
        require(json, hidden_act="gelu", tie_word_embeddings=True)  # the head has the activation of the layers
        head = {"head": "transform", "head_bias": True}
    return ModelConfig(
        pattern=f"(B-){pick(json, 'num_hidden_layers', 12)}",
        vocab_size=pick(json, "vocab_size", 30522),
        d_model=pick(json, "hidden_size", 768),
        n_heads=pick(json, "num_attention_heads", 12),
        d_ff=pick(json, "intermediate_size", 3072),
        max_length=pick(json, "max_position_embeddings", 512),
        token_types=pick(json, "type_vocab_size", 2),
        positions="learned",
        norm="layernorm",
        norm_position="after",
        norm_eps=pick(json, "layer_norm_eps", 1e-12),
        embedding_norm=True,
        bidirectional_attention={"qkv_bias": True, "out_bias": True},
        mlp={"activation": activation, "bias": True},
        **head,
    )


def has_head(json: Json) -> bool:
    """Whether the file is of a model with the head of masked language models."""
    classes = json.get("architectures") or ["BertModel"]
    if any(name in WITH_HEAD for name in classes):
        return True
    if "BertModel" in classes:
        return False
    allowed = ", ".join((*WITH_HEAD, "BertModel"))
    raise ConfigError("config.json: architectures", f"{classes} is not read (read: {allowed})")


def write(config: ModelConfig) -> dict[str, Any]:
    must(
        config, "bert", positions="learned", norm="layernorm", norm_position="after", embedding_norm=True,
        tie_embeddings=True,
    )  # fmt: skip
    return {
        "architectures": ["BertForMaskedLM" if config.head == "transform" else "BertModel"],
        "num_hidden_layers": repeats(config, "B-", "bert"),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.width_ff,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": say("mlp.activation", config.mlp.activation, ACTIVATIONS, "bert"),
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    words = "bert.embeddings.word_embeddings.weight"
    table: list[Entry] = [
        same(words, "embedding/tokens"),
        same("bert.embeddings.position_embeddings.weight", "embedding/positions"),
        same("bert.embeddings.token_type_embeddings.weight", "embedding/types"),
        *norm("bert.embeddings.LayerNorm", "embedding/norm", bias=True),
        ignored("bert.embeddings.position_ids", "0, 1, 2, ..."),
        ignored("bert.pooler.*", "reads the hidden state of the first token, for other tasks"),
        ignored("cls.seq_relationship.*", "the next-sentence task of the pooler"),
        tied("cls.predictions.decoder.weight", words),
    ]
    if config.head == "transform":
        table += [
            *linear("cls.predictions.transform.dense", "head/transform", bias=True),
            *norm("cls.predictions.transform.LayerNorm", "head/norm", bias=True),
            same("cls.predictions.bias", "head/bias"),
            tied("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ]
    for i in range(config.n_layers // 2):
        theirs, mixer, mlp = f"bert.encoder.layer.{i}", f"layers/{2 * i}", f"layers/{2 * i + 1}"
        table += [
            *linear(f"{theirs}.attention.self.query", f"{mixer}/sublayer/query", bias=True),
            *linear(f"{theirs}.attention.self.key", f"{mixer}/sublayer/key", bias=True),
            *linear(f"{theirs}.attention.self.value", f"{mixer}/sublayer/value", bias=True),
            *linear(f"{theirs}.attention.output.dense", f"{mixer}/sublayer/out", bias=True),
            *norm(f"{theirs}.attention.output.LayerNorm", f"{mixer}/norm", bias=True),
            *linear(f"{theirs}.intermediate.dense", f"{mlp}/sublayer/up", bias=True),
            *linear(f"{theirs}.output.dense", f"{mlp}/sublayer/down", bias=True),
            *norm(f"{theirs}.output.LayerNorm", f"{mlp}/norm", bias=True),
        ]
    return table


FAMILY = Family(
    model_types=("bert",),
    read=read,
    write=write,
    rules=rules,
    renames=(
        (r"^(embeddings|encoder|pooler)\.", r"bert.\1."),  # files of the model without a head
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),  # names of the TensorFlow release
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
)
