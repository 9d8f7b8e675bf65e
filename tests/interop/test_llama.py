"""Llama against transformers on fresh weights."""

from __future__ import annotations

import pytest

from tests.interop import parity

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

VARIANTS = {
    "plain": {},
    "grouped queries, biases, tied": {
        "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
    },
    "head_dim of its own, llama3 scaling": {"head_dim": 12, "num_key_value_heads": 1, "rope_parameters": LLAMA3},
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_transformers(tmp_path, variant):
    from transformers import LlamaConfig

    parity.check_decoder(LlamaConfig(**parity.TINY, num_hidden_layers=2, **VARIANTS[variant]), tmp_path)
