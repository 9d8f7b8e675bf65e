"""Mamba against transformers on fresh weights."""

from __future__ import annotations

import pytest

import hybrid
from hybrid.interop.huggingface import say_config
from hybrid.validation import ConfigError
from tests.interop import parity

SIZES = {"vocab_size": parity.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
VARIANTS = {
    "plain": {},
    "other sizes, untied": {
        "state_size": 5, "conv_kernel": 3, "expand": 1, "time_step_rank": 3, "use_conv_bias": False,
        "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3,
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_transformers(tmp_path, variant):
    from transformers import MambaConfig

    parity.check_decoder(MambaConfig(**SIZES, **VARIANTS[variant]), tmp_path)


def test_biases_of_the_projections_stay_out_of_left_padding(tmp_path):
    """transformers 5.23 hides padding before `in_proj`, whose bias then enters the convolution from padded positions:
    a row has other logits beside longer rows than alone. Ours are those of the row alone, for any padding."""
    from transformers import MambaConfig

    config = MambaConfig(**SIZES, use_bias=True)
    parity.check_decoder(config, tmp_path / "right", left=False)
    parity.check_whole_and_in_steps(config, tmp_path / "left")


def test_a_config_of_ours_is_said_and_what_cannot_be_said_is_named():
    config = hybrid.ModelConfig(pattern="M4", vocab_size=17, d_model=32, tie_embeddings=False)
    family, said = say_config(config)
    assert family.model_types == ("mamba",)
    assert (said["num_hidden_layers"], said["time_step_rank"]) == (4, "auto")
    with pytest.raises(ConfigError, match="B_norm"):
        say_config(hybrid.ModelConfig(pattern="M4", vocab_size=17, d_model=32, mamba={"inner_norm": True}), "mamba")
