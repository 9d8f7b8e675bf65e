"""Generation: greedy against repeated apply, keys, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import ConfigError, ModelConfig, apply, generate, init
from hybrid.testing.subject import compiled

CONFIG = ModelConfig(pattern="MA", vocab_size=17, d_model=8, n_heads=2, mamba={"d_state": 2}, init_std=0.7)
PROMPT = jnp.array([[1, 2, 3], [4, 5, 6]])


@pytest.fixture(scope="module")
def params():
    return compiled(lambda key: init(CONFIG, key))(jax.random.key(0))


def test_greedy_takes_the_likeliest_of_repeated_apply(params):
    tokens = np.asarray(PROMPT)
    padded = compiled(lambda tokens: apply(CONFIG, params, tokens))
    for _ in range(5):
        fixed = np.zeros((2, 8), np.int32)  # later tokens are not seen: one program for all lengths
        fixed[:, : tokens.shape[1]] = tokens
        likeliest = np.asarray(padded(jnp.asarray(fixed)))[:, tokens.shape[1] - 1].argmax(-1)
        tokens = np.concatenate([tokens, likeliest[:, None]], axis=1)
    made = generate(CONFIG, params, PROMPT, 5)
    assert made.dtype == jnp.int32
    np.testing.assert_array_equal(made, tokens[:, 3:])
    assert len(np.unique(made)) > 1


def test_one_key_gives_one_sample_and_another_key_another(params):
    def draw(seed):
        return np.asarray(generate(CONFIG, params, PROMPT, 6, key=jax.random.key(seed), temperature=2.0, top_p=0.99))

    one = draw(0)
    np.testing.assert_array_equal(one, draw(0))
    assert (one != draw(1)).any()
    assert one.shape == (2, 6)
    assert ((one >= 0) & (one < 17)).all()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"steps": 0}, "steps"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 1.0}, "key"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"tokens": jnp.zeros((2, 0), jnp.int32)}, "tokens"),
    ],
)
def test_values_out_of_range_are_refused(options, field):
    options = {"tokens": PROMPT, "steps": 2, **options}
    tokens, steps = options.pop("tokens"), options.pop("steps")
    with pytest.raises(ConfigError) as caught:
        generate(CONFIG, {}, tokens, steps, **options)
    assert caught.value.field == field


def test_a_prompt_without_a_batch_is_refused():
    with pytest.raises((ConfigError, TypeError)):  # the latter where shapes are checked at run time
        generate(CONFIG, {}, jnp.zeros(3, jnp.int32), 2)


def test_more_tokens_than_a_model_takes_are_refused():
    config = ModelConfig(pattern="H", vocab_size=5, d_model=4, hyena={"filter_length": 8})
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    with pytest.raises(ConfigError, match="capacity: 9 is not allowed"):
        jax.eval_shape(lambda params: generate(config, params, jnp.zeros((1, 4), jnp.int32), 5), params)
