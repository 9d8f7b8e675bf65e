"""RecurrentGemma against transformers on fresh weights."""

from __future__ import annotations

import dataclasses
import math

import pytest

from hybrid.config import ModelConfig
from hybrid.interop.families.recurrent_gemma import FAMILY, embedding_scale
from hybrid.interop.huggingface import say_config
from hybrid.validation import ConfigError
from tests.interop import parity


def test_equal_to_transformers(tmp_path):
    from transformers import RecurrentGemmaConfig

    config = RecurrentGemmaConfig(
        **parity.TINY, num_hidden_layers=4, num_key_value_heads=1, lru_width=48, attention_window_size=6,
        logits_soft_cap=5.0, attention_bias=True, conv1d_width=3,
    )  # fmt: skip
    parity.check_decoder(config, tmp_path, left=False)


def test_left_padding_leaves_no_trace(tmp_path):
    """As theirs gives each row alone; their own batch does not, since the convolution reads the padding."""
    from transformers import RecurrentGemmaConfig

    config = RecurrentGemmaConfig(
        **parity.TINY, num_hidden_layers=3, attention_window_size=5, hidden_activation="gelu", logits_soft_cap=5.0
    )
    parity.check_whole_and_in_steps(config, tmp_path)


def test_the_embedding_is_scaled_by_a_root_in_bfloat16():
    assert embedding_scale(2560) == 50.5 != math.sqrt(2560)
    assert embedding_scale(4096) == 64.0


def test_published_sizes():
    """The config of recurrentgemma-2b: 26 layers, every third with attention."""
    config = FAMILY.read({"model_type": "recurrent_gemma", "num_key_value_heads": 1})
    assert "".join(config.sequence) == "L-L-S-" * 8 + "L-L-"
    assert (config.d_model, config.width_ff, config.sliding_window.window) == (2560, 7680 // 2, 2048)


def test_a_griffin_of_ours_can_be_said():
    config = ModelConfig(
        pattern="(L-)2S-", vocab_size=61, d_model=32, n_heads=4, n_kv_heads=1, head_dim=8, logit_softcap=30.0,
        embedding_scale=embedding_scale(32), norm_eps=1e-6, rglru={"blocks": 4, "min_radius": 0.8},
        sliding_window={"window": 7, "rope_fraction": 0.5, "out_bias": True},
        mlp={"activation": "geglu_tanh", "bias": True},
    )  # fmt: skip
    family, said = say_config(config)
    assert family is FAMILY
    assert said["block_types"] == ["recurrent", "recurrent", "attention"]
    with pytest.raises(ConfigError, match=r"rglru\.c: 4\.0 cannot be said"):
        say_config(dataclasses.replace(config, rglru={"c": 4.0}), "recurrent_gemma")


def test_what_the_family_cannot_say_is_refused():
    config = FAMILY.read({"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4})
    for change, words in (
        ({"pattern": "L-A-"}, "pattern.*can: L- and S-"),
        ({"logit_softcap": None}, "logit_softcap"),
        ({"embedding_scale": 1.0}, "embedding_scale"),
    ):
        with pytest.raises(ConfigError, match=words):
            FAMILY.write(dataclasses.replace(config, **change))
    with pytest.raises(ConfigError, match=r"block_types.*recurrent, attention"):
        FAMILY.read({"block_types": ["recurrent", "convolution"]})
