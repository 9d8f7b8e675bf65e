"""Falcon-H1 against transformers on fresh weights."""

from __future__ import annotations

import json

import pytest

import hybrid
from hybrid.interop.huggingface import say_config
from hybrid.validation import ConfigError
from tests.interop import parity

SIZES = {
    **parity.TINY, "num_hidden_layers": 2, "num_key_value_heads": 2, "mamba_d_ssm": 48, "mamba_n_heads": 6,
    "mamba_d_state": 6, "mamba_n_groups": 2, "mamba_chunk_size": 8,
}  # fmt: skip
MULTIPLIERS = {
    "lm_head_multiplier": 0.3, "embedding_multiplier": 2.0, "mlp_multipliers": [0.7, 0.6], "key_multiplier": 0.5,
    "attention_out_multiplier": 0.8, "attention_in_multiplier": 1.2, "ssm_multipliers": [0.5, 1.5, 0.7, 1.3, 0.9],
    "ssm_in_multiplier": 0.8, "ssm_out_multiplier": 0.9,
}  # fmt: skip


def test_equal_to_transformers_with_all_multipliers(tmp_path):
    """They are folded: what is written says 1, but for the embedding and the logits, and gives the same logits."""
    from transformers import FalconH1Config

    parity.check_decoder(FalconH1Config(**SIZES, **MULTIPLIERS), tmp_path)
    said = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (said["embedding_multiplier"], said["lm_head_multiplier"]) == (2.0, 0.3)
    assert not {*MULTIPLIERS} - {"embedding_multiplier", "lm_head_multiplier"} & {*said}


@pytest.mark.parametrize("norm_before_gate", [True, False])
def test_equal_with_the_norm_and_biases_and_tied(tmp_path, norm_before_gate):
    """The bias of `in_proj` leaves a trace in left padding there (test_mamba2.py)."""
    from transformers import FalconH1Config

    config = FalconH1Config(
        **{**SIZES, "num_hidden_layers": 1}, **MULTIPLIERS, mamba_rms_norm=True, projectors_bias=True,
        mamba_norm_before_gate=norm_before_gate, mamba_proj_bias=True, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    )  # fmt: skip
    parity.check_decoder(config, tmp_path, left=False)


@pytest.mark.parametrize(
    "said", [{"ssm_multipliers": [1.0]}, {"mlp_multipliers": [1.0, "2"]}, {"mamba_d_head": 7}, {"mamba_n_heads": 0}]
)
def test_what_cannot_be_read_is_named(said):
    from hybrid.interop.families.falcon_h1 import FAMILY

    json_ = {**SIZES, **said}
    with pytest.raises(ConfigError, match=rf"config\.json: ({next(iter(said))}|mamba_d_head)"):
        FAMILY.rules(FAMILY.read(json_), json_)


def test_what_cannot_be_said_is_named():
    sizes = {"vocab_size": 17, "d_model": 32, "n_heads": 4}
    family, said = say_config(hybrid.ModelConfig(pattern="([A|D]-)2", **sizes))
    assert family.model_types == ("falcon_h1",) and said["mamba_rms_norm"]
    for fields, field in (({"pattern": "[D|A]-"}, "pattern"), ({"merge": "mean"}, "merge")):
        with pytest.raises(ConfigError, match=field):
            say_config(hybrid.ModelConfig(**{"pattern": "[A|D]-", **sizes, **fields}), "falcon_h1")
