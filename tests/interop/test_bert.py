"""BERT against transformers on fresh weights: with its head, and the plain encoder."""

from __future__ import annotations

import pytest

from tests.interop import parity


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertModel"])
def test_equal_to_transformers(tmp_path, kind):
    from transformers import BertConfig

    config = BertConfig(**parity.TINY, num_hidden_layers=2, max_position_embeddings=32, type_vocab_size=3)
    parity.check_encoder(config, tmp_path, kind)
