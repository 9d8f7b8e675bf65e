"""Nemotron-H against transformers on fresh weights.

transformers 5.23 clips the steps of a whole row to at least `time_step_min`, which NVIDIA's code does not, and not the
step of one token with a cache. The limit is put out of the way where all else is compared.
"""

from __future__ import annotations

import pytest

import hybrid
from hybrid.interop.families.nemotron_h import read_pattern
from hybrid.interop.huggingface import say_config
from hybrid.validation import ConfigError
from tests.interop import parity

SIZES = {
    **parity.TINY, "num_key_value_heads": 2, "head_dim": 12, "mamba_num_heads": 8, "mamba_head_dim": 6,
    "ssm_state_size": 6, "n_groups": 2, "chunk_size": 8, "time_step_min": 1e-9,
}  # fmt: skip
D, A, MLP, MOE = "linear_attention", "full_attention", "mlp", "moe"
EXPERTS = {
    "n_routed_experts": 4, "moe_intermediate_size": 12, "moe_shared_expert_intermediate_size": 20,
    "num_experts_per_tok": 3, "routed_scaling_factor": 2.5,
}  # fmt: skip


def test_equal_to_transformers(tmp_path):
    from transformers import NemotronHConfig

    parity.check_decoder(NemotronHConfig(**SIZES, layers_block_type=[D, MLP, A, D, MLP]), tmp_path)


def test_equal_with_experts(tmp_path):
    """Chosen by sigmoid scores and a bias that is not zero."""
    from transformers import NemotronHConfig

    def bias(model):
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer += parity.torch.tensor([0.3, -0.2, 0.1, -0.4])

    config = NemotronHConfig(**SIZES, **EXPERTS, layers_block_type=[D, MOE, A, MOE])
    parity.check_decoder(config, tmp_path, change=bias)


def test_equal_with_biases_and_no_bias_of_the_convolution(tmp_path):
    from transformers import NemotronHConfig

    config = NemotronHConfig(**SIZES, layers_block_type=[A, D, MLP], use_bias=True, mlp_bias=True, use_conv_bias=False)
    parity.check_decoder(config, tmp_path, left=False)


def test_limits_of_the_steps_are_those_that_the_file_says(tmp_path):
    """As NVIDIA's code has them, in a whole row and in one token: what transformers does once its mixers are told."""
    from transformers import NemotronHConfig

    def tell(model):
        for layer in model.model.layers:
            if hasattr(layer.mixer, "time_step_limit"):
                layer.mixer.time_step_limit = (0.2, 0.6)

    config = NemotronHConfig(**SIZES, layers_block_type=[D, A, D], time_step_limit=(0.2, 0.6))
    parity.check_whole_and_in_steps(config, tmp_path, change=tell)


def test_patterns_of_older_files():
    assert read_pattern({"hybrid_override_pattern": "M-M*-ME"}) == "D-DA-DE"
    assert read_pattern({"layers_block_type": ["mamba", "attention", "mlp", "moe"]}) == "DA-E"
    for said, field in (
        ({"hybrid_override_pattern": "MX"}, "hybrid_override_pattern"),
        ({"layers_block_type": ["lstm"]}, "layers_block_type"),
        ({}, "hybrid_override_pattern"),
    ):
        with pytest.raises(ConfigError, match=field):
            read_pattern(said)


def test_what_cannot_be_said_is_named():
    sizes = {"vocab_size": 17, "d_model": 32, "n_heads": 4, "positions": "none", "tie_embeddings": False}
    plain = {"pattern": "D-A", "mlp": {"activation": "relu2"}, **sizes}
    assert say_config(hybrid.ModelConfig(**plain))[1]["layers_block_type"] == [D, MLP, A]
    for fields, field in (
        ({"positions": "rope"}, "positions"),
        ({"mlp": {"activation": "swiglu"}}, "mlp.activation"),
        ({"tie_embeddings": True}, "tie_embeddings"),
        ({"pattern": "M-A"}, "pattern"),
        ({"pattern": "DEA", "moe": {"activation": "relu2"}}, r"moe\.n_shared"),
    ):
        with pytest.raises(ConfigError, match=field):
            say_config(hybrid.ModelConfig(**{**plain, **fields}), "nemotron_h")
