"""The forms of the selective scan equal its definition, carry state exactly, and keep documents apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hybrid.ops.forms import noted
from hybrid.ops.scan import FORMS, selective_scan, selective_scan_reference
from hybrid.validation import ConfigError
from tests.ops.recurrences import close, segments, value_and_gradient

NAMES = ("x", "dt", "A", "B", "C", "D", "initial_state")


def inputs(length, batch=2, d_inner=3, d_state=4, seed=0, dtype=None):
    g = np.random.default_rng(seed)
    x, B, C = g.normal(size=(batch, length, d_inner)), *g.normal(size=(2, batch, length, d_state))
    dt = np.log1p(np.exp(g.normal(size=(batch, length, d_inner))))
    A, D = -np.exp(g.normal(size=(d_inner, d_state))), g.normal(size=d_inner)
    state = g.normal(size=(batch, d_inner, d_state))
    return {n: jnp.asarray(a, dtype) for n, a in zip(NAMES, (x, dt, A, B, C, D, state), strict=True)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", ["one document", "packed", "packed, cut before"])
def test_form_equals_the_definition_in_value_and_gradient(x64, form, packed):
    options = {} if packed == "one document" else {"segment_ids": segments(11)}
    if packed == "packed, cut before":  # the state enters the first row and not the second
        options["previous_segment"] = options["segment_ids"][:, 0] + jnp.array([0, 1])
    arrays = inputs(11)
    got = value_and_gradient(selective_scan, arrays, **options, form=form, chunk=4)
    close(got, value_and_gradient(selective_scan_reference, arrays, **options))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("constant", ["B", "C", "BC"])
def test_constant_input_and_output_matrices_equal_the_definition(x64, form, constant):
    """(d_inner, d_state): of their own in each channel."""
    draw = np.random.default_rng(3)
    arrays = {**inputs(11), **{name: jnp.asarray(draw.normal(size=(3, 4))) for name in constant}}
    got = value_and_gradient(selective_scan, arrays, segment_ids=segments(11), form=form, chunk=4)
    close(got, value_and_gradient(selective_scan_reference, arrays, segment_ids=segments(11)))


@settings(max_examples=4, deadline=None)
@given(length=st.integers(1, 23), chunk=st.integers(1, 9), form=st.sampled_from(["chunked", "associative"]))
@example(length=10, chunk=4, form="chunked")
@example(length=10, chunk=4, form="associative")
def test_any_length_and_chunk_gives_the_same_values_and_gradients(length, chunk, form):
    with jax.enable_x64(True):
        arrays, ids = inputs(length, batch=1, seed=length), segments(length, batch=1, seed=chunk)
        got = value_and_gradient(selective_scan, arrays, segment_ids=ids, form=form, chunk=chunk)
        close(got, value_and_gradient(selective_scan, arrays, segment_ids=ids, form="sequential"))


def in_two_calls(x, dt, A, B, C, D, initial_state, segment_ids, form, cut):
    parts = [(x[:, s], dt[:, s], A, B[:, s], C[:, s], D) for s in (slice(cut), slice(cut, None))]
    left, right = segment_ids[:, :cut], segment_ids[:, cut:]
    y1, h = selective_scan(*parts[0], initial_state=initial_state, segment_ids=left, form=form, chunk=4)
    last = left[:, -1]
    y2, h = selective_scan(*parts[1], initial_state=h, segment_ids=right, previous_segment=last, form=form, chunk=4)
    return jnp.concatenate([y1, y2], axis=1), h


@settings(max_examples=4, deadline=None)
@given(cut=st.integers(1, 10), seed=st.integers(0, 99), form=st.sampled_from(FORMS))
def test_two_calls_with_carried_state_equal_one(cut, seed, form):
    """Values and gradients; over packed documents too, where the cut may fall on a boundary."""
    with jax.enable_x64(True):
        arrays, ids = inputs(11, seed=seed), segments(11, seed=seed)
        whole = value_and_gradient(selective_scan, arrays, segment_ids=ids, form=form)
        close(value_and_gradient(in_two_calls, arrays, segment_ids=ids, form=form, cut=cut), whole)


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_flows_between_documents(x64, form):
    arrays = inputs(9, batch=1)
    ids = jnp.array([[1, 1, 1, 1, 2, 2, 1, 1, 1]])  # the id comes back, the document does not

    def second(x, dt, B, initial_state):
        y, _ = selective_scan(
            x, dt, arrays["A"], B, arrays["C"], initial_state=initial_state, segment_ids=ids, form=form
        )
        return y[:, 4:6].sum()

    args = [arrays[name] for name in ("x", "dt", "B", "initial_state")]
    *over_time, state = jax.grad(second, (0, 1, 2, 3))(*args)
    assert (state == 0).all()
    for gradient in over_time:
        assert (gradient[:, :4] == 0).all() and (gradient[:, 6:] == 0).all() and (gradient[:, 4:6] != 0).any()


def test_one_state_with_unit_step_is_the_gated_recurrence_of_theorem_one(x64):
    """d_state = 1, A = -1, B = C = 1: with dt = softplus(s), h becomes (1 - sigmoid(s)) h + dt x."""
    s, x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 7, 1)))
    one = jnp.ones((1, 7, 1))
    y, last = selective_scan(x, jax.nn.softplus(s), -jnp.ones((1, 1)), one, one)
    h = 0.0
    for t in range(7):
        h = (1 - jax.nn.sigmoid(s[0, t, 0])) * h + jax.nn.softplus(s[0, t, 0]) * x[0, t, 0]
        assert abs(y[0, t, 0] - h) < 1e-12
    assert abs(last[0, 0, 0] - h) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_long_steps_in_float32_give_finite_gradients(form):
    arrays = inputs(12, dtype=jnp.float32)
    arrays["dt"] = arrays["dt"] * 1e4  # every decay underflows to zero
    _, gradients = value_and_gradient(selective_scan, arrays, segment_ids=segments(12), form=form)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_inputs_drift_no_more_than_their_own_rounding(form):
    """States accumulate in float32: the result is the float32 one of the rounded inputs, rounded once at the end."""
    wide = inputs(64, batch=1, dtype=jnp.float32)
    narrow = {n: a.astype(jnp.bfloat16) if n in ("x", "dt", "B", "C") else a for n, a in wide.items()}
    run = jax.jit(selective_scan, static_argnames="form")
    y, last = run(**narrow, form=form)
    assert y.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    exact, exact_last = run(**{n: a.astype(jnp.float32) for n, a in narrow.items()}, form="sequential")
    np.testing.assert_allclose(last, exact_last, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)
    gradients = jax.grad(lambda a: run(**a, form=form)[0].astype(jnp.float32).sum())(narrow)
    assert {n: g.dtype for n, g in gradients.items()} == {n: a.dtype for n, a in narrow.items()}


def test_zero_step_leaves_the_state_as_it_was(x64):
    arrays = inputs(5)
    arrays["dt"] = arrays["dt"].at[:, 2:].set(0)
    _, last = selective_scan(**arrays)
    _, short = selective_scan(**{n: a[:, :2] if n in ("x", "dt", "B", "C") else a for n, a in arrays.items()})
    np.testing.assert_array_equal(last, short)


def test_no_tokens_change_nothing(x64):
    arrays = inputs(0)
    y, last = selective_scan(**arrays)
    assert y.shape == (2, 0, 3)
    np.testing.assert_array_equal(last, arrays["initial_state"])


def test_vmap_equals_a_loop(x64):
    many = [inputs(7, seed=s) for s in range(2)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *many)
    got = jax.vmap(lambda a: value_and_gradient(selective_scan, a, form="chunked", chunk=3))(stacked)
    alone = [value_and_gradient(selective_scan, a, form="chunked", chunk=3) for a in many]
    close(got, jax.tree.map(lambda *a: jnp.stack(a), *alone))


def test_wrong_form_names_the_nearest():
    with pytest.raises(ConfigError, match=r"form.*did you mean 'chunked'"):
        selective_scan(**inputs(3, dtype=jnp.float32), form="chunkd")
    with pytest.raises(ConfigError, match=r"chunk.*at least 1"):
        selective_scan(**inputs(3, dtype=jnp.float32), chunk=0)


def temporaries(form, length, **options):
    """Bytes of temporaries of forward and gradient at d_inner 512, d_state 16."""

    def loss(arrays):
        y, last = selective_scan(**arrays, form=form, **options)
        return y.sum() + last.sum()

    shapes = {n: jax.ShapeDtypeStruct(a.shape, jnp.float32) for n, a in inputs(1, 1, 512, 16).items()}
    for name, width in (("x", 512), ("dt", 512), ("B", 16), ("C", 16)):
        shapes[name] = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
    return jax.jit(jax.grad(loss)).lower(shapes).compile().memory_analysis().temp_size_in_bytes


def test_chunked_gradient_at_2048_positions_needs_at_most_20_mib():
    """All the states would be 64 MiB."""
    assert temporaries("chunked", 2048) <= 20 * 2**20


def test_chunked_gradient_at_65536_positions_needs_at_most_400_mib():
    """All the states would be 2 GiB."""
    assert temporaries("chunked", 65536) <= 400 * 2**20


def test_the_form_is_noted():
    with noted() as chosen:
        for form in FORMS:
            jax.eval_shape(lambda arrays, f=form: selective_scan(**arrays, form=f, chunk=4), inputs(9))
    assert chosen == {"selective_scan": "associative 4, sequential, chunked 4"}
