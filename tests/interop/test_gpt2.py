"""GPT-2 against transformers on fresh weights."""

from __future__ import annotations

import pytest

from tests.interop import parity


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_equal_to_transformers(tmp_path, activation):
    from transformers import GPT2Config

    sizes = {"vocab_size": parity.VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    parity.check_decoder(GPT2Config(**sizes, activation_function=activation), tmp_path)
