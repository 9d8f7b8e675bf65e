"""Mamba-2 against transformers on fresh weights."""

from __future__ import annotations

import pytest

import hybrid
from hybrid.interop.huggingface import say_config
from hybrid.validation import ConfigError
from tests.interop import parity

SIZES = {
    "vocab_size": parity.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8,
    "state_size": 6, "n_groups": 2, "chunk_size": 8,
}  # fmt: skip
VARIANTS = {
    "one group, tied": {"n_groups": 1, "tie_word_embeddings": True, "conv_kernel": 3, "use_conv_bias": False},
    "wide, chunks of 5": {"expand": 3, "num_heads": 6, "head_dim": 16, "n_groups": 3, "chunk_size": 5},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_transformers(tmp_path, variant):
    from transformers import Mamba2Config

    parity.check_decoder(Mamba2Config(**{**SIZES, **VARIANTS[variant]}), tmp_path)


@pytest.mark.parametrize("length", [5, 28])
def test_any_length_whether_or_not_it_is_a_multiple_of_a_chunk(tmp_path, length):
    """The row is shorter by 4: lengths 1 and 24 beside 5 and 28, chunks of 8."""
    from transformers import Mamba2Config

    parity.check_decoder(Mamba2Config(**{**SIZES, "num_hidden_layers": 1}), tmp_path, seed=length, length=length)


def test_biases_of_the_projections_stay_out_of_left_padding(tmp_path):
    """As in Mamba, transformers 5.23 lets the bias of `in_proj` into the convolution from padded positions."""
    from transformers import Mamba2Config

    config = Mamba2Config(**SIZES, use_bias=True)
    parity.check_decoder(config, tmp_path / "right", left=False)
    parity.check_whole_and_in_steps(config, tmp_path / "left")


def test_limits_of_the_steps_hold_in_decoding_too(tmp_path):
    """transformers 5.23 clips the steps of a whole row and not the step of one token with a cache."""
    from transformers import Mamba2Config

    parity.check_whole_and_in_steps(Mamba2Config(**SIZES, time_step_limit=(0.2, 0.6)), tmp_path)


def test_a_config_of_ours_is_said_and_what_cannot_be_said_is_named():
    config = hybrid.ModelConfig(pattern="D4", vocab_size=17, d_model=32, mamba2={"n_groups": 2, "dt_limit_max": 1})
    family, said = say_config(config)
    assert family.model_types == ("mamba2",)
    assert (said["num_heads"], said["head_dim"], said["time_step_limit"]) == (2, 32, [0.0, 1.0])
    for fields, field in (
        ({"norm": "none"}, "norm"), ({"norm_groups": 2}, r"mamba2\.norm_groups"), ({"d_inner": 48}, r"mamba2\.d_inner"),
        ({"out_bias": True}, "out_bias"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=field):
            say_config(hybrid.ModelConfig(pattern="D4", vocab_size=17, d_model=32, mamba2=fields), "mamba2")


def test_limits_are_read_as_files_have_them():
    from hybrid.interop.families.mamba2 import read_limits

    assert read_limits({}) == {}
    for high in (float("inf"), {"__float__": "Infinity"}):
        assert read_limits({"time_step_limit": [0.0, high]}) == {"dt_limit_min": 0.0, "dt_limit_max": None}
    assert read_limits({"time_step_limit": [0.1, 0.5]}) == {"dt_limit_min": 0.1, "dt_limit_max": 0.5}
    with pytest.raises(ConfigError, match=r"time_step_limit.*two numbers"):
        read_limits({"time_step_limit": 3})
