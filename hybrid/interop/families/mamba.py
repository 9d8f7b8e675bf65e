"""Mamba (Gu & Dao 2023): the selective scan alone, no positions, tied head."""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.family import Family, Json, must, pick, repeats, require
from hybrid.interop.rules import CONV, TRANSPOSED, Entry, joined, linear, norm, same, tied


def read(json: Json) -> ModelConfig:
    require(json, hidden_act="silu")
    rank = json.get("time_step_rank", "auto")
    return ModelConfig(
        pattern=f"M{pick(json, 'num_hidden_layers', 32)}",
        vocab_size=pick(json, "vocab_size", 50280),
        d_model=pick(json, "hidden_size", 768),
        norm_eps=pick(json, "layer_norm_epsilon", 1e-5),
        tie_embeddings=pick(json, "tie_word_embeddings", True),
        positions="none",
        mamba={
            "d_state": pick(json, "state_size", 16),
            "d_conv": pick(json, "conv_kernel", 4),
            "expand": pick(json, "expand", 2),
            "dt_rank": None if rank == "auto" else rank,
            "proj_bias": pick(json, "use_bias", False),
            "conv_bias": pick(json, "use_conv_bias", True),
            **read_steps(json),
        },
    )


def read_steps(json: Json) -> dict[str, float]:
    """Where the steps start."""
    return {
        "dt_min": pick(json, "time_step_min", 0.001),
        "dt_max": pick(json, "time_step_max", 0.1),
        "dt_floor": pick(json, "time_step_floor", 1e-4),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "mamba", norm="rmsnorm", norm_position="before")
    group = config.mamba
    return {
        "architectures": ["MambaForCausalLM"],
        "num_hidden_layers": repeats(config, "M", "mamba"),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "state_size": group.d_state,
        "conv_kernel": group.d_conv,
        "expand": group.expand,
        "time_step_rank": group.dt_rank or "auto",
        "use_bias": group.proj_bias,
        "use_conv_bias": group.conv_bias,
        **write_steps(group),
        **NO_TOKENS,
    }


def write_steps(group: Any) -> dict[str, float]:
    return {"time_step_min": group.dt_min, "time_step_max": group.dt_max, "time_step_floor": group.dt_floor}


NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""Special tokens belong to a tokenizer, which our configs do not name."""


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    table = outer(config)
    for i in range(config.n_layers):
        theirs, ours = f"backbone.layers.{i}", f"layers/{i}"
        table += [*norm(f"{theirs}.norm", f"{ours}/norm"), *mixer_rules(f"{theirs}.mixer", f"{ours}/sublayer", config)]
    return table


def outer(config: ModelConfig) -> list[Entry]:
    """What is not of a layer: embedding, last norm, head."""
    embedding = "backbone.embeddings.weight"
    return [
        same(embedding, "embedding/tokens"),
        *norm("backbone.norm_f", "final_norm"),
        *([tied("lm_head.weight", embedding)] if config.tie_embeddings else linear("lm_head", "head/kernel")),
    ]


def mixer_rules(theirs: str, ours: str, config: ModelConfig) -> list[Entry]:
    group = config.mamba
    both = [f"{ours}/in_x", f"{ours}/in_z"]
    table: list[Entry] = [
        joined(f"{theirs}.in_proj.weight", both, TRANSPOSED),
        same(f"{theirs}.conv1d.weight", f"{ours}/conv", CONV),
        *linear(f"{theirs}.x_proj", f"{ours}/x_proj"),
        *linear(f"{theirs}.dt_proj", f"{ours}/dt_proj"),
        same(f"{theirs}.dt_proj.bias", f"{ours}/dt_bias"),
        same(f"{theirs}.A_log", f"{ours}/A_log"),
        same(f"{theirs}.D", f"{ours}/D"),
        *linear(f"{theirs}.out_proj", f"{ours}/out", group.proj_bias),
    ]
    if group.proj_bias:
        table.append(joined(f"{theirs}.in_proj.bias", [f"{name}_bias" for name in both]))
    if group.conv_bias:
        table.append(same(f"{theirs}.conv1d.bias", f"{ours}/conv_bias"))
    return table


RENAMES = ((r"^backbone\.embedding\.", "backbone.embeddings."),)
"""The name that the authors' files have."""

FAMILY = Family(model_types=("mamba",), read=read, write=write, rules=rules, renames=RENAMES)
