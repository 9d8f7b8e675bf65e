"""GGUF: the numbers that were written, the order of heads, settings, and errors that name what is wrong."""

from __future__ import annotations

import math

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hybrid
from hybrid.layout import per_layer
from hybrid.validation import ConfigError
from tests.interop import gguf_files as files


def layers(params):
    return per_layer(params)["layers"]


def test_every_number_arrives_where_it_belongs(tmp_path):
    wanted = files.weights(biases=True, head=True)
    config, params = hybrid.from_gguf(files.write(tmp_path / "a.gguf", wanted))
    assert config.pattern == "(A-)2"
    assert (config.d_model, config.n_heads, config.n_kv_heads, config.d_ff) == (64, 4, 2, 96)
    assert (config.norm_eps, config.attention.rope_theta, config.max_length) == (1e-5, 500.0, 128)
    assert not config.tie_embeddings and config.attention.qkv_bias and config.attention.out_bias and config.mlp.bias
    np.testing.assert_array_equal(params["embedding"]["tokens"], wanted["token_embd.weight"])
    np.testing.assert_array_equal(params["head"]["kernel"], wanted["output.weight"].T)
    np.testing.assert_array_equal(params["final_norm"]["scale"], wanted["output_norm.weight"])
    names = {"query": "attn_q", "key": "attn_k", "value": "attn_v", "out": "attn_output"}
    channel = {"up": "ffn_up", "gate": "ffn_gate", "down": "ffn_down"}
    for block in range(2):
        for index, table, norm in ((2 * block, names, "attn_norm"), (2 * block + 1, channel, "ffn_norm")):
            layer = layers(params)[str(index)]
            np.testing.assert_array_equal(layer["norm"]["scale"], wanted[f"blk.{block}.{norm}.weight"])
            for ours, theirs in table.items():
                np.testing.assert_array_equal(layer["sublayer"][ours], wanted[f"blk.{block}.{theirs}.weight"].T)
                np.testing.assert_array_equal(layer["sublayer"][f"{ours}_bias"], wanted[f"blk.{block}.{theirs}.bias"])


def test_a_file_without_a_head_ties_it_to_the_embedding(tmp_path):
    config, params = hybrid.from_gguf(files.write(tmp_path / "a.gguf", files.weights()))
    assert config.tie_embeddings and "head" not in params and not config.attention.qkv_bias


def test_rows_as_stored_turn_in_neighbouring_pairs_and_ours_in_halves(tmp_path):
    """The scores of the stored rows under llama.cpp's rotation are those of ours under ours."""
    from hybrid.positions import frequencies, rope

    path = files.write(tmp_path / "a.gguf", files.weights())
    stored = {t.name: np.asarray(t.data, np.float64) for t in gguf.GGUFReader(path).tensors}
    _, params = hybrid.from_gguf(path)
    x = np.random.default_rng(1).standard_normal((6, files.WIDTH))
    turns = 500.0 ** (-np.arange(0, files.HEAD, 2) / files.HEAD)
    angles = np.arange(6)[:, None, None] * turns

    def theirs(name, heads):
        v = (x @ stored[f"blk.0.{name}.weight"].T).reshape(6, heads, -1, 2)
        return (v[..., 0] + 1j * v[..., 1]) * np.exp(1j * angles)

    q, k = theirs("attn_q", files.HEADS), theirs("attn_k", files.KV_HEADS)
    wanted = np.einsum("qhp,kgp->hgqk", q, k.conj()).real
    ours = []
    for name, heads in (("query", files.HEADS), ("key", files.KV_HEADS)):
        v = (jnp.asarray(x) @ layers(params)["0"]["sublayer"][name]).reshape(1, 6, heads, -1)
        ours.append(np.asarray(rope(v, jnp.arange(6)[None], frequencies(files.HEAD, 500.0)))[0])
    np.testing.assert_allclose(np.einsum("qhd,kgd->hgqk", *ours), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "BF16", "F16"])
def test_quantised_matrices_are_what_the_package_makes_of_them(tmp_path, kind):
    wanted, kind = files.weights(), gguf.GGMLQuantizationType[kind]
    _, params = hybrid.from_gguf(files.write(tmp_path / "a.gguf", wanted, kind=kind))

    def stored(array):
        return gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)

    layer = layers(params)["1"]["sublayer"]
    np.testing.assert_array_equal(layer["up"], stored(wanted["blk.0.ffn_up.weight"]).T)
    # The rows of a query are cut into blocks of their own, so their order does not matter.
    np.testing.assert_array_equal(layers(params)["0"]["sublayer"]["query"], stored(wanted["blk.0.attn_q.weight"]).T)
    assert np.abs(np.asarray(layer["up"]) - wanted["blk.0.ffn_up.weight"].T).max() > 1e-5
    assert layer["up"].dtype == jnp.float32


def llama3_factors(factor, low, high, original, theta, head):
    """As llama.cpp's converter writes them, by wavelengths."""
    found = []
    for i in range(0, head, 2):
        wavelength = 2 * math.pi * theta ** (i / head)
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original / low:
            found.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.asarray(found, np.float32)


def test_llama_3s_factors_are_read_as_its_scaling(tmp_path):
    settings = {**files.SETTINGS, "rope.freq_base": 500000.0}
    factors = llama3_factors(32.0, 1.0, 4.0, 8192, 500000.0, files.HEAD)
    assert len(set(factors)) > 2  # one at least lies between
    tensors = {**files.weights(), "rope_freqs.weight": factors}
    config, _ = hybrid.from_gguf(files.write(tmp_path / "a.gguf", tensors, settings=settings))
    group = config.attention
    assert (group.rope_scaling, group.rope_factor, group.rope_original_length) == ("llama3", 32.0, 8192)
    assert (group.rope_low, group.rope_high) == (1.0, 4.0)


