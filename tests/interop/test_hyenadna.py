"""HyenaDNA against a transcription of the published operator in torch, on fresh weights of random sizes."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hybrid
from hybrid.validation import ConfigError

pytest.importorskip("torch", reason="the operator is transcribed in torch: pip install -e .[parity]")
from safetensors.numpy import load_file, save_file

from tests.interop import parity
from tests.references import hyenadna_torch as hyenadna


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_the_published_operator(tmp_path, seed):
    g = np.random.default_rng(seed)
    sizes = {"d_model": int(g.integers(5, 40)), "d_inner": int(g.integers(5, 60)), "n_layer": int(g.integers(1, 4))}
    sizes |= {"max_seq_len": int(g.integers(40, 90)), "num_inner_mlps": int(g.integers(1, 4)), "emb_dim": [5, 9][seed]}
    folder = hyenadna.write(tmp_path / "theirs", seed, **sizes, tie_word_embeddings=bool(seed))
    config, params = hybrid.from_huggingface(folder)
    apply = jax.jit(lambda tokens: hybrid.apply(config, params, tokens))
    found = {}
    for length in (1, 39, sizes["max_seq_len"]):
        tokens = g.integers(0, 12, (2, length))
        wanted = hyenadna.logits(folder, tokens)
        found[length] = parity.difference(apply(jnp.asarray(tokens)), wanted)
    assert max(found.values()) <= parity.TOLERANCE, found
    print(f"hyenadna: max |difference| / max |logit| = {max(found.values()):.1e}")
    prompt, steps = tokens[:, :7], 32
    np.testing.assert_array_equal(
        hybrid.generate(config, params, jnp.asarray(prompt), steps), hyenadna.greedy(folder, prompt, steps)
    )
    hybrid.to_huggingface(config, params, tmp_path / "ours", family="hyenadna")
    assert parity.difference(hyenadna.logits(tmp_path / "ours", tokens), wanted) <= 1e-6


def test_sizes_are_those_of_the_published_configs(tmp_path):
    """hyenadna-tiny-1k: width 128, 2 layers, filters of 64 hidden numbers."""
    sizes = {"d_model": 128, "d_inner": 512, "n_layer": 2, "max_seq_len": 1026, "filter_order": 64}
    config, _ = hybrid.from_huggingface(hyenadna.write(tmp_path, **sizes))
    assert (config.pattern, config.vocab_size, config.hyena.filter_length) == ("(H-)2", 16, 1026)
    a_filter = 5 * 64 + 64 + 2 * (64 * 64 + 64) + 64 + 64 * 128 + 128 + 1026 * 5
    a_mixer = 128 * 384 + 384 + 3 * 384 + 384 + 128 * 128 + 128 + a_filter
    a_layer = a_mixer + 128 * 512 + 512 + 512 * 128 + 128 + 4 * 128
    assert hybrid.count(config, 8).parameters.total == 16 * 128 + 2 * a_layer + 2 * 128


def test_the_frequency_may_be_stored_under_each_of_its_names(tmp_path):
    folder = hyenadna.write(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("1.freq")]:
        tensors |= {re.sub(r"1\.freq$", f"{i}.freq", name): tensors[name] for i in (3, 5)}
    save_file(tensors, folder / "model.safetensors")
    hybrid.from_huggingface(folder)
    save_file(
        tensors | {name: 2 * tensors[name] for name in tensors if name.endswith("5.freq")}, folder / "model.safetensors"
    )
    with pytest.raises(ConfigError, match=r"5\.freq"):
        hybrid.from_huggingface(folder)


@pytest.mark.parametrize("field", ["hyena_order", "short_filter_order"])
def test_what_the_published_code_does_otherwise_is_refused(tmp_path, field):
    folder = hyenadna.write(tmp_path)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, field: 4}))
    with pytest.raises(ConfigError, match=field):
        hybrid.from_huggingface(folder)
