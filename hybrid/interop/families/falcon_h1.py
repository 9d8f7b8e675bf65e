"""Falcon-H1 (TII 2025): attention and Mamba-2 side by side on one input, then a SwiGLU MLP.

Its multipliers (maximal update parametrisation) are folded into the weights on the way in, so the files that we write
say 1 for them. Those of the embedding and of the logits are fields of ours and stay, as the two may be tied.
"""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.families import bamba, llama, mamba2
from hybrid.interop.family import Family, Json, must, pick, read_rope, require, say, write_rope
from hybrid.interop.rules import TRANSPOSED, Entry, norm, same
from hybrid.sublayers.mamba2 import sizes
from hybrid.validation import ConfigError

UNIT = ("[A|D]", "-")


def read(json: Json) -> ModelConfig:
    require(json, hidden_act="silu")
    bias, out_bias = pick(json, "attention_bias", False), pick(json, "projectors_bias", False)
    d_inner = None if "mamba_d_ssm" in json and json["mamba_d_ssm"] is None else pick(json, "mamba_d_ssm", 1024)
    before = pick(json, "mamba_norm_before_gate", True)
    normed = "before_gate" if before else "after_gate"
    return ModelConfig(
        pattern=f"([A|D]-){pick(json, 'num_hidden_layers', 32)}",
        **bamba.read_sizes(json),
        embedding_scale=pick(json, "embedding_multiplier", 1.0),
        logit_scale=pick(json, "lm_head_multiplier", 1.0),
        attention={"qkv_bias": bias, "out_bias": bias, **read_rope(json)},
        mamba2={
            **bamba.read_mixer(json, d_inner),
            "out_bias": out_bias,
            "norm": normed if pick(json, "mamba_rms_norm", False) else "none",
        },
        mlp={"activation": "swiglu", "bias": pick(json, "mlp_bias", False)},
    )


def multipliers(json: Json, name: str, n: int) -> list[float]:
    """A field that holds n of them; all 1 where it is absent."""
    said = pick(json, name, [1.0] * n)
    if len(said) != n or not all(type(factor) in (int, float) for factor in said):
        raise ConfigError(f"config.json: {name}", f"{said} is not read; must be {n} numbers")
    return said


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "falcon_h1", norm="rmsnorm", norm_position="before", positions="rope", merge="sum")
    group, n = config.mamba2, config.n_layers // 2
    if config.sequence != UNIT * n:
        raise ConfigError("pattern", f"{config.pattern!r} cannot be said in a falcon_h1 model (can: ([A|D]-)n)")
    return {
        "architectures": ["FalconH1ForCausalLM"],
        "num_hidden_layers": n,
        **llama.write_sizes(config),
        "pad_token_id": None,
        "attention_bias": config.attention.qkv_bias,
        "rope_parameters": write_rope(config.attention),
        **bamba.write_mixer(config),
        "mamba_d_ssm": sizes(config).d_inner,
        "mamba_rms_norm": group.norm != "none",
        "mamba_norm_before_gate": group.norm != "after_gate",
        "projectors_bias": group.out_bias,
        "hidden_act": say("mlp.activation", config.mlp.activation, {"silu": "swiglu"}, "falcon_h1"),
        "mlp_bias": config.mlp.bias,
        "embedding_multiplier": config.embedding_scale,
        "lm_head_multiplier": config.logit_scale,
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    table = bamba.outer(config)
    inside = dict(zip(mamba2.PROJECTIONS, multipliers(json, "ssm_multipliers", 5), strict=True))
    into, out = pick(json, "ssm_in_multiplier", 1.0), pick(json, "ssm_out_multiplier", 1.0)
    for i in range(config.n_layers // 2):
        theirs, ours, mlp = f"model.layers.{i}", f"layers/{2 * i}", f"layers/{2 * i + 1}"
        table += [
            *norm(f"{theirs}.input_layernorm", f"{ours}/norm"),
            *norm(f"{theirs}.pre_ff_layernorm", f"{mlp}/norm"),
            *_attention(f"{theirs}.self_attn", f"{ours}/sublayer/0", config, json),
            *mamba2.mixer_rules(f"{theirs}.mamba", f"{ours}/sublayer/1", config, into, inside, out),
            *_mlp(f"{theirs}.feed_forward", f"{mlp}/sublayer", config, json),
        ]
    return table


def _attention(theirs: str, ours: str, config: ModelConfig, json: Json) -> list[Entry]:
    into, key = pick(json, "attention_in_multiplier", 1.0), pick(json, "key_multiplier", 1.0)
    out, group = pick(json, "attention_out_multiplier", 1.0), config.attention
    return [
        *_scaled(f"{theirs}.q_proj", f"{ours}/query", group.qkv_bias, into, 1.0),
        *_scaled(f"{theirs}.k_proj", f"{ours}/key", group.qkv_bias, into, key),
        *_scaled(f"{theirs}.v_proj", f"{ours}/value", group.qkv_bias, into, 1.0),
        *_scaled(f"{theirs}.o_proj", f"{ours}/out", group.out_bias, 1.0, out),
    ]


def _mlp(theirs: str, ours: str, config: ModelConfig, json: Json) -> list[Entry]:
    gate, down = multipliers(json, "mlp_multipliers", 2)
    return [
        *_scaled(f"{theirs}.gate_proj", f"{ours}/gate", config.mlp.bias, 1.0, gate),
        *_scaled(f"{theirs}.up_proj", f"{ours}/up", config.mlp.bias, 1.0, 1.0),
        *_scaled(f"{theirs}.down_proj", f"{ours}/down", config.mlp.bias, 1.0, down),
    ]


def _scaled(theirs: str, ours: str, bias: bool, into: float, out: float) -> list[Entry]:
    """A torch Linear whose input and output are multiplied; the bias is of the output alone."""
    table: list[Entry] = [same(f"{theirs}.weight", ours, TRANSPOSED, *mamba2.fold(into * out))]
    return [*table, same(f"{theirs}.bias", f"{ours}_bias", *mamba2.fold(out))] if bias else table


FAMILY = Family(model_types=("falcon_h1",), read=read, write=write, rules=rules)
