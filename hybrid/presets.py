"""Published models by name: `hybrid.preset("jamba-v0.1")`, and small ones of the same build: `size="tiny"`.

    config = hybrid.preset("mamba2", size="tiny", vocab_size=257)
    hybrid.preset("llama", mlp={"activation": "geglu"})

A preset holds the numbers of a published config.json, which the reader of its family turns into ours (so what a preset
is and what `from_huggingface` reads cannot differ), or our own fields where there is no such file. No jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hybrid.config import ModelConfig
from hybrid.readers import from_megatron
from hybrid.validation import ConfigError, plain, unknown


@dataclass(frozen=True)
class Preset:
    """One published model."""

    source: str
    """Where its numbers stand."""
    stated: str
    """Parameters as its authors state them; "" where they do not."""
    published: Mapping[str, Any]
    """Fields: of config.json where there is a family, else of ModelConfig."""
    tiny: Mapping[str, Any]
    """What is changed in them for a model that trains in a moment."""
    family: str | None = None
    """The `model_type` whose reader takes the fields."""
    parameters: int | None = None
    """Exactly, as transformers counts its own implementation with these fields (5.23, on the meta device)."""
    note: str = ""
    """In what ours is not what was published."""
    not_counted: frozenset[str] = field(default_factory=frozenset)
    """Names of leaves that are constants there and learned here."""


def preset(name: str, size: Literal["published", "tiny"] = "published", **changes: Any) -> ModelConfig:
    """The config of a published model. size: "published" or "tiny". changes: fields of ModelConfig, or of its groups
    (`mamba={"d_state": 8}` leaves the group's other fields as they are). Raises ConfigError."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS, f"unknown preset {name!r}")
    if size not in ("published", "tiny"):
        raise ConfigError("size", f"{size!r} is not allowed (allowed: published, tiny)")
    entry = PRESETS[name]
    fields = {**entry.published, **(entry.tiny if size == "tiny" else {})}
    if entry.family is None:
        config = ModelConfig(**fields)
    else:
        from hybrid.interop.families import family_of

        config = family_of(entry.family, "preset").read(fields)
    groups = dict(config.groups)
    for group in changes:
        if group in groups and isinstance(changes[group], Mapping):
            changes[group] = {**plain(groups[group]), **changes[group]}
    return dataclasses.replace(config, **changes) if changes else config


def preset_names() -> tuple[str, ...]:
    """Names that `preset` takes."""
    return tuple(PRESETS)


# --- tiny sizes -------------------------------------------------------------------------------------------------------

_VOCABULARY = {"vocab_size": 256}
_LLAMA = {
    **_VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16,
}  # fmt: skip
_TWO_LAYERS = {**_LLAMA, "num_hidden_layers": 2}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}

# --- patterns that are published as strings ---------------------------------------------------------------------------

# NVIDIA/Megatron-LM, examples/mamba/README.md.
NVIDIA_8B = "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-"
# hybrid_override_pattern of nvidia/Nemotron-H-8B-Base-8K (also in NVIDIA's Megatron-Bridge).
NEMOTRON_H_8B = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"

# --- the table --------------------------------------------------------------------------------------------------------

