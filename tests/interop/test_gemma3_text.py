"""Gemma 3 against transformers on fresh weights."""

from __future__ import annotations

from tests.interop import parity


def test_equal_to_transformers(tmp_path):
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        **parity.TINY, num_hidden_layers=3, num_key_value_heads=2, head_dim=12, sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], query_pre_attn_scalar=20,
        final_logit_softcapping=3.0,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    )  # fmt: skip
    parity.check_decoder(config, tmp_path)
