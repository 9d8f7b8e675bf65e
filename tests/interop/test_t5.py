"""T5 1.0 and 1.1 against transformers on fresh weights."""

from __future__ import annotations

import pytest

from tests.interop import parity

GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
VARIANTS = {
    "1.0": {},
    "1.1": GATED,
    "few buckets, one decoder layer": {
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "num_decoder_layers": 1,
    },
}  # fmt: skip
SIZES = {"vocab_size": parity.VOCABULARY, "d_model": 32, "d_ff": 40, "num_layers": 2, "num_heads": 4, "d_kv": 6}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_transformers(tmp_path, variant):
    from transformers import T5Config

    config = T5Config(**SIZES, **VARIANTS[variant], decoder_start_token_id=0)
    parity.check_encoder_decoder(config, tmp_path)


def test_a_head_that_is_not_tied(tmp_path):
    """The published 1.1 files; transformers makes fresh models tied, and then saves no head."""
    from transformers import T5Config

    def untie(model):
        model.lm_head.weight = parity.torch.nn.Parameter(parity.torch.randn(parity.VOCABULARY, 32))

    parity.check_encoder_decoder(T5Config(**SIZES, **GATED, decoder_start_token_id=0), tmp_path, change=untie)
