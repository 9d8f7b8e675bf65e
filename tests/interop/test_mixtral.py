"""Mixtral against transformers on fresh weights, and its balance loss against ours."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import hybrid
from hybrid.ops.routing import balance, choose, load
from tests.interop import parity

SIZES = {**parity.TINY, "num_hidden_layers": 2, "num_key_value_heads": 2}
VARIANTS = {
    "two of four, tied": {"num_local_experts": 4, "tie_word_embeddings": True},
    "three of five, a window, head_dim of its own": {
        "num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 6, "head_dim": 12,
    },
    "one expert": {"num_local_experts": 3, "num_experts_per_tok": 1},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_transformers(tmp_path, variant):
    from transformers import MixtralConfig

    parity.check_decoder(MixtralConfig(**SIZES, **VARIANTS[variant]), tmp_path)


def test_a_gate_of_jamba_or_a_shared_expert_cannot_be_said():
    for moe in ({"gate": "jamba"}, {"n_shared": 1}, {"gate_scale": 2.0}, {"bias_rate": 1e-3}):
        config = hybrid.ModelConfig(pattern="AE", vocab_size=7, d_model=8, n_heads=2, tie_embeddings=False, moe=moe)
        with pytest.raises(hybrid.ConfigError, match="mixtral model"):
            hybrid.interop.huggingface.say_config(config, "mixtral")


def test_its_balance_loss_is_k_times_ours(x64):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits, k, experts = np.random.default_rng(0).standard_normal((50, 6)), 3, 6
    real = jnp.ones(50, bool)
    choice = choose(jnp.asarray(logits), k, "mixtral")
    ours = balance(load(choice.experts, real, experts).astype(float), choice.probabilities, real)
    published = load_balancing_loss_func((parity.torch.tensor(logits),), experts, k)
    np.testing.assert_allclose(float(published), k * ours, rtol=1e-6)
