"""The forms of the gated linear recurrence equal its definition, carry state exactly, and keep documents apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.ops.forms import noted
from hybrid.ops.linear_recurrence import FORMS, linear_recurrence, linear_recurrence_reference
from hybrid.validation import ConfigError
from tests.ops.recurrences import close, segments, value_and_gradient


def inputs(length, batch=2, channels=3, seed=0, dtype=None):
    g = np.random.default_rng(seed)
    arrays = {
        "a": g.uniform(-1, 1, size=(batch, length, channels)),
        "b": g.normal(size=(batch, length, channels)),
        "initial_state": g.normal(size=(batch, channels)),
    }
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", ["one document", "packed", "packed, cut before"])
def test_form_equals_the_definition_in_value_and_gradient(x64, form, packed):
    options = {} if packed == "one document" else {"segment_ids": segments(11)}
    if packed == "packed, cut before":  # the state enters the first row and not the second
        options["previous_segment"] = options["segment_ids"][:, 0] + jnp.array([0, 1])
    arrays = inputs(11)
    got = value_and_gradient(linear_recurrence, arrays, **options, form=form, chunk=4)
    close(got, value_and_gradient(linear_recurrence_reference, arrays, **options))


@settings(max_examples=6, deadline=None)
@given(length=st.integers(1, 23), chunk=st.sampled_from([None, 1, 3, 9]), form=st.sampled_from(FORMS))
def test_any_length_and_chunk_gives_the_same_values_and_gradients(length, chunk, form):
    with jax.enable_x64(True):
        arrays, ids = inputs(length, batch=1, seed=length), segments(length, batch=1, seed=length)
        got = value_and_gradient(linear_recurrence, arrays, segment_ids=ids, form=form, chunk=chunk)
        close(got, value_and_gradient(linear_recurrence_reference, arrays, segment_ids=ids))


def in_two_calls(a, b, initial_state, segment_ids, form, cut):
    left, right = segment_ids[:, :cut], segment_ids[:, cut:]
    one, h = linear_recurrence(a[:, :cut], b[:, :cut], initial_state=initial_state, segment_ids=left, form=form)
    two, h = linear_recurrence(
        a[:, cut:], b[:, cut:], initial_state=h, segment_ids=right, previous_segment=left[:, -1], form=form
    )
    return jnp.concatenate([one, two], axis=1), h


@settings(max_examples=4, deadline=None)
@given(cut=st.integers(1, 10), seed=st.integers(0, 99), form=st.sampled_from(FORMS))
def test_two_calls_with_carried_state_equal_one(cut, seed, form):
    with jax.enable_x64(True):
        arrays, ids = inputs(11, seed=seed), segments(11, seed=seed)
        whole = value_and_gradient(linear_recurrence, arrays, segment_ids=ids, form=form)
        close(value_and_gradient(in_two_calls, arrays, segment_ids=ids, form=form, cut=cut), whole)


@pytest.mark.parametrize("form", FORMS)
def test_decays_that_underflow_give_finite_gradients(form):
    arrays = inputs(40, dtype=jnp.float32)
    arrays["a"] = arrays["a"] * 1e-20
    (states, _), gradients = value_and_gradient(linear_recurrence, arrays, form=form)
    np.testing.assert_allclose(states[:, 1:], arrays["b"][:, 1:], rtol=1e-6)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_inputs_are_accumulated_in_float32(form):
    """300 ones: a sum in bfloat16 would stop at 256."""
    ones = jnp.ones((1, 300, 1), jnp.bfloat16)
    states, last = linear_recurrence(ones, ones, form=form)
    assert states.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    assert last[0, 0] == 300


def test_no_tokens_change_nothing(x64):
    arrays = inputs(0)
    states, last = linear_recurrence(**arrays)
    assert states.shape == (2, 0, 3)
    np.testing.assert_array_equal(last, arrays["initial_state"])


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"form.*did you mean 'chunked'"):
        linear_recurrence(**inputs(3, dtype=jnp.float32), form="chunkd")
    with pytest.raises(ConfigError, match=r"chunk.*at least 1"):
        linear_recurrence(**inputs(3, dtype=jnp.float32), chunk=0)
    with pytest.raises(ConfigError, match=r"a: shape"):
        linear_recurrence(jnp.ones((1, 3, 1)), jnp.ones((1, 3, 2)))


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_keeps_no_more_than_a_few_copies_of_the_states(form):
    """Of 4 MiB; a derivative that keeps what each step of the loop made would have more."""
    shape = jax.ShapeDtypeStruct((1, 2048, 512), jnp.float32)
    gradient = jax.grad(lambda a, b: linear_recurrence(a, b, form=form)[0].sum(), (0, 1))
    assert jax.jit(gradient).lower(shape, shape).compile().memory_analysis().temp_size_in_bytes <= 40 * 2**20


def test_sequential_gradient_needs_one_array_of_temporaries():
    """2048 positions of 512 channels are 4 MiB: the states are kept, the rest is written in place."""
    shapes = {n: jax.ShapeDtypeStruct((1, 2048, 512), jnp.float32) for n in ("a", "b")}

    def loss(arrays):
        states, last = linear_recurrence(**arrays, form="sequential")
        return jnp.sum(states * states) + last.sum()

    memory = jax.jit(jax.grad(loss)).lower(shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 9 * 2**20


def test_the_form_is_noted():
    with noted() as chosen:
        for form in FORMS:
            jax.eval_shape(lambda arrays, f=form: linear_recurrence(**arrays, form=f, chunk=4), inputs(9))
    assert chosen == {"linear_recurrence": "sequential, associative, chunked 4"}
