"""Jamba against transformers on fresh weights, with and without experts; periods and offsets as patterns."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import hybrid
from hybrid.interop.families.jamba import FAMILY, periodic
from hybrid.interop.huggingface import say_config
from hybrid.validation import ConfigError
from tests.interop import parity

SIZES = {**parity.TINY, "num_key_value_heads": 2, "mamba_d_state": 4, "attn_layer_period": 3, "attn_layer_offset": 1}
VARIANTS = {
    "experts": {"num_hidden_layers": 4, "num_experts": 4, "mamba_dt_rank": 3},
    "no experts, tied": {"num_hidden_layers": 3, "num_experts": 1, "tie_word_embeddings": True, "mamba_d_conv": 3},
    "experts first, biases": {
        "num_hidden_layers": 3, "num_experts": 3, "num_experts_per_tok": 1, "expert_layer_offset": 0,
        "mamba_proj_bias": True, "mamba_conv_bias": False, "rms_norm_eps": 1e-3,
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_transformers(tmp_path, variant):
    from transformers import JambaConfig

    # A bias of their in_proj reaches the convolution from padded places, and is seen behind left padding.
    left = not VARIANTS[variant].get("mamba_proj_bias", False)
    parity.check_decoder(JambaConfig(**SIZES, **VARIANTS[variant]), tmp_path, left=left)


def test_its_router_leaves_the_weights_of_the_chosen_as_they_are(x64):
    from transformers import JambaConfig
    from transformers.models.jamba.modeling_jamba import JambaTopKRouter

    from hybrid.ops.routing import choose

    torch = parity.torch
    config = JambaConfig(**SIZES, num_hidden_layers=2, num_experts=5)
    router = JambaTopKRouter(config)
    with parity.quiet():
        torch.nn.init.normal_(router.weight, std=0.2)
        x = torch.randn(7, 32)
        logits, weights, experts = router(x)
    ours = choose(jnp.asarray(logits.numpy(), jnp.float64), 2, "jamba")
    np.testing.assert_array_equal(ours.experts, experts.numpy())
    np.testing.assert_allclose(ours.weights, weights.numpy(), rtol=1e-5)
    assert (weights.sum(-1) < 0.999).all()


def test_the_published_config_is_the_published_pattern():
    config = FAMILY.read({})  # the class's defaults are Jamba v0.1's
    assert config.sequence == tuple(hybrid.expand("(M-MEM-MEA-MEM-ME)4"))
    said = say_config(config, "jamba")[1]
    names = ("attn_layer_period", "attn_layer_offset", "expert_layer_period", "expert_layer_offset")
    assert [said[name] for name in names] == [8, 4, 2, 1]


@pytest.mark.parametrize(
    ("symbols", "wanted"), [("MMAMMA", (3, 2)), ("AAA", (1, 0)), ("MMM", (4, 3)), ("MAMM", (3, 1))]
)
def test_periods_put_the_symbols_where_they_stood(symbols, wanted):
    period, offset = periodic(tuple(symbols), "A")
    assert (period, offset) == wanted
    assert [i % period == offset for i in range(len(symbols))] == [symbol == "A" for symbol in symbols]


def test_what_has_no_period_cannot_be_said():
    with pytest.raises(ConfigError, match=r"layers \[0, 1\] of 4"):
        periodic(tuple("AAMM"), "A")
