"""Nemotron-H (NVIDIA 2025) and Nemotron 3: Mamba-2, attention without positions, MLPs and experts with squared ReLU.

The steps of its Mamba-2 are clipped to `time_step_limit`, as NVIDIA's own code has it. transformers 5.23 clips them to
at least `time_step_min` instead, which NVIDIA's code reads for initial values alone, and only where it reads several
tokens, not one with a cache.
"""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.families import llama, mamba, mamba2
from hybrid.interop.family import ACTIVATIONS, Family, Json, choose, must, pick, require, say
from hybrid.interop.rules import TRANSPOSED, Entry, ignored, linear, norm, same, stacked
from hybrid.sublayers.mamba2 import sizes
from hybrid.validation import ConfigError

KINDS = {"linear_attention": "D", "full_attention": "A", "mlp": "-", "moe": "E"}
OLDER = {"mamba": "linear_attention", "attention": "full_attention"}
LETTERS = {"M": "D", "*": "A", "-": "-", "E": "E"}
"""Of `hybrid_override_pattern`, which files from before transformers 5 have."""
OTHER_NAMES = {
    "mamba_n_groups": "n_groups", "mamba_d_conv": "conv_kernel", "mamba_expand": "expand",
    "mamba_dt_min": "time_step_min", "mamba_dt_max": "time_step_max", "mamba_dt_limit": "time_step_limit",
    "mamba_dt_init_floor": "time_step_floor", "mamba_conv_bias": "use_conv_bias",
}  # fmt: skip


def read(json: Json) -> ModelConfig:
    json = {**json, **{name: json[other] for other, name in OTHER_NAMES.items() if other in json}}
    require(json, mamba_hidden_act="silu", attention_bias=False, tie_word_embeddings=False, sliding_window=None)
    bias = pick(json, "use_bias", False)
    heads, head_dim = pick(json, "mamba_num_heads", 128), pick(json, "mamba_head_dim", 64)
    pattern = read_pattern(json)
    activation = choose(json, "mlp_hidden_act", ACTIVATIONS, "relu2")
    defaults = {"vocab_size": 131072, "intermediate_size": 21504, "num_key_value_heads": 8, "head_dim": 128}
    return ModelConfig(
        pattern=pattern,
        **{
            **llama.read_sizes({**defaults, **json}),
            "norm_eps": pick(json, "layer_norm_epsilon", 1e-5),
        },
        positions="none",
        mamba2={
            "d_state": pick(json, "ssm_state_size", 128),
            "d_conv": pick(json, "conv_kernel", 4),
            "expand": pick(json, "expand", 2),
            "d_inner": heads * head_dim,
            "head_dim": head_dim,
            "n_groups": pick(json, "n_groups", 8),
            "proj_bias": bias,
            "out_bias": bias,
            "conv_bias": pick(json, "use_conv_bias", True),
            **mamba.read_steps(json),
            **mamba2.read_limits(json),
        },
        mlp={"activation": activation, "bias": pick(json, "mlp_bias", False)},
        **({"moe": read_experts(json, activation)} if "E" in pattern else {}),
    )


def read_pattern(json: Json) -> str:
    if json.get("layers_block_type") is None:
        letters = str(pick(json, "hybrid_override_pattern"))
        if set(letters) - set(LETTERS):
            raise ConfigError("config.json: hybrid_override_pattern", f"{letters!r} is not read (read: M, *, -, E)")
        return "".join(LETTERS[letter] for letter in letters)
    kinds = [OLDER.get(str(kind), str(kind)) for kind in pick(json, "layers_block_type", [])]
    if set(kinds) - set(KINDS):
        unknown = sorted(set(kinds) - set(KINDS))[0]
        raise ConfigError("config.json: layers_block_type", f"{unknown!r} is not read (read: {', '.join(KINDS)})")
    return "".join(KINDS[kind] for kind in kinds)


def read_experts(json: Json, activation: str) -> dict[str, Any]:
    """Experts chosen as in DeepSeek-V3, without groups of experts and without a narrower space for them."""
    require(json, n_group=1, topk_group=1, norm_topk_prob=True, moe_latent_size=None, mlp_bias=False)
    return {
        "n_experts": pick(json, "n_routed_experts", 8),
        "top_k": pick(json, "num_experts_per_tok", 2),
        "d_ff": pick(json, "moe_intermediate_size", 7688),
        "activation": activation,
        "gate": "sigmoid",
        "gate_scale": float(pick(json, "routed_scaling_factor", 1.0)),
        "n_shared": 1,
        "shared_d_ff": pick(json, "moe_shared_expert_intermediate_size", 7688),
        "bias_rate": BIAS_RATE,
    }


