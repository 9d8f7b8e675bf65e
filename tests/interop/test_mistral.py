"""Mistral against transformers on fresh weights, with a window and without one."""

from __future__ import annotations

import pytest

from tests.interop import parity


@pytest.mark.parametrize("window", [5, None])
def test_equal_to_transformers(tmp_path, window):
    from transformers import MistralConfig

    config = MistralConfig(**parity.TINY, num_hidden_layers=2, num_key_value_heads=2, sliding_window=window)
    parity.check_decoder(config, tmp_path)
