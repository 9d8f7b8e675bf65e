"""Qwen3-Next against transformers on fresh weights."""

from __future__ import annotations

import dataclasses

import pytest

from hybrid.config import ModelConfig
from hybrid.interop.families.qwen3_next import FAMILY
from hybrid.interop.huggingface import say_config
from hybrid.validation import ConfigError
from tests.interop import parity

LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def test_equal_to_transformers(tmp_path):
    from transformers import Qwen3NextConfig

    config = Qwen3NextConfig(
        **parity.TINY, **LINEAR, num_hidden_layers=3, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12,
        shared_expert_intermediate_size=20, layer_types=["linear_attention", "full_attention", "linear_attention"],
        mlp_only_layers=[2],
    )  # fmt: skip
    parity.check_decoder(config, tmp_path)


def test_lengths_past_a_chunk(tmp_path):
    """Their chunk is of 64 positions, and so is ours."""
    from transformers import Qwen3NextConfig

    config = Qwen3NextConfig(
        **{**parity.TINY, "hidden_size": 24}, **{**LINEAR, "linear_num_key_heads": 4}, num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"], num_experts=3, num_experts_per_tok=2,
        moe_intermediate_size=8, shared_expert_intermediate_size=8, norm_topk_prob=False,
        linear_conv_kernel_dim=3, tie_word_embeddings=True,
    )  # fmt: skip
    parity.check_decoder(config, tmp_path, seed=1, length=135, batch=2)


def test_a_stack_of_ours_can_be_said_and_signed_eigenvalues_cannot():
    config = ModelConfig(
        pattern="GEA-", vocab_size=61, d_model=32, n_heads=4, norm_eps=1e-6, attention={"gate": True, "qk_norm": True},
        moe={"n_shared": 1, "shared_gate": "sigmoid"}, tie_embeddings=False,
    )  # fmt: skip
    family, said = say_config(config)
    assert family is FAMILY
    assert (said["linear_num_value_heads"], said["linear_key_head_dim"], said["mlp_only_layers"]) == (4, 6, [1])
    with pytest.raises(ConfigError, match=r"gated_delta\.eigenvalues: 'signed' cannot be said"):
        say_config(dataclasses.replace(config, gated_delta={"eigenvalues": "signed"}), "qwen3_next")


def test_published_sizes():
    """The config of Qwen3-Next-80B-A3B: 48 layers, every fourth with attention."""
    from hybrid.accounting import parameters

    config = FAMILY.read({"model_type": "qwen3_next", "rope_theta": 1e7})
    assert "".join(config.sequence) == "GEGEGEAE" * 12
    counts = parameters(config)
    assert 79e9 < counts.total < 81e9
    assert 3e9 < counts.active < 4e9
