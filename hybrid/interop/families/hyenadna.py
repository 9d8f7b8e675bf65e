"""HyenaDNA (Nguyen et al. 2023) in the layout of `LongSafari/hyenadna-*-hf`: Hyena of order 2 in the code form, MLPs.

Its model code is not part of transformers but lies beside the weights. Rates of the filters' windows and times are
buffers there and follow from the config here; the frequency of the sines is one vector for all hidden layers of a
filter, stored once or under each of its names.
"""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.family import Family, Json, must, pick, repeats, require
from hybrid.interop.rules import CONV, TRANSPOSED, Entry, ignored, linear, norm, reshaped, same, tied

SHIFT = 0.05
"""Of the filters' windows, in the model code."""


def read(json: Json) -> ModelConfig:
    require(json, hyena_order=2, short_filter_order=3, train_freq=True, layer_norm_epsilon=1e-5)
    d_model, multiple = pick(json, "d_model", 256), pick(json, "pad_vocab_size_multiple", 8)
    return ModelConfig(
        pattern=f"(H-){pick(json, 'n_layer', 12)}",
        vocab_size=-(-pick(json, "vocab_size", 12) // multiple) * multiple,
        d_model=d_model,
        d_ff=pick(json, "d_inner", 4 * d_model),
        positions="none",
        norm="layernorm",
        norm_eps=1e-5,
        tie_embeddings=pick(json, "tie_word_embeddings", True),
        hyena={
            "filter_length": pick(json, "max_seq_len", 1024),
            "emb_dim": pick(json, "emb_dim", 3),
            "filter_width": pick(json, "filter_order", 64),
            "filter_layers": pick(json, "num_inner_mlps", 2),
            "sine_frequency": float(pick(json, "activation_freq", 1)),
            "decay_shift": SHIFT,
        },
        mlp={"activation": "gelu_tanh", "bias": True},
    )


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "hyenadna", positions="none", norm="layernorm", norm_eps=1e-5)
    group, frequency = config.hyena, config.hyena.sine_frequency
    return {
        "architectures": ["HyenaDNAForCausalLM"],
        "n_layer": repeats(config, "H-", "hyenadna"),
        "vocab_size": config.vocab_size,
        "pad_vocab_size_multiple": 1,
        "d_model": config.d_model,
        "d_inner": config.width_ff,
        "tie_word_embeddings": config.tie_embeddings,
        "layer_norm_epsilon": config.norm_eps,
        "max_seq_len": group.filter_length,
        "hyena_order": group.order,
        "short_filter_order": group.short_conv,
        "emb_dim": group.emb_dim,
        "filter_order": group.filter_width,
        "num_inner_mlps": group.filter_layers,
        "activation_freq": int(frequency) if frequency.is_integer() else frequency,
        "train_freq": True,
        "use_bias": True,
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    embedding = "hyena.backbone.embeddings.word_embeddings"
    table: list[Entry] = [
        same(f"{embedding}.weight", "embedding/tokens"),
        *norm("hyena.backbone.ln_f", "final_norm", bias=True),
        ignored("*.filter_fn.pos_emb.t", "times follow from the length of the filter"),
        ignored("*.filter_fn.modulation.deltas", "rates follow from the width"),
    ]
    head = (
        [tied("lm_head.weight", f"{embedding}.weight")] if config.tie_embeddings else linear("lm_head", "head/kernel")
    )
    table += head
    for i in range(config.n_layers // 2):
        theirs, hyena, mlp = f"hyena.backbone.layers.{i}", f"layers/{2 * i}", f"layers/{2 * i + 1}"
        table += [
            *norm(f"{theirs}.norm1", f"{hyena}/norm", bias=True),
            *_mixer(f"{theirs}.mixer", f"{hyena}/sublayer", config),
            *norm(f"{theirs}.norm2", f"{mlp}/norm", bias=True),
            *linear(f"{theirs}.mlp.fc1", f"{mlp}/sublayer/up", True),
            *linear(f"{theirs}.mlp.fc2", f"{mlp}/sublayer/down", True),
        ]
    return table


def _mixer(theirs: str, ours: str, config: ModelConfig) -> list[Entry]:
    group, d = config.hyena, config.d_model
    network, width, filters = f"{theirs}.filter_fn.implicit_filter", group.filter_width, f"{ours}/filter"
    last = 2 * (group.filter_layers + 1)  # linear maps have even numbers, the sines odd ones
    features = (group.filter_length, group.emb_dim)
    table: list[Entry] = [
        *linear(f"{theirs}.in_proj", f"{ours}/in", True),
        *linear(f"{theirs}.out_proj", f"{ours}/out", True),
        same(f"{theirs}.short_filter.weight", f"{ours}/short", CONV),
        same(f"{theirs}.short_filter.bias", f"{ours}/short_bias"),
        same(f"{theirs}.filter_fn.bias", f"{ours}/skip", reshaped((d,), (1, d))),
        same(f"{theirs}.filter_fn.pos_emb.z", f"{ours}/features", reshaped((1, *features), features)),
        *linear(f"{network}.0", f"{filters}/in", True),
        same(f"{network}.1.freq", f"{filters}/frequency", reshaped((1, width), (width,))),
        same(f"{network}.{last}.weight", f"{filters}/out", TRANSPOSED, reshaped((width, d), (width, 1, d))),
    ]
    for i in range(group.filter_layers):
        table += linear(f"{network}.{2 * i + 2}", f"{filters}/hidden_{i}", True)
        table.append(tied(f"{network}.{2 * i + 3}.freq", f"{network}.1.freq"))
    return table


FAMILY = Family(model_types=("hyenadna",), read=read, write=write, rules=rules)
