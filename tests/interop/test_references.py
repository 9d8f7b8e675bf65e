"""Every reference under tests/references gives the logits that transformers gave, and its greedy continuation."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import hybrid
from hybrid.testing.subject import compiled

FOLDERS = sorted(file.parent for file in (Path(__file__).parents[1] / "references").glob("*/expected.safetensors"))
TOLERANCE = 2e-4


def test_there_are_references():
    assert len(FOLDERS) >= 7


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_logits_and_continuation_are_those_of_transformers(folder):
    config, params = hybrid.from_huggingface(folder)
    expected = load_file(folder / "expected.safetensors")
    tokens, padding = jnp.asarray(expected["tokens"]), jnp.asarray(expected["padding"])
    wanted, real, options = expected["logits"], expected["padding"], {}
    if "decoder_tokens" in expected:
        options["decoder_tokens"] = jnp.asarray(expected["decoder_tokens"])
        real = np.ones(wanted.shape[:2], bool)
    apply = compiled(lambda params: hybrid.apply(config, params, tokens, padding=padding, **options))
    got = np.asarray(apply(params))
    assert np.abs(got - wanted)[real].max() <= TOLERANCE * np.abs(wanted[real]).max()
    if "continuation" in expected:
        found = hybrid.generate(config, params, tokens[:1], expected["continuation"].shape[1])
        np.testing.assert_array_equal(found, expected["continuation"])