PRESETS: dict[str, Preset] = {
    "transformer-2017": Preset(
        source="Vaswani et al. 2017, table 3 (base) and section 5.1 (about 37000 tokens), tied as in section 3.4",
        stated="65M",
        published={
            "pattern": "(AX-)6", "encoder": "(B-)6", "vocab_size": 37000, "d_model": 512, "n_heads": 8, "d_ff": 2048,
            "dropout": 0.1, "norm": "layernorm", "norm_position": "after", "positions": "sinusoidal",
            "embedding_scale": 512**0.5, "mlp": {"activation": "relu", "bias": True},
        },
        tiny={
            **_VOCABULARY, "pattern": "(AX-)2", "encoder": "(B-)2", "d_model": 64, "n_heads": 4, "d_ff": 128,
            "embedding_scale": 8.0,
        },
        note="its matrices add up to 63M (big: 214M, stated as 213M); the table's numbers are of another vocabulary",
    ),
    "gpt2": Preset(
        source="openai-community/gpt2, the defaults of transformers' GPT2Config",
        stated="124M",
        family="gpt2",
        parameters=124_439_808,
        published={
            "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        },
        tiny={**_VOCABULARY, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4},
    ),
    "llama": Preset(
        source="meta-llama/Llama-3.1-8B; Grattafiori et al. 2024, table 3",
        stated="8B",
        family="llama",
        parameters=8_030_261_248,
        published={
            "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        },
        tiny=_TWO_LAYERS,
    ),
    "mistral": Preset(
        source="mistralai/Mistral-7B-v0.1, the defaults of transformers' MistralConfig; Jiang et al. 2023, table 1",
        stated="7B",
        family="mistral",
        parameters=7_241_732_096,
        published={
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
            "sliding_window": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        },
        tiny={**_TWO_LAYERS, "sliding_window": 16},
    ),
    "mixtral": Preset(
        source="mistralai/Mixtral-8x7B-v0.1, the defaults of transformers' MixtralConfig; Jiang et al. 2024, table 1",
        stated="47B",
        family="mixtral",
        parameters=46_702_792_704,
        published={
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
            "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None, "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
        },
        tiny={**_TWO_LAYERS, "num_local_experts": 4},
    ),
    "gemma3": Preset(
        source="google/gemma-3-1b-pt's config.json; Gemma Team 2025, table 1",
        stated="1B",
        family="gemma3_text",
        parameters=999_885_952,
        published={
            "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
            "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256,
            "max_position_embeddings": 32768, "sliding_window": 512, "sliding_window_pattern": 6,
            "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rms_norm_eps": 1e-6,
        },
        tiny={**_LLAMA, "num_hidden_layers": 6, "query_pre_attn_scalar": 16, "sliding_window": 16},
    ),
    "bert": Preset(
        source="google-bert/bert-base-uncased, the defaults of transformers' BertConfig; Devlin et al. 2018, section 3",
        stated="110M",
        family="bert",
        parameters=109_514_298,
        published={
            "architectures": ["BertForMaskedLM"], "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
            "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
        },
        tiny={
            **_VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 128, "max_position_embeddings": 128,
        },
        note="without the pooler and its next-sentence head (592128 parameters)",
    ),
    "t5": Preset(
        source="google-t5/t5-small, the defaults of transformers' T5Config; Raffel et al. 2020, section 3.7",
        stated="60M",
        family="t5",
        parameters=60_506_624,
        published={
            "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
            "feed_forward_proj": "relu", "layer_norm_epsilon": 1e-6,
        },
        tiny={**_VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    ),
    "mamba": Preset(
        source="state-spaces/mamba-130m: 24 layers of 768, vocabulary 50277 padded to 8; Gu and Dao 2023",
        stated="130M",
        family="mamba",
        parameters=129_135_360,
        published={
            "vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 24, "state_size": 16, "conv_kernel": 4,
            "expand": 2, "time_step_rank": "auto", "layer_norm_epsilon": 1e-5,
        },
        tiny={**_VOCABULARY, "hidden_size": 64, "num_hidden_layers": 4},
    ),
    "mamba2": Preset(
        source="state-spaces/mamba2-130m: heads of 64, one group, vocabulary 50277 padded to 16; Dao and Gu 2024",
        stated="130M",
        family="mamba2",
        parameters=128_989_632,
        published={
            "vocab_size": 50288, "hidden_size": 768, "num_hidden_layers": 24, "num_heads": 24, "head_dim": 64,
            "state_size": 128, "n_groups": 1, "conv_kernel": 4, "expand": 2, "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
        },
        tiny={
            **_VOCABULARY, "hidden_size": 64, "num_hidden_layers": 4, "num_heads": 8, "head_dim": 16, "state_size": 16,
        },
    ),
    "jamba-v0.1": Preset(
        source="ai21labs/Jamba-v0.1, the defaults of transformers' JambaConfig; Lieber et al. 2024, section 3.1",
        stated="52B",
        family="jamba",
        parameters=51_570_323_328,
        published={
            "vocab_size": 65536, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "attn_layer_period": 8, "attn_layer_offset": 4,
            "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 16, "num_experts_per_tok": 2,
            "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 256,
            "max_position_embeddings": 262144, "rms_norm_eps": 1e-6,
        },
        tiny={
            **_LLAMA, "num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2, "num_experts": 4,
            "mamba_dt_rank": 4,
        },
    ),
    "jamba-3b": Preset(
        source="ai21labs/AI21-Jamba-Reasoning-3B's config.json, as four independent repositories quote it",
        stated="3B",
        family="jamba",
        parameters=3_029_337_472,
        published={
            "vocab_size": 65536, "hidden_size": 2560, "intermediate_size": 8192, "num_hidden_layers": 28,
            "num_attention_heads": 20, "num_key_value_heads": 1, "attn_layer_period": 14, "attn_layer_offset": 7,
            "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 1, "num_experts_per_tok": 1,
            "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 160,
            "max_position_embeddings": 262144, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        },
        tiny={
            **_LLAMA, "num_key_value_heads": 1, "num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2,
            "mamba_dt_rank": 4,
        },
    ),
    "nvidia-8b-hybrid": Preset(
        source="NVIDIA/Megatron-LM, examples/mamba (train.sh of the 8B model); Waleffe et al. 2024",
        stated="",
        published={
            "pattern": from_megatron(NVIDIA_8B), "vocab_size": 256000, "d_model": 4096, "n_heads": 32,
            "n_kv_heads": 8,  # --num-query-groups 8
            "d_ff": 16384,  # Megatron's default: 4 hidden_size
            "positions": "none", "norm_eps": 1e-5, "tie_embeddings": False,
            "mamba2": {"d_state": 128, "d_inner": 8192, "head_dim": 64, "n_groups": 8},
            "mlp": {"activation": "gelu"},  # no --squared-relu, no --swiglu
        },
        tiny={
            **_VOCABULARY, "pattern": "D-D--D-DA-D-", "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "d_ff": 128,
            "mamba2": {"d_state": 16, "d_inner": 128, "head_dim": 16, "n_groups": 2},
        },
        note="stated as an 8B model; these numbers give 8.65 billion",
    ),
    "nemotron-h": Preset(
        source="nvidia/Nemotron-H-8B-Base-8K, the defaults of transformers' NemotronHConfig with the published pattern",
        stated="8B",
        family="nemotron_h",
        parameters=8_100_852_736,
        published={
            "hybrid_override_pattern": NEMOTRON_H_8B, "vocab_size": 131072, "hidden_size": 4096,
            "intermediate_size": 21504, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "mlp_hidden_act": "relu2", "ssm_state_size": 128, "mamba_num_heads": 128, "mamba_head_dim": 64,
            "n_groups": 8, "conv_kernel": 4, "layer_norm_epsilon": 1e-5,
        },
        tiny={
            **_LLAMA, "hybrid_override_pattern": "M-M*-M-", "ssm_state_size": 16, "mamba_num_heads": 8,
            "mamba_head_dim": 16, "n_groups": 2,
        },
    ),
    "bamba": Preset(
        source="ibm-ai-platform/Bamba-9B: its model card and mamba_9.8b of foundation-model-stack/fms-fsdp",
        stated="9.78B",
        family="bamba",
        parameters=9_780_235_392,
        published={
            "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "attn_layer_indices": [9, 18, 27],
            "mamba_n_heads": 128, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_expand": 2,
            "rms_norm_eps": 1e-5,
        },
        tiny={**_LLAMA, **_MAMBA2, "num_hidden_layers": 3, "attn_layer_indices": [1]},
    ),
    "falcon-h1": Preset(
        source="tiiuae/Falcon-H1-0.5B-Base's config.json, as NVIDIA's Megatron-Bridge quotes it; TII 2025",
        stated="0.5B",
        family="falcon_h1",
        parameters=521_411_104,
        published={
            "vocab_size": 32784, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 36,
            "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "mamba_d_ssm": 1536,
            "mamba_n_heads": 24, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1,
            "mamba_rms_norm": False, "mamba_norm_before_gate": False, "embedding_multiplier": 5.656854249492381,
            "lm_head_multiplier": 0.0390625, "rope_theta": 100000000000.0, "max_position_embeddings": 16384,
            "rms_norm_eps": 1e-5,
        },
        tiny={**_TWO_LAYERS, **_MAMBA2, "mamba_d_ssm": 128},
        note="multipliers inside of the layers are 1: folded into the weights where weights are read",
    ),
    "stripedhyena": Preset(
        source="togethercomputer/stripedhyena, configs/7b-sh-32k-v0.1.yml",
        stated="7.65B",
        published={
            "pattern": "(H-A-)16",  # attn_layer_idxs: all odd layers
            "vocab_size": 32000, "d_model": 4096, "n_heads": 32,
            "n_kv_heads": 8,  # proj_groups 4
            "d_ff": 14336, "norm_eps": 1e-5, "tie_embeddings": False,
            "attention": {"rope_theta": 500000.0},
            "hyena": {"filter": "modal", "modes": 2, "short_conv": 3},
            "mlp": {"activation": "swiglu"},
        },
        tiny={
            **_VOCABULARY, "pattern": "(H-A-)2", "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "d_ff": 128,
        },
        note="its RMSNorm adds eps to the root, ours to the square",
    ),
    "hyenadna": Preset(
        source="LongSafari/hyenadna-large-1m-seqlen; HazyResearch/hyena-dna, configs/experiment/hg38/hg38_hyena.yaml",
        stated="6.6M",
        family="hyenadna",
        published={
            "vocab_size": 12, "pad_vocab_size_multiple": 8, "d_model": 256, "n_layer": 8, "d_inner": 1024,
            "max_seq_len": 1_000_002, "emb_dim": 5, "filter_order": 64, "num_inner_mlps": 2, "activation_freq": 10,
        },
        tiny={"d_model": 64, "n_layer": 2, "d_inner": 128, "max_seq_len": 128},
        note="the features of a million positions are learned (40 million numbers in 8 layers): 6.6M without them",
        not_counted=frozenset({"features"}),
    ),
    "griffin": Preset(
        source="google/recurrentgemma-2b: Botev et al. 2024, table 1; transformers' RecurrentGemmaConfig",
        stated="2.7B",
        family="recurrent_gemma",
        parameters=2_682_862_080,
        published={
            "vocab_size": 256000, "hidden_size": 2560,
            "intermediate_size": 15360,  # the file counts both halves of the gated MLP
            "num_hidden_layers": 26, "num_attention_heads": 10, "num_key_value_heads": 1, "head_dim": 256,
            "lru_width": 2560, "attention_window_size": 2048, "conv1d_width": 4, "logits_soft_cap": 30.0,
            "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-6, "block_types": ["recurrent", "recurrent", "attention"],
        },
        tiny={
            **_LLAMA, "intermediate_size": 256, "num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 64,
            "attention_window_size": 16,
        },
    ),
    "block-recurrent": Preset(
        source="google-research/meliad: size/medium_150M.gin, recurrent/bias_skip.gin, tasks/pg19_bytes.gin",
        stated="",
        published={
            "pattern": "(S-)9R-(S-)2",  # recurrent_layer_indices = (-3,) of 12
            "vocab_size": 256, "d_model": 1024, "n_heads": 8, "head_dim": 128, "d_ff": 4096, "dropout": 0.05,
            "positions": "t5",
            "sliding_window": {"window": 512, "qk_norm": True},
            "block_recurrent": {"window": 512, "n_states": 512, "gate": "fixed", "form": "skip"},
            "mlp": {"activation": "relu"},
        },
        tiny={
            "pattern": "(S-)2R-S-", "d_model": 64, "n_heads": 4, "head_dim": 16, "d_ff": 128,
            "sliding_window": {"window": 16, "qk_norm": True},
            "block_recurrent": {"window": 16, "n_states": 8, "gate": "fixed", "form": "skip"},
        },
        note="stated for 12 layers without recurrence and embeddings: 151M; the layers share one T5 bias here",
    ),
    "qwen3-next-like": Preset(
        source="Qwen/Qwen3-Next-80B-A3B-Instruct, the defaults of transformers' Qwen3NextConfig",
        stated="80B",
        family="qwen3_next",
        parameters=79_674_391_296,
        published={
            "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 16,
            "num_key_value_heads": 2, "head_dim": 256, "full_attention_interval": 4, "linear_num_key_heads": 16,
            "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4, "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512, "norm_topk_prob": True, "partial_rotary_factor": 0.25,
            "rope_theta": 10000000.0, "rms_norm_eps": 1e-6,
        },
        tiny={
            **_LLAMA, "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
        },
        note="without the head that predicts two tokens ahead; its rope_theta is quoted as 5 and as 10 million",
    ),
}  # fmt: skip
"""Name -> what was published."""