def test_linear_scaling(tmp_path):
    more = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    config, _ = hybrid.from_gguf(files.write(tmp_path / "a.gguf", files.weights(), settings={**files.SETTINGS, **more}))
    assert (config.attention.rope_scaling, config.attention.rope_factor) == ("linear", 4.0)


def test_no_scaling_is_no_scaling_even_with_factors_of_one(tmp_path):
    tensors = {**files.weights(), "rope_freqs.weight": np.ones(files.HEAD // 2, np.float32)}
    more = {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}
    config, _ = hybrid.from_gguf(files.write(tmp_path / "a.gguf", tensors, settings={**files.SETTINGS, **more}))
    assert config.attention.rope_scaling == "none"


def changed(**settings):
    kept = {**files.SETTINGS, **{name.replace("__", "."): value for name, value in settings.items()}}
    return {"settings": {name: value for name, value in kept.items() if value is not None}}


BAD_SETTINGS = {
    "architecture": ({"architecture": "gemma3"}, ("'gemma3'", "only 'llama'")),
    "experts": (changed(expert_count=8), ("llama.expert_count", "8")),
    "unknown setting": (changed(attention__sliding_window=64), ("llama.attention.sliding_window", "not known")),
    "yarn": (changed(rope__scaling__type="yarn"), ("llama.rope.scaling.type", "'yarn'")),
    "part of a head": (changed(rope__dimension_count=8), ("llama.rope.dimension_count", "8", "must be 16")),
    "no depth": (changed(block_count=None), ("llama.block_count", "not in the file")),
    "heads a block": (changed(attention__head_count=[4, 2]), ("llama.attention.head_count", "one integer")),
    "parts": ({"more": {"split.count": 3}}, ("3 parts",)),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_are_not_read_are_named(tmp_path, name):
    options, words = BAD_SETTINGS[name]
    path = files.write(tmp_path / "a.gguf", files.weights(), **options)
    refused(path, *words)


def refused(path, *words):
    with pytest.raises(ConfigError) as caught:
        hybrid.from_gguf(path)
    line = str(caught.value)
    assert all(word in line for word in words) and "\n" not in line, line


def test_tensors_that_are_missing_left_over_or_of_a_wrong_shape_are_named(tmp_path):
    tensors = files.weights()
    del tensors["blk.1.ffn_up.weight"]
    refused(files.write(tmp_path / "a.gguf", tensors), "missing: blk.1.ffn_up.weight")
    extra = {**files.weights(), "blk.0.ffn_gate_inp.weight": np.ones((2, 2), np.float32)}
    refused(files.write(tmp_path / "b.gguf", extra), "left over: blk.0.ffn_gate_inp.weight")
    wrong = {**files.weights(), "blk.0.attn_v.weight": np.ones((30, 64), np.float32)}
    refused(files.write(tmp_path / "c.gguf", wrong), "wrong shape: blk.0.attn_v.weight", "(30, 64)", "(32, 64)")
    strange = {**files.weights(), "rope_freqs.weight": np.linspace(1, 9, files.HEAD // 2).astype(np.float32)}
    refused(files.write(tmp_path / "d.gguf", strange), "rope_freqs.weight")


def test_what_is_no_whole_gguf_file_is_refused(tmp_path):
    refused(tmp_path / "none.gguf", "none.gguf", "cannot be read")
    refused(tmp_path, "cannot be read")
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04" + bytes(100))
    refused(other, "is no GGUF file")
    other.write_bytes(b"GGUF")
    refused(other, "does not say its architecture")
    whole = files.write(tmp_path / "a.gguf", files.weights()).read_bytes()
    for size in (40, 70, 300, len(whole) // 2):  # in the header, in the metadata, among the numbers
        other.write_bytes(whole[:size])
        refused(other, "other.gguf")


THEIRS = {
    "token_embd": "embed_tokens", "output_norm": "norm", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
"""GGUF's name of a module -> transformers'."""


def transformers_name(name):
    if name == "output.weight":
        return "lm_head.weight"
    *block, module, part = name.removeprefix("blk.").split(".")
    return ".".join(["model", *(["layers", *block] if block else []), THEIRS[module], part])


def transformers_model(config, tensors):
    """transformers' Llama with these weights, which are in its own order."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.interop import parity  # skips, saying so, without torch

    with parity.quiet():
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.d_model,
                num_hidden_layers=config.n_layers // 2,
                num_attention_heads=config.n_heads,
                num_key_value_heads=config.n_kv_heads,
                head_dim=config.head_dim,
                intermediate_size=config.d_ff,
                rms_norm_eps=config.norm_eps,
                max_position_embeddings=config.max_length,
                rope_parameters={"rope_type": "default", "rope_theta": config.attention.rope_theta},
                tie_word_embeddings=config.tie_embeddings,
                attn_implementation="eager",
            )
        )
        state = {transformers_name(name): parity.torch.tensor(array) for name, array in tensors.items()}
        found = model.float().eval().load_state_dict(state, strict=False)
    assert set(found.missing_keys) <= {"lm_head.weight"} and not found.unexpected_keys
    model.tie_weights()
    return model


def test_equal_to_transformers(tmp_path):
    from tests.interop import parity

    tensors = files.weights(head=True, seed=3)
    config, params = hybrid.from_gguf(files.write(tmp_path / "a.gguf", tensors))
    tokens = np.random.default_rng(5).integers(0, files.VOCABULARY, (2, 23))
    ours = jax.jit(lambda params, tokens: hybrid.apply(config, params, tokens))(params, tokens)
    theirs = parity.theirs(transformers_model(config, tensors), tokens)
    assert parity.difference(ours, theirs) <= parity.TOLERANCE
