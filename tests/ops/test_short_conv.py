"""The short convolution equals its definition, carries its inputs exactly, and keeps documents apart."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.ops.short_conv import causal_conv, causal_conv_reference, past_padding
from hybrid.validation import ConfigError


def inputs(length, k=4, batch=2, channels=3, seed=0):
    g = np.random.default_rng(seed)
    shapes = {
        "x": (batch, length, channels),
        "weight": (k, channels),
        "bias": (channels,),
        "initial": (batch, k - 1, channels),
    }
    return {name: jnp.asarray(g.normal(size=shape)) for name, shape in shapes.items()}


def segments(length, batch=2, seed=0):
    g = np.random.default_rng(seed)
    return jnp.asarray(np.cumsum(g.random((batch, length)) < 0.4, axis=1) % 2)


@partial(jax.jit, static_argnames=("function", "cut"))
def value_and_gradient(function, arrays, **options):
    out, pull = jax.vjp(lambda arrays: function(**arrays, **options), arrays)
    return out, pull(jax.tree.map(jnp.cos, out))[0]


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), a, b)


@settings(max_examples=8, deadline=None)
@given(shape=st.sampled_from([(5, 3), (2, 4), (3, 1)]), seed=st.integers(0, 99), known=st.sampled_from([0, 1, 2]))
def test_equals_the_definition_in_value_and_gradient(shape, seed, known):
    """Without segments, with those of x, and with those of the inputs before too."""
    length, k = shape
    with jax.enable_x64(True):
        ids = segments(length + k - 1, seed=seed)
        every = {"segment_ids": ids[:, k - 1 :], "previous_segments": ids[:, : k - 1]}
        options = dict(list(every.items())[:known])
        arrays = inputs(length, k, seed=seed)
        close(
            value_and_gradient(causal_conv, arrays, **options),
            value_and_gradient(causal_conv_reference, arrays, **options),
        )


def in_two_calls(x, weight, bias, initial, segment_ids, cut):
    left, right = segment_ids[:, :cut], segment_ids[:, cut:]
    y1, last = causal_conv(x[:, :cut], weight, bias, initial=initial, segment_ids=left)
    y2, last = causal_conv(x[:, cut:], weight, bias, initial=last, segment_ids=right, previous_segments=left[:, -1])
    return jnp.concatenate([y1, y2], axis=1), last


@settings(max_examples=8, deadline=None)
@given(cut=st.integers(1, 5), seed=st.integers(0, 99))
def test_two_calls_with_carried_inputs_equal_one(cut, seed):
    """Also where the first part is shorter than the kernel; the carry needs one segment id a row."""
    with jax.enable_x64(True):
        arrays, ids = inputs(6, seed=seed), segments(6, seed=seed)
        whole = value_and_gradient(causal_conv, arrays, segment_ids=ids)
        close(value_and_gradient(in_two_calls, arrays, segment_ids=ids, cut=cut), whole)


@settings(max_examples=8, deadline=None)
@given(real=st.lists(st.integers(0, 5), min_size=2, max_size=2), k=st.integers(1, 5), seed=st.integers(0, 99))
def test_leading_padding_between_the_inputs_of_before_and_those_of_now_is_as_if_it_were_not_there(real, k, seed):
    with jax.enable_x64(True):
        arrays = inputs(5, k, seed=seed)
        padding = jnp.arange(5)[None] >= 5 - jnp.array(real)[:, None]
        initial, x = past_padding(arrays["initial"], arrays["x"], padding)
        y, last = causal_conv(x, arrays["weight"], initial=initial)
        for row, n in enumerate(real):
            alone = arrays["x"][row : row + 1, 5 - n :], arrays["weight"]
            wanted, tail = causal_conv(*alone, initial=arrays["initial"][row : row + 1])
            close((y[row, 5 - n :], last[row]), (wanted[0], tail[0]))


def test_position_depends_on_itself_and_the_k_minus_1_before(x64):
    arrays = inputs(8, k=3, batch=1)

    def at_five(x):
        return causal_conv(x, arrays["weight"])[0][0, 5].sum()

    touched = (jax.grad(at_five)(arrays["x"]) != 0).any(-1)[0]
    assert touched.tolist() == [False, False, False, True, True, True, False, False]


def test_inputs_of_another_document_count_as_zero_even_when_its_id_comes_back(x64):
    x, weight = jnp.ones((1, 3, 1)), jnp.ones((3, 1))
    y, last = causal_conv(x, weight, segment_ids=jnp.array([[7, 5, 7]]))
    assert y.ravel().tolist() == [1, 1, 1]
    assert last.ravel().tolist() == [0, 1]


def test_bfloat16_is_summed_in_float32():
    x, weight = jnp.ones((1, 300, 1), jnp.bfloat16), jnp.full((300, 1), 1.0)
    y, last = causal_conv(x, weight, jnp.full((1,), 0.25))
    assert y.dtype == last.dtype == jnp.bfloat16
    assert y[0, -1, 0] == jnp.bfloat16(300.25)  # a bfloat16 sum would stop at 256


def test_no_tokens_change_nothing(x64):
    arrays = inputs(0)
    y, last = causal_conv(**arrays)
    assert y.shape == (2, 0, 3)
    np.testing.assert_array_equal(last, arrays["initial"])


def test_wrong_shapes_are_refused():
    with pytest.raises(ConfigError, match="weight"):
        causal_conv(jnp.ones((1, 4, 3)), jnp.ones((4, 2)))
    with pytest.raises(ConfigError, match="initial"):
        causal_conv(jnp.ones((1, 4, 3)), jnp.ones((4, 3)), initial=jnp.ones((1, 4, 3)))
