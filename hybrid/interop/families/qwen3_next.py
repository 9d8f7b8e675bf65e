"""Qwen3-Next (Qwen Team 2025): three layers of Gated DeltaNet to one of gated attention, experts with a shared one."""

from __future__ import annotations

from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.families import llama, mixtral
from hybrid.interop.family import GATED, Family, Json, choose, must, pick, read_rope, require, say, write_rope
from hybrid.interop.rules import CONV, TRANSPOSED, Entry, ignored, joined, linear, norm, plus, reordered, same, tied
from hybrid.sublayers.gated_delta import sizes
from hybrid.sublayers.heads import heads
from hybrid.validation import ConfigError

KINDS = {"linear_attention": "G", "full_attention": "A"}
GATES = {True: "mixtral", False: "jamba"}
"""norm_topk_prob -> the gate of the experts."""
ONE_PLUS = plus(1.0)
"""Its norms multiply by 1 + w, but for the one inside Gated DeltaNet."""
EXPERT = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def read(json: Json) -> ModelConfig:
    require(json, attention_bias=False)
    kinds = layer_types(json)
    said = {
        "vocab_size": 151936, "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
        "intermediate_size": 5632, **json,
    }  # fmt: skip
    activation = choose(json, "hidden_act", {"silu": GATED["silu"]}, "silu")
    return ModelConfig(
        pattern="".join(KINDS[kind] + channel for kind, channel in zip(kinds, channels(json), strict=True)),
        **llama.read_sizes(said),
        attention={"qk_norm": True, "gate": True, **read_rope(json, fraction=0.25)},
        gated_delta={
            "n_key_heads": pick(json, "linear_num_key_heads", 16),
            "n_value_heads": pick(json, "linear_num_value_heads", 32),
            "key_dim": pick(json, "linear_key_head_dim", 128),
            "value_dim": pick(json, "linear_value_head_dim", 128),
            "d_conv": pick(json, "linear_conv_kernel_dim", 4),
        },
        moe={
            "n_experts": max(1, pick(json, "num_experts", 512)),
            "top_k": min(pick(json, "num_experts_per_tok", 10), max(1, pick(json, "num_experts", 512))),
            "d_ff": pick(json, "moe_intermediate_size", 512),
            "gate": choose(json, "norm_topk_prob", GATES, True),
            "n_shared": 1,
            "shared_d_ff": pick(json, "shared_expert_intermediate_size", 512),
            "shared_gate": "sigmoid",
            "activation": activation,
        },
        mlp={"activation": activation},
    )


def layer_types(json: Json) -> list[str]:
    """One entry a layer; files from before `layer_types` give the period of attention."""
    n, period = pick(json, "num_hidden_layers", 48), pick(json, "full_attention_interval", 4)
    kinds = pick(json, "layer_types", ["linear_attention" if (i + 1) % period else "full_attention" for i in range(n)])
    if len(kinds) != n or not set(kinds) <= set(KINDS):
        raise ConfigError("config.json: layer_types", f"must have {n} entries, each of {', '.join(KINDS)}")
    return kinds


def channels(json: Json) -> list[str]:
    """`E` or `-` for each layer."""
    dense, step = pick(json, "mlp_only_layers", []), pick(json, "decoder_sparse_step", 1)
    experts = pick(json, "num_experts", 512)
    n = pick(json, "num_hidden_layers", 48)
    return ["-" if i in dense or not experts or (i + 1) % step else "E" for i in range(n)]


def write(config: ModelConfig) -> dict[str, Any]:
    must(config, "qwen3_next", positions="rope", norm="rmsnorm", norm_position="before")
    mixers, kinds = config.sequence[::2], {ours: theirs for theirs, ours in KINDS.items()}
    if set(mixers) - set(kinds) or set(config.sequence[1::2]) - {"E", "-"} or config.n_layers % 2:
        raise ConfigError("pattern", f"{config.pattern!r} cannot be said in a qwen3_next model (can: G or A, E or -)")
    moe, size = config.moe, sizes(config)
    width = moe.d_ff or config.width_ff
    return {
        "architectures": ["Qwen3NextForCausalLM"],
        "num_hidden_layers": len(mixers),
        **llama.write_sizes(config),
        "pad_token_id": None,
        "layer_types": [kinds[mixer] for mixer in mixers],
        "mlp_only_layers": [i for i, channel in enumerate(config.sequence[1::2]) if channel == "-"],
        "rope_parameters": {**write_rope(config.attention), "partial_rotary_factor": config.attention.rope_fraction},
        "linear_num_key_heads": size.key_heads,
        "linear_num_value_heads": size.value_heads,
        "linear_key_head_dim": size.key_dim,
        "linear_value_head_dim": size.value_dim,
        "linear_conv_kernel_dim": config.gated_delta.d_conv,
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": moe.shared_d_ff or width,
        "norm_topk_prob": say("moe.gate", moe.gate, GATES, "qwen3_next"),
        "hidden_act": say("mlp.activation", config.mlp.activation, {"silu": GATED["silu"]}, "qwen3_next"),
    }


