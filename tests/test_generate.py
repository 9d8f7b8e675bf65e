"""Generation: greedy against repeated apply, keys, errors."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import ConfigError, ModelConfig, apply, generate, init
from hybrid.accounting import parameters
from hybrid.decoding.generate import loop
from hybrid.decoding.limits import rooms
from hybrid.decoding.programs import padded, read, step, unstacked
from hybrid.flops import count_jaxpr
from hybrid.model import init_state
from hybrid.params import declarations_per_layer, leaves
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
        ({"ends": (17,)}, "ends"),
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
    with pytest.raises(ConfigError, match="steps: 5 is not allowed; the model takes 8 tokens and the prompt has 4"):
        jax.eval_shape(lambda params: generate(config, params, jnp.zeros((1, 4), jnp.int32), 5), params)


def test_a_row_ends_with_an_end_token_and_repeats_it(params):
    free = np.asarray(generate(CONFIG, params, PROMPT, 12, key=jax.random.key(2), temperature=3.0))
    ends = (int(free[0, 2]), int(free[1, 7]))
    made = np.asarray(generate(CONFIG, params, PROMPT, 12, key=jax.random.key(2), temperature=3.0, ends=ends))
    for row, whole in zip(made, free, strict=True):
        stop = min(i for i, token in enumerate(whole) if token in ends)
        np.testing.assert_array_equal(row[: stop + 1], whole[: stop + 1])
        assert (row[stop:] == whole[stop]).all()
    assert (made != free).any()


def test_the_loop_ends_when_all_rows_have_ended(params):
    """Steps that are counted by the state: it has read no more tokens than were needed."""
    likeliest = np.asarray(generate(CONFIG, params, PROMPT, 8))
    size, capacity = rooms(3, 4096, None)
    last, state = read(CONFIG, params, *padded(PROMPT, size), capacity)
    ends = np.asarray(likeliest[:, 4], np.int32)
    needed = max(int(np.isin(row, ends).argmax()) for row in likeliest)
    made, state = loop(CONFIG, params, last, state, jax.random.key(0), np.int32(4096), ends, 4096, 0.0, None, None)
    np.testing.assert_array_equal(state.length, 3 + needed)
    assert made.shape == (2, 4096) and np.isin(made[:, -1], ends).all()


def test_prompts_of_many_lengths_and_any_steps_share_two_programs(params):
    read.clear_cache()
    loop.clear_cache()
    for length, steps in ((1, 9), (2, 12), (7, 16), (16, 10)):
        generate(CONFIG, params, jnp.ones((1, length), jnp.int32), steps)
    assert (read._cache_size(), loop._cache_size()) == (1, 1)
    generate(CONFIG, params, jnp.ones((1, 17), jnp.int32), 17)
    assert (read._cache_size(), loop._cache_size()) == (2, 2)


def test_padding_in_front_of_a_short_prompt_leaves_no_trace(params):
    """By the logits, which greedy tokens alone would hide."""
    exact, state = read(CONFIG, params, *padded(PROMPT, 3), 256)
    wide, padded_state = read(CONFIG, params, *padded(PROMPT, 16), 256)
    np.testing.assert_allclose(exact, wide, atol=1e-5)
    np.testing.assert_array_equal(state.length, padded_state.length)


DECODED = ModelConfig(
    pattern="M-A-D-G-L-S-C-", vocab_size=64, d_model=64, n_heads=2, mamba={"d_state": 8}, mamba2={"d_state": 16},
    sliding_window={"window": 32}, short_conv={"width": 3},
)  # fmt: skip


def compiled_loop(config, batch, capacity):
    state = jax.eval_shape(lambda: init_state(config, batch, capacity))
    last = jax.ShapeDtypeStruct((batch, config.vocab_size), "float32")
    scalars = np.int32(64), np.zeros(0, np.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = unstacked(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    program = loop.lower(config, params, last, state, key, *scalars, 64, 0.0, None, None).compile()
    return program, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def test_the_state_is_updated_in_its_own_buffers():
    program, nbytes = compiled_loop(DECODED, 2, 2048)
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == nbytes  # every leaf of the state given is one of the state returned
    wider, twice = compiled_loop(DECODED, 2, 4096)
    assert twice > 1.5 * nbytes
    assert wider.memory_analysis().temp_size_in_bytes - memory.temp_size_in_bytes < 2**12  # no copy of a cache


def test_no_weight_is_copied_in_the_loop():
    """Copies and transposes of the shapes of weights, anywhere in the compiled program."""
    config = dataclasses.replace(DECODED, pattern="M-A-", d_model=96, d_ff=224)
    program, _ = compiled_loop(config, 1, 256)
    text = program.as_text()
    shapes = {param.shape for _, param in leaves(declarations_per_layer(config)) if param.size >= 96 * 64}
    assert len(shapes) >= 5
    for shape in shapes:
        for made in (shape, shape[::-1]):
            assert f"= f32[{','.join(map(str, made))}]" not in without_parameters(text), shape


def without_parameters(text):
    return "\n".join(
        line for line in text.splitlines() if " parameter(" not in line and "get-tuple-element" not in line
    )


@pytest.mark.parametrize("symbol", ["M", "D", "G", "L", "C", "S"])
def test_one_token_costs_the_same_at_any_length(symbol):
    """The state has one size, so the program of a step is one and the same, whatever was read before."""
    config = counted(dataclasses.replace(DECODED, pattern=f"{symbol}-"))
    short, long = (jax.eval_shape(lambda room=room: init_state(config, 1, room)) for room in (64, 1 << 17))
    assert jax.tree.map(lambda leaf: leaf.shape, short) == jax.tree.map(lambda leaf: leaf.shape, long)
    assert operations(config, long) < 4 * parameters(config).total


def test_the_cost_of_attention_is_what_grows():
    """In the form whose operations can be counted, which reads all its slots."""
    config = counted(dataclasses.replace(DECODED, pattern="A-"))
    small, large = (jax.eval_shape(lambda room=room: init_state(config, 1, room)) for room in (1024, 2048))
    grown = operations(config, large) - operations(config, small)
    products = 4 * 1024 * config.d_model  # of the queries with 1024 more keys, and of the weights with the values
    assert products <= grown <= 1.2 * products


def counted(config):
    """With the forms of operators that have no loop of unknown length."""
    forms = {kind.group: kind.counted for kind, _ in config.parts()} | {"sliding_window": {"form": "plain"}}
    changes = {name: dataclasses.replace(getattr(config, name), **form) for name, form in forms.items()}
    return dataclasses.replace(config, **changes)


def operations(config, state):
    params = unstacked(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    jaxpr = jax.make_jaxpr(lambda *a: step(config, *a))(params, jax.ShapeDtypeStruct((1,), "int32"), state)
    return count_jaxpr(jaxpr)


def test_temporaries_of_a_hybrid_are_small_at_a_long_context():
    config = ModelConfig(
        pattern="M-M-M-M-A-M-M-M-", vocab_size=256, d_model=256, d_ff=512, n_heads=4, mamba={"d_state": 16}
    )
    program, nbytes = compiled_loop(config, 1, 8192)
    assert nbytes > 16 * 2**20
    assert program.memory_analysis().temp_size_in_bytes <= 2**20
