"""Bamba against transformers on fresh weights."""

from __future__ import annotations

import pytest

import hybrid
from hybrid.interop.huggingface import say_config
from hybrid.validation import ConfigError
from tests.interop import parity

SIZES = {
    **parity.TINY, "num_hidden_layers": 3, "num_key_value_heads": 2, "attn_layer_indices": [1], "mamba_n_heads": 8,
    "mamba_d_state": 6, "mamba_n_groups": 2, "mamba_chunk_size": 8,
}  # fmt: skip


def test_equal_to_transformers(tmp_path):
    from transformers import BambaConfig

    parity.check_decoder(BambaConfig(**SIZES), tmp_path)


def test_equal_with_biases_and_rope_of_its_own(tmp_path):
    """Its `in_proj` has a bias, whose trace in left padding transformers leaves (test_mamba2.py)."""
    from transformers import BambaConfig

    rope = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0}
    config = BambaConfig(
        **{**SIZES, "num_hidden_layers": 2}, mamba_proj_bias=True, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True, mamba_expand=1, rope_parameters=rope,
    )  # fmt: skip
    parity.check_decoder(config, tmp_path, left=False)


def test_layers_of_attention_are_those_of_the_published_model():
    """Bamba 9B: 32 layers with attention at 9, 18 and 27."""
    from hybrid.accounting import parameters
    from hybrid.interop.families.bamba import FAMILY

    said = {
        "model_type": "bamba", "attn_layer_indices": [9, 18, 27], "mamba_n_heads": 128, "mamba_d_head": 64,
        "mamba_d_state": 128, "rope_theta": 10000.0,
    }  # fmt: skip
    config = FAMILY.read(said)
    assert [i for i, symbol in enumerate(config.sequence[::2]) if symbol == "A"] == [9, 18, 27]
    assert round(parameters(config).total / 1e7) == 978  # 9.78 billion


def test_layers_of_attention_that_are_not_there_are_refused():
    from hybrid.interop.families.bamba import FAMILY

    with pytest.raises(ConfigError, match=r"config\.json: attn_layer_indices: \[3\].*0 to 2"):
        FAMILY.read({**SIZES, "attn_layer_indices": [3]})


def test_what_cannot_be_said_is_named():
    config = hybrid.ModelConfig(pattern="A-D-", vocab_size=17, d_model=32, n_heads=4)
    assert say_config(config)[1]["attn_layer_indices"] == [0]
    for fields, field in (({"pattern": "AD-"}, "pattern"), ({"mlp": {"activation": "geglu"}}, "mlp.activation")):
        changed = {"pattern": "A-D-", "vocab_size": 17, "d_model": 32, "n_heads": 4, **fields}
        with pytest.raises(ConfigError, match=field):
            say_config(hybrid.ModelConfig(**changed), "bamba")
