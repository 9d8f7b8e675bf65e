"""Streaming: the tokens of `generate`, one by one; prompts of any length share their programs; limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import ConfigError, ModelConfig, generate, init
from hybrid.decoding import programs
from hybrid.decoding.limits import rooms
from hybrid.decoding.stream import stream

CONFIG = ModelConfig(pattern="AM-", vocab_size=23, d_model=8, n_heads=2, mamba={"d_state": 2}, init_std=0.7)


@pytest.fixture(scope="module")
def params():
    return init(CONFIG, jax.random.key(0))


@pytest.mark.parametrize("length", [1, 5, 16, 21])
def test_greedy_gives_the_tokens_of_generate(params, length):
    prompt = np.random.default_rng(length).integers(0, 23, (2, length))
    found = np.stack(list(stream(CONFIG, params, prompt, 6)), axis=1)
    np.testing.assert_array_equal(found, generate(CONFIG, params, jnp.asarray(prompt), 6))
    assert len(np.unique(found)) > 2


def test_a_key_gives_the_draws_of_generate(params):
    prompt = np.array([[3, 1, 4]])
    options = {"key": jax.random.key(7), "temperature": 1.5, "top_k": 9, "top_p": 0.9}
    found = np.concatenate(list(stream(CONFIG, params, prompt, 8, **options)))
    np.testing.assert_array_equal(found, generate(CONFIG, params, jnp.asarray(prompt), 8, **options)[0])


def test_prompts_of_many_lengths_share_two_programs(params):
    programs.read.clear_cache()
    programs.append.clear_cache()
    for length in (1, 2, 9, 16):
        next(iter(stream(CONFIG, params, np.ones((1, length), int), 5)))
        list(stream(CONFIG, params, np.ones((1, length), int), 7))
    assert (programs.read._cache_size(), programs.append._cache_size()) == (1, 1)


def test_rooms():
    assert rooms(1, 3, None) == (16, 256)
    assert rooms(17, 240, None) == (32, 512)
    assert rooms(17, 32, 64) == (32, 64)
    assert rooms(17, 32, 60) == (17, 60)  # no room for padding
    assert rooms(30, 30, 60) == (30, 60)
    with pytest.raises(ConfigError, match="31 is not allowed; the model takes 60 tokens and the prompt has 30"):
        rooms(30, 31, 60)


def test_up_to_the_limit_of_the_model_and_not_past_it():
    config = ModelConfig(pattern="A-", vocab_size=11, d_model=8, n_heads=2, positions="learned", max_length=12)
    params = init(config, jax.random.key(1))
    prompt = np.array([[1, 2, 3, 4]])
    found = np.concatenate(list(stream(config, params, prompt, 8)))
    np.testing.assert_array_equal(found, generate(config, params, jnp.asarray(prompt), 8)[0])
    with pytest.raises(ConfigError, match="takes 12 tokens"):
        stream(config, params, prompt, 9)


def test_values_out_of_range_are_refused_before_anything_runs():
    prompt = np.array([[1]])
    for options, field in (({"steps": 0}, "steps"), ({"temperature": 1.0}, "key"), ({"top_k": 0}, "top_k")):
        with pytest.raises(ConfigError) as caught:
            stream(CONFIG, {"layers": {}}, prompt, **{"steps": 2, **options})
        assert caught.value.field == field


def test_models_that_do_not_continue_a_prompt_are_refused():
    encoder = ModelConfig(pattern="B-", vocab_size=11, d_model=8, n_heads=2)
    with pytest.raises(ConfigError, match=r"B .* cannot decode"):
        stream(encoder, {"layers": {}}, np.array([[1]]), 2)