def rules(config: ModelConfig, json: Json) -> list[Entry]:
    embedding = "model.embed_tokens.weight"
    table: list[Entry] = [
        same(embedding, "embedding/tokens"),
        *([tied("lm_head.weight", embedding)] if config.tie_embeddings else linear("lm_head", "head/kernel")),
        *norm("model.norm", "final_norm", False, ONE_PLUS),
        ignored("mtp.*", "heads for several tokens at once, which transformers does not read either"),
    ]
    mixer_rules = {"A": attention_rules, "G": delta_rules}
    channel_rules = {"E": expert_rules, "-": lambda theirs, ours, config: llama.gated_rules(theirs, ours)}
    for i, (mixer, channel) in enumerate(zip(config.sequence[::2], config.sequence[1::2], strict=True)):
        theirs, ours = f"model.layers.{i}", (f"layers/{2 * i}", f"layers/{2 * i + 1}")
        table += [
            *norm(f"{theirs}.input_layernorm", f"{ours[0]}/norm", False, ONE_PLUS),
            *norm(f"{theirs}.post_attention_layernorm", f"{ours[1]}/norm", False, ONE_PLUS),
            *mixer_rules[mixer](theirs, f"{ours[0]}/sublayer", config),
            *channel_rules[channel](f"{theirs}.mlp", f"{ours[1]}/sublayer", config),
        ]
    return table


def attention_rules(theirs: str, ours: str, config: ModelConfig) -> list[Entry]:
    """The rows of `q_proj` are those of the query and of the gate, head by head."""
    n_heads, _, head_dim = heads(config)
    theirs = f"{theirs}.self_attn"
    return [
        parted(f"{theirs}.q_proj", ours, n_heads, {"query": head_dim, "gate": head_dim}),
        *linear(f"{theirs}.k_proj", f"{ours}/key"),
        *linear(f"{theirs}.v_proj", f"{ours}/value"),
        *linear(f"{theirs}.o_proj", f"{ours}/out"),
        same(f"{theirs}.q_norm.weight", f"{ours}/query_norm", ONE_PLUS),
        same(f"{theirs}.k_norm.weight", f"{ours}/key_norm", ONE_PLUS),
    ]


def delta_rules(theirs: str, ours: str, config: ModelConfig) -> list[Entry]:
    """The rows of its two projections lie key head by key head, each with its values."""
    size, theirs = sizes(config), f"{theirs}.linear_attn"
    group = size.value_heads // size.key_heads
    values = group * size.value_dim
    streams = {"query": size.key_dim, "key": size.key_dim, "value": values, "gate": values}
    return [
        parted(f"{theirs}.in_proj_qkvz", ours, size.key_heads, streams),
        parted(f"{theirs}.in_proj_ba", ours, size.key_heads, {"beta": group, "decay": group}),
        joined(f"{theirs}.conv1d.weight", [f"{ours}/{name}_conv" for name in ("query", "key", "value")], CONV),
        same(f"{theirs}.dt_bias", f"{ours}/dt_bias"),
        same(f"{theirs}.A_log", f"{ours}/A_log"),
        same(f"{theirs}.norm.weight", f"{ours}/norm"),
        *linear(f"{theirs}.out_proj", f"{ours}/out"),
    ]


def parted(theirs: str, ours: str, n_heads: int, widths: dict[str, int]) -> Entry:
    """A Linear whose outputs are, for each head in turn, `widths` rows of each of our leaves."""
    total, rows, start = sum(widths.values()), [], 0
    for width in widths.values():
        rows += [head * total + start + row for head in range(n_heads) for row in range(width)]
        start += width
    leaves = [f"{ours}/{name}" for name in widths]
    return joined(f"{theirs}.weight", leaves, TRANSPOSED, whole=(reordered(rows, 0),))


def expert_rules(theirs: str, ours: str, config: ModelConfig) -> list[Entry]:
    return [
        *linear(f"{theirs}.gate", f"{ours}/router"),
        *mixtral.expert_rules(f"{theirs}.experts", ours, config, EXPERT),
        *llama.gated_rules(f"{theirs}.shared_expert", f"{ours}/shared"),
        *linear(f"{theirs}.shared_expert_gate", f"{ours}/shared/router"),
    ]


FAMILY = Family(model_types=("qwen3_next",), read=read, write=write, rules=rules)
