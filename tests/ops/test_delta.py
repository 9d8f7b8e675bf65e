"""The forms of the gated delta rule equal its definition, carry the memory exactly, and keep documents apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.ops import delta
from hybrid.ops.delta import FORMS, gated_delta_rule, gated_delta_rule_reference
from hybrid.ops.forms import noted
from hybrid.validation import ConfigError
from tests.ops.recurrences import close, segments, value_and_gradient


def inputs(length, heads=2, key_heads=1, batch=2, d_key=3, d_value=2, seed=0, dtype=None):
    g = np.random.default_rng(seed)
    k = g.normal(size=(batch, length, key_heads, d_key))
    arrays = {
        "q": g.normal(size=(batch, length, key_heads, d_key)),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": g.normal(size=(batch, length, heads, d_value)),
        "log_decay": -np.exp(g.normal(size=(batch, length, heads))),
        "beta": g.uniform(0, 2, size=(batch, length, heads)),
        "initial_state": g.normal(size=(batch, heads, d_key, d_value)),
    }
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()}


@pytest.mark.parametrize("packed", ["one document", "packed", "packed, cut before"])
def test_forms_equal_the_definition_in_value_and_gradient(x64, packed):
    options = {} if packed == "one document" else {"segment_ids": segments(10)}
    if packed == "packed, cut before":  # the memory enters the first row and not the second
        options["previous_segment"] = options["segment_ids"][:, 0] + jnp.array([0, 1])
    arrays = inputs(10, heads=4, key_heads=2)
    wanted = value_and_gradient(gated_delta_rule_reference, arrays, **options)
    for form in FORMS:
        close(value_and_gradient(gated_delta_rule, arrays, **options, form=form, chunk=4), wanted)


@settings(max_examples=5, deadline=None)
@given(length=st.integers(1, 23), chunk=st.sampled_from([None, 1, 3, 8]))
def test_any_length_and_chunk_gives_the_same_values_and_gradients(length, chunk):
    with jax.enable_x64(True):
        arrays, ids = inputs(length, batch=1, seed=length), segments(length, batch=1, seed=length)
        got = value_and_gradient(gated_delta_rule, arrays, segment_ids=ids, form="chunked", chunk=chunk)
        close(got, value_and_gradient(gated_delta_rule, arrays, segment_ids=ids, form="sequential"))


def test_long_rows_in_groups_of_chunks_equal_the_recurrence(x64, monkeypatch):
    """20 positions of chunks of 3: seven chunks in groups of two, the last of them padding."""
    monkeypatch.setattr(delta, "_AT_ONCE", 2 * 2 * 3 * 3)
    arrays, ids = inputs(20, batch=1), segments(20, batch=1)
    got = value_and_gradient(gated_delta_rule, arrays, segment_ids=ids, form="chunked", chunk=3)
    close(got, value_and_gradient(gated_delta_rule, arrays, segment_ids=ids, form="sequential"))


def in_two_calls(segment_ids, initial_state, form, cut, **arrays):
    left, right = segment_ids[:, :cut], segment_ids[:, cut:]
    first, second = (
        {name: array[:, part] for name, array in arrays.items()} for part in (slice(cut), slice(cut, None))
    )
    one, state = gated_delta_rule(**first, initial_state=initial_state, segment_ids=left, form=form, chunk=3)
    two, state = gated_delta_rule(
        **second, initial_state=state, segment_ids=right, previous_segment=left[:, -1], form=form, chunk=3
    )
    return jnp.concatenate([one, two], axis=1), state


@settings(max_examples=4, deadline=None)
@given(cut=st.integers(1, 10), seed=st.integers(0, 99), form=st.sampled_from(FORMS))
def test_two_calls_with_carried_memory_equal_one(cut, seed, form):
    with jax.enable_x64(True):
        arrays, ids = inputs(11, seed=seed), segments(11, seed=seed)
        whole = value_and_gradient(gated_delta_rule, arrays, segment_ids=ids, form=form)
        two = value_and_gradient(
            lambda **options: in_two_calls(**options), {**arrays}, segment_ids=ids, form=form, cut=cut
        )
        close(two, whole)


@pytest.mark.parametrize("form", FORMS)
def test_a_key_of_length_one_replaces_its_value_and_leaves_orthogonal_ones(x64, form):
    k = jnp.eye(3)[jnp.array([0, 1, 0])][None, :, None]
    v = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])[None, :, None]
    ones, zeros = jnp.ones((1, 3, 1)), jnp.zeros((1, 3, 1))
    _, memory = gated_delta_rule(k, k, v, zeros, ones, form=form)
    np.testing.assert_allclose(memory[0, 0], [[5, 6], [3, 4], [0, 0]], atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_strong_decay_in_float32_gives_finite_gradients(form):
    arrays = inputs(12, dtype=jnp.float32)
    arrays["log_decay"] = arrays["log_decay"] * 1e4  # every decay underflows
    out, gradients = value_and_gradient(gated_delta_rule, arrays, segment_ids=segments(12), form=form, chunk=5)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((out, gradients)))


def test_bfloat16_inputs_are_calculated_in_float32():
    narrow = {name: array.astype(jnp.bfloat16) for name, array in inputs(40, dtype=jnp.float32).items()}
    wide = {name: array.astype(jnp.float32) for name, array in narrow.items()}
    out, memory = gated_delta_rule(**narrow, chunk=16)
    exact, exact_memory = gated_delta_rule(**wide, form="sequential")
    assert out.dtype == jnp.bfloat16 and memory.dtype == jnp.float32
    np.testing.assert_allclose(memory, exact_memory, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


def test_no_tokens_change_nothing(x64):
    arrays = inputs(0)
    out, memory = gated_delta_rule(**arrays)
    assert out.shape == (2, 0, 2, 2)
    np.testing.assert_array_equal(memory, arrays["initial_state"])


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"form.*did you mean 'chunked'"):
        gated_delta_rule(**inputs(3, dtype=jnp.float32), form="chunkd")
    with pytest.raises(ConfigError, match=r"chunk.*at least 1"):
        gated_delta_rule(**inputs(3, dtype=jnp.float32), chunk=0)
    with pytest.raises(ConfigError, match=r"2 key heads.*divide the 3"):
        gated_delta_rule(**{**inputs(3, heads=3, key_heads=2, dtype=jnp.float32), "initial_state": None})


def test_gradient_to_a_decay_of_one_is_that_of_the_recurrence(x64):
    """There the logarithm is 0, where a clipped exponent would have half of its slope."""
    arrays = inputs(9, batch=1)
    arrays["log_decay"] = arrays["log_decay"].at[:, 3:7].set(0)
    got = value_and_gradient(gated_delta_rule, arrays, form="chunked", chunk=9)
    close(got, value_and_gradient(gated_delta_rule, arrays, form="sequential"))


@pytest.mark.parametrize(("length", "most"), [(2048, 48), (65536, 768)])
def test_temporaries_of_the_gradient_are_bounded(length, most):
    """MiB of 4 heads of 64 x 64. Every memory would be 128 MiB and 4 GiB, an input is 2 and 64 MiB."""
    shapes = dict.fromkeys("qkv", (1, length, 4, 64)) | dict.fromkeys(("log_decay", "beta"), (1, length, 4))
    shapes = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in shapes.items()}

    def loss(arrays):
        out, last = gated_delta_rule(**arrays)
        return out.sum() + last.sum()

    memory = jax.jit(jax.grad(loss)).lower(shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= most * 2**20


def test_the_form_is_noted():
    with noted() as chosen:
        for length in (100, 1):
            jax.eval_shape(lambda arrays: gated_delta_rule(**arrays), inputs(length, dtype=jnp.float32))
    assert chosen == {"gated_delta_rule": "chunked 32, sequential"}
