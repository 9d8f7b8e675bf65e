"""Makes the small references beside this file: what transformers wrote, and the logits that it gives.

    pip install -e .[parity]
    python tests/references/make.py            # all that are not there
    python tests/references/make.py llama      # one, again

A folder NAME holds config.json and model.safetensors as transformers saved them, with random weights, and
expected.safetensors: tokens, padding (True at real tokens), logits of the whole batch (those of decoder_tokens, where a
decoder reads an encoder), and the greedy continuation of its first row with the cache.
tests/interop/test_references.py holds us to them without torch.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from tests.interop import parity  # noqa: E402
from tests.references import hyenadna_torch  # noqa: E402

HERE = Path(__file__).parent
LARGEST = 300_000
"""Bytes of a folder."""
TINY = {**parity.TINY, "hidden_size": 24, "num_hidden_layers": 2, "bos_token_id": None, "eos_token_id": None}
PURE = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "bos_token_id": None, "eos_token_id": None}
SSD = {"chunk_size": 4}
MIXED = {"num_key_value_heads": 2, "mamba_d_state": 5, "mamba_n_groups": 2, "mamba_chunk_size": 4}

SEQ2SEQ = "AutoModelForSeq2SeqLM"
T5 = {"vocab_size": 61, "d_model": 24, "d_ff": 40, "num_layers": 2, "num_heads": 4, "d_kv": 6, "eos_token_id": None}


def row(name: str, kind: str = "AutoModelForCausalLM", **fields: Any) -> Callable[[], tuple[Any, str]]:
    """A configuration class of transformers with its fields, and the class of the model."""

    def make() -> tuple[Any, str]:
        import transformers

        with parity.quiet():
            return getattr(transformers, name)(**fields), kind

    return make


# name of the reference -> its model; one row each
ROWS: dict[str, Callable[[], tuple[Any, str]]] = {
    "gpt2": row("GPT2Config", vocab_size=61, n_embd=24, n_layer=2, n_head=4, n_positions=64),
    "llama": row("LlamaConfig", **TINY, num_key_value_heads=2, attention_bias=True),
    "mistral": row("MistralConfig", **TINY, num_key_value_heads=2, sliding_window=5),
    "gemma3_text": row(
        "Gemma3TextConfig", **TINY, num_key_value_heads=2, head_dim=8, sliding_window=5, sliding_window_pattern=2,
        query_pre_attn_scalar=12, final_logit_softcapping=4.0,
    ),
    "mixtral": row("MixtralConfig", **TINY, num_key_value_heads=2, num_local_experts=4),
    "jamba": row(
        "JambaConfig", **{**TINY, "num_hidden_layers": 3}, num_key_value_heads=2, num_experts=3, mamba_d_state=4,
        attn_layer_period=3, attn_layer_offset=1,
    ),
    "jamba_dense": row(
        "JambaConfig", **TINY, num_key_value_heads=2, num_experts=1, mamba_d_state=4, attn_layer_period=2,
        attn_layer_offset=1,
    ),
    "recurrent_gemma": row(
        "RecurrentGemmaConfig", **{**TINY, "num_hidden_layers": 3, "num_attention_heads": 2}, num_key_value_heads=1,
        lru_width=32, attention_window_size=5, logits_soft_cap=4.0,
    ),
    "qwen3_next": row(
        "Qwen3NextConfig", **TINY, num_key_value_heads=2, head_dim=8,
        layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=6, linear_value_head_dim=4,
        num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    ),
    "mamba": row("MambaConfig", **PURE, state_size=4),
    "mamba2": row("Mamba2Config", **PURE, **SSD, num_heads=6, head_dim=8, state_size=5, n_groups=2),
    "bamba": row(
        "BambaConfig", **{**TINY, **MIXED, "num_attention_heads": 2}, attn_layer_indices=[1], mamba_n_heads=6
    ),
    "nemotron_h": row(
        "NemotronHConfig", **TINY, **SSD, layers_block_type=["linear_attention", "mlp", "full_attention", "moe"],
        num_key_value_heads=2, head_dim=8, mamba_num_heads=6, mamba_head_dim=6, ssm_state_size=5, n_groups=2,
        time_step_min=1e-9, n_routed_experts=3, moe_intermediate_size=12, moe_shared_expert_intermediate_size=16,
    ),
    "falcon_h1": row(
        "FalconH1Config", **TINY, **MIXED, mamba_d_ssm=36, mamba_n_heads=6, lm_head_multiplier=0.3,
        embedding_multiplier=2.0, mlp_multipliers=[0.7, 0.6], key_multiplier=0.5, attention_out_multiplier=0.8,
        attention_in_multiplier=1.2, ssm_multipliers=[0.5, 1.5, 0.7, 1.3, 0.9], ssm_in_multiplier=0.8,
        ssm_out_multiplier=0.9,
    ),
    "bert": row("BertConfig", "BertForMaskedLM", **TINY, max_position_embeddings=32),
    "t5": row("T5Config", SEQ2SEQ, **T5),
    "t5_v1_1": row("T5Config", SEQ2SEQ, **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}  # fmt: skip

TRANSCRIBED = {"hyenadna": hyenadna_torch}
"""Models that transformers does not have: modules that write a folder and give its logits and continuations."""


def make(name: str) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    if name in TRANSCRIBED:
        finish(folder, transcribed(TRANSCRIBED[name], folder))
        return
    config, kind = ROWS[name]()
    model = parity.fresh(config, kind=kind)
    tokens, padding = parity.padded(2, 13, "right", 0)
    expected = {"tokens": tokens.astype(np.int32), "padding": padding}
    inputs = {}
    if kind == SEQ2SEQ:
        inputs["decoder_input_ids"] = tokens[::-1, :7].copy()
        expected["decoder_tokens"] = inputs["decoder_input_ids"].astype(np.int32)
    expected["logits"] = parity.theirs(model, tokens, padding, **inputs)
    if kind == "AutoModelForCausalLM":
        expected["continuation"] = parity.greedy(model, tokens[:1]).astype(np.int32)
    parity.save(model, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    finish(folder, expected)


def transcribed(module: Any, folder: Path) -> dict[str, np.ndarray]:
    module.write(folder)
    tokens = np.random.default_rng(0).integers(0, module.SIZES["vocab_size"], (2, 13))
    return {
        "tokens": tokens.astype(np.int32),
        "padding": np.ones(tokens.shape, bool),
        "logits": module.logits(folder, tokens),
        "continuation": module.greedy(folder, tokens[:1], parity.STEPS).astype(np.int32),
    }


def finish(folder: Path, expected: dict[str, np.ndarray]) -> None:
    save_file({key: np.ascontiguousarray(value) for key, value in expected.items()}, folder / "expected.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder.name}: {size} bytes")
    assert size <= LARGEST, f"{folder.name} takes {size} bytes; at most {LARGEST}"


if __name__ == "__main__":
    for wanted in sys.argv[1:] or [
        name for name in (*ROWS, *TRANSCRIBED) if not (HERE / name / "expected.safetensors").exists()
    ]:
        make(wanted)