BIAS_RATE = 1e-3
"""The file holds the bias of the choice; how fast it moves in training is not said there (DeepSeek-V3's)."""


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "nemotron_h", norm="rmsnorm", norm_position="before", tie_embeddings=False)
    group, size = config.mamba2, sizes(config)
    kinds = {ours: theirs for theirs, ours in KINDS.items()}
    if set(config.sequence) - set(kinds) or "A" not in config.sequence:
        raise ConfigError("pattern", f"{config.pattern!r} cannot be said in a nemotron_h model (can: A with D, -, E)")
    outer = llama.write_sizes(config)
    outer["layer_norm_epsilon"] = outer.pop("rms_norm_eps")
    return {
        "architectures": ["NemotronHForCausalLM"],
        "layers_block_type": [kinds[symbol] for symbol in config.sequence],
        **outer,
        "pad_token_id": None,
        "ssm_state_size": group.d_state,
        "conv_kernel": group.d_conv,
        "expand": group.expand,
        "mamba_num_heads": size.n_heads,
        "mamba_head_dim": size.head_dim,
        "n_groups": group.n_groups,
        "use_bias": group.proj_bias,
        "use_conv_bias": group.conv_bias,
        **mamba.write_steps(group),
        **mamba2.write_limits(group),
        "mlp_hidden_act": say("mlp.activation", config.mlp.activation, ACTIVATIONS, "nemotron_h"),
        "mlp_bias": config.mlp.bias,
        **(write_experts(config) if "E" in config.sequence else {}),
    }


def write_experts(config: ModelConfig) -> dict[str, Any]:
    group = config.moe
    if group.n_shared == 0:
        raise ConfigError("moe.n_shared", "0 cannot be said in a nemotron_h model (can: 1 and more)")
    width = group.d_ff or config.width_ff
    return {
        "n_routed_experts": group.n_experts,
        "num_experts_per_tok": group.top_k,
        "moe_intermediate_size": width,
        "routed_scaling_factor": group.gate_scale,
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": group.n_shared * (group.shared_d_ff or width),
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    table: list[Entry] = [
        same("backbone.embeddings.weight", "embedding/tokens"),
        *norm("backbone.norm_f", "final_norm"),
        *linear("lm_head", "head/kernel"),
        ignored("mtp.*", "the heads that predict several tokens at once"),
    ]
    for i, symbol in enumerate(config.sequence):
        theirs, ours = f"backbone.layers.{i}", f"layers/{i}"
        table += norm(f"{theirs}.norm", f"{ours}/norm")
        table += RULES[symbol](f"{theirs}.mixer", f"{ours}/sublayer", config)
    return table


def _mlp(theirs: str, ours: str, config: ModelConfig) -> list[Entry]:
    bias = config.mlp.bias
    return [*linear(f"{theirs}.up_proj", f"{ours}/up", bias), *linear(f"{theirs}.down_proj", f"{ours}/down", bias)]


def _experts(theirs: str, ours: str, config: ModelConfig) -> list[Entry]:
    numbers = range(config.moe.n_experts)
    return [
        *linear(f"{theirs}.gate", f"{ours}/router"),
        same(f"{theirs}.gate.e_score_correction_bias", f"{ours}/balance_bias"),
        stacked([f"{theirs}.experts.{e}.up_proj.weight" for e in numbers], f"{ours}/up", TRANSPOSED),
        stacked([f"{theirs}.experts.{e}.down_proj.weight" for e in numbers], f"{ours}/down", TRANSPOSED),
        *linear(f"{theirs}.shared_experts.up_proj", f"{ours}/shared/up"),
        *linear(f"{theirs}.shared_experts.down_proj", f"{ours}/shared/down"),
    ]


RULES = {
    "D": mamba2.mixer_rules,
    "A": lambda theirs, ours, config: llama.attention_rules(theirs, ours, config.attention),
    "-": _mlp,
    "E": _experts,
}
"""Symbol -> (prefix there, prefix here, config) -> the tensors of its mixer."""

FAMILY = Family(model_types=("nemotron_h",), read=read, write=write, rules=rules, renames=((r"^model\.", "backbone."),))
