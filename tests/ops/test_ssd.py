"""Both forms of the SSD equal its definition and a masked product, carry state exactly, and keep documents apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hybrid.ops.forms import noted
from hybrid.ops.scan import selective_scan
from hybrid.ops.ssd import FORMS, ssd, ssd_reference, tiles_of
from hybrid.ops.ssd_chunks import Inputs, Tiles, chunked
from hybrid.validation import ConfigError
from tests.ops.recurrences import close, segments, value_and_gradient

NAMES = ("x", "dt", "A", "B", "C", "D", "initial_state")
OVER_TIME = ("x", "dt", "B", "C")


def inputs(length, batch=2, heads=4, head_dim=3, groups=2, d_state=5, seed=0, dtype=None):
    g = np.random.default_rng(seed)
    x = g.normal(size=(batch, length, heads, head_dim))
    dt = np.log1p(np.exp(g.normal(size=(batch, length, heads))))
    A, D = -np.exp(g.normal(size=heads)), g.normal(size=heads)
    B, C = g.normal(size=(2, batch, length, groups, d_state))
    state = g.normal(size=(batch, heads, head_dim, d_state))
    return {n: jnp.asarray(a, dtype) for n, a in zip(NAMES, (x, dt, A, B, C, D, state), strict=True)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", ["one document", "packed", "packed, cut before"])
def test_form_equals_the_definition_in_value_and_gradient(x64, form, packed):
    options = {} if packed == "one document" else {"segment_ids": segments(11)}
    if packed == "packed, cut before":  # the state enters the first row and not the second
        options["previous_segment"] = options["segment_ids"][:, 0] + jnp.array([0, 1])
    arrays = inputs(11)
    got = value_and_gradient(ssd, arrays, **options, form=form, chunk=4)
    close(got, value_and_gradient(ssd_reference, arrays, **options))


@settings(max_examples=6, deadline=None)
@given(length=st.integers(1, 23), chunk=st.integers(1, 9), groups=st.sampled_from([1, 2, 4]))
@example(length=10, chunk=4, groups=2)
@example(length=7, chunk=9, groups=1)
def test_any_length_chunk_and_number_of_groups_is_the_recurrence(length, chunk, groups):
    with jax.enable_x64(True):
        arrays, ids = inputs(length, batch=1, groups=groups, seed=length), segments(length, batch=1, seed=chunk)
        got = value_and_gradient(ssd, arrays, segment_ids=ids, form="chunked", chunk=chunk)
        close(got, value_and_gradient(ssd, arrays, segment_ids=ids, form="sequential"))


def in_two_calls(x, dt, A, B, C, D, initial_state, segment_ids, form, cut):
    parts = [(x[:, s], dt[:, s], A, B[:, s], C[:, s], D) for s in (slice(cut), slice(cut, None))]
    left, right = segment_ids[:, :cut], segment_ids[:, cut:]
    y1, h = ssd(*parts[0], initial_state=initial_state, segment_ids=left, form=form, chunk=4)
    y2, h = ssd(*parts[1], initial_state=h, segment_ids=right, previous_segment=left[:, -1], form=form, chunk=4)
    return jnp.concatenate([y1, y2], axis=1), h


@settings(max_examples=4, deadline=None)
@given(cut=st.integers(1, 10), seed=st.integers(0, 99), form=st.sampled_from(FORMS))
def test_two_calls_with_carried_state_equal_one(cut, seed, form):
    """Values and gradients; over packed documents too, where the cut may fall on a boundary."""
    with jax.enable_x64(True):
        arrays, ids = inputs(11, seed=seed), segments(11, seed=seed)
        whole = value_and_gradient(ssd, arrays, segment_ids=ids, form=form, chunk=4)
        close(value_and_gradient(in_two_calls, arrays, segment_ids=ids, form=form, cut=cut), whole)


@pytest.mark.parametrize("form", FORMS)
def test_duality_y_is_a_masked_product_of_all_positions(x64, form):
    """Section 3: y = (L * C B^T) (dt x), L[t, s] the product of the decays of s+1..t, zero above the diagonal."""
    arrays = {name: np.asarray(a) for name, a in inputs(9, batch=1, heads=2, groups=1).items() if name in NAMES[:5]}
    y, _ = ssd(**{name: jnp.asarray(a) for name, a in arrays.items()}, form=form, chunk=4)
    for head in range(2):
        decay = np.exp(arrays["dt"][0, :, head] * arrays["A"][head])
        mask = np.array([[decay[s + 1 : t + 1].prod() if s <= t else 0.0 for s in range(9)] for t in range(9)])
        scores = arrays["C"][0, :, 0] @ arrays["B"][0, :, 0].T
        wanted = (mask * scores) @ (arrays["dt"][0, :, head, None] * arrays["x"][0, :, head])
        np.testing.assert_allclose(y[0, :, head], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_without_decay_it_is_causal_linear_attention(x64, form):
    arrays = inputs(9, batch=1, heads=1, groups=1) | {"A": jnp.zeros(1), "dt": jnp.ones((1, 9, 1))}
    y, last = ssd(*(arrays[name] for name in NAMES[:5]), form=form, chunk=4)
    q, k, v = (np.asarray(arrays[name][0, :, 0]) for name in ("C", "B", "x"))
    np.testing.assert_allclose(y[0, :, 0], np.tril(q @ k.T) @ v, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(last[0, 0], v.T @ k, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_selective_scan_with_one_decay_a_head(x64, form):
    """Mamba's operator with A and dt alike in the channels of a head, where they share B and C."""
    arrays = inputs(10, heads=4, groups=1)
    x, dt, A, B, C, D, state = (arrays[name] for name in NAMES)
    y, last = ssd(**arrays, form=form, chunk=4)
    A_wide = jnp.broadcast_to(jnp.repeat(A, 3)[:, None], (12, 5))
    wide, hidden = selective_scan(
        x.reshape(2, 10, 12), jnp.repeat(dt, 3, axis=2), A_wide, B[:, :, 0], C[:, :, 0], jnp.repeat(D, 3),
        initial_state=state.reshape(2, 12, 5), form="sequential",
    )  # fmt: skip
    close((y.reshape(2, 10, 12), last.reshape(2, 12, 5)), (wide, hidden))


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_flows_between_documents(x64, form):
    arrays = inputs(9, batch=1)
    ids = jnp.array([[1, 1, 1, 1, 2, 2, 1, 1, 1]])  # the id comes back, the document does not

    def second(x, dt, B, initial_state):
        y, _ = ssd(x, dt, arrays["A"], B, arrays["C"], initial_state=initial_state, segment_ids=ids, form=form, chunk=3)
        return y[:, 4:6].sum()

    args = [arrays[name] for name in ("x", "dt", "B", "initial_state")]
    *over_time, state = jax.grad(second, (0, 1, 2, 3))(*args)
    assert (state == 0).all()
    for gradient in over_time:
        assert (gradient[:, :4] == 0).all() and (gradient[:, 6:] == 0).all() and (gradient[:, 4:6] != 0).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("factor", [1e4, 0.0])
def test_long_and_zero_steps_in_float32_give_finite_gradients(form, factor):
    """Every decay underflows to zero, or is one."""
    arrays = inputs(12, dtype=jnp.float32)
    arrays["dt"] = arrays["dt"] * factor
    _, gradients = value_and_gradient(ssd, arrays, segment_ids=segments(12), form=form, chunk=5)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_gradient_to_a_step_of_zero_is_that_of_the_recurrence(x64):
    """There the logarithm of a decay is 0, where a clipped exponent would have half of its slope."""
    arrays = inputs(9, batch=1)
    arrays["dt"] = arrays["dt"].at[:, 3:6].set(0)
    got = value_and_gradient(ssd, arrays, form="chunked", chunk=9)
    close(got, value_and_gradient(ssd_reference, arrays))


def test_chunks_of_64_in_float32_stay_within_rounding_of_the_recurrence():
    arrays = inputs(256, batch=1, heads=2, head_dim=8, d_state=16, dtype=jnp.float32)
    arrays["dt"] = arrays["dt"] * 0.1
    y, last = ssd(**arrays, form="chunked", chunk=64)
    exact, exact_last = ssd(**arrays, form="sequential")
    for one, other in ((y, exact), (last, exact_last)):
        assert float(jnp.abs(one - other).max() / jnp.abs(other).max()) < 2e-6


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_inputs_drift_no_more_than_their_own_rounding(form):
    """States accumulate in float32: the result is the float32 one of the rounded inputs, rounded once at the end."""
    wide = inputs(64, batch=1, dtype=jnp.float32)
    narrow = {n: a.astype(jnp.bfloat16) if n in OVER_TIME else a for n, a in wide.items()}
    run = jax.jit(ssd, static_argnames=("form", "chunk"))
    y, last = run(**narrow, form=form, chunk=16)
    assert y.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    exact, exact_last = run(**{n: a.astype(jnp.float32) for n, a in narrow.items()}, form="sequential")
    np.testing.assert_allclose(last, exact_last, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-3)
    gradients = jax.grad(lambda a: run(**a, form=form)[0].astype(jnp.float32).sum())(narrow)
    assert {n: g.dtype for n, g in gradients.items()} == {n: a.dtype for n, a in narrow.items()}


@pytest.mark.parametrize("form", FORMS)
def test_zero_step_leaves_the_state_as_it_was(x64, form):
    arrays = inputs(5)
    arrays["dt"] = arrays["dt"].at[:, 2:].set(0)
    _, last = ssd(**arrays, form=form, chunk=2)
    _, short = ssd(**{n: a[:, :2] if n in OVER_TIME else a for n, a in arrays.items()}, form=form, chunk=2)
    np.testing.assert_allclose(last, short, rtol=1e-12)


def test_no_tokens_change_nothing(x64):
    arrays = inputs(0)
    y, last = ssd(**arrays)
    assert y.shape == (2, 0, 4, 3)
    np.testing.assert_array_equal(last, arrays["initial_state"])


def test_errors_name_the_field():
    arrays = inputs(3, dtype=jnp.float32)
    with pytest.raises(ConfigError, match=r"form.*did you mean 'chunked'"):
        ssd(**arrays, form="chunkd")
    with pytest.raises(ConfigError, match=r"chunk.*at least 1"):
        ssd(**arrays, chunk=0)
    with pytest.raises(ConfigError, match=r"B: 3 groups.*divide the 4 heads"):
        ssd(**(arrays | {"B": jnp.zeros((2, 3, 3, 5))}))


def test_tiles_fit_the_cache_and_groups_of_chunks_are_of_equal_size():
    assert tiles_of(None, 1, 2048, 8, 64) == (64, 4)
    assert tiles_of(None, 1, 257, 8, 64) == (64, 3)  # five chunks: 3 and 2, not 4 and 1
    assert tiles_of(None, 8, 2048, 8, 64) == (64, 1)
    assert tiles_of(16, 1, 10, 1, 4) == (10, 1)


@pytest.mark.parametrize("chunks", [2, 12])
def test_groups_of_several_chunks_equal_the_recurrence(x64, chunks):
    """Few are passed on from one to the next in a row of statements, many in a loop."""
    arrays, ids = inputs(49, batch=1, heads=2, groups=1), segments(49, batch=1)

    def run(x, dt, A, B, C, initial_state):
        keep = jnp.concatenate([jnp.ones((1, 1), bool), ids[:, 1:] == ids[:, :-1]], axis=1)
        return chunked(Tiles(3, chunks), Inputs(x, dt, dt * A, B[:, :, 0], C[:, :, 0], keep), initial_state)

    del arrays["D"]
    got = value_and_gradient(run, arrays)
    close(got, value_and_gradient(ssd, arrays, segment_ids=ids, form="sequential"))


def temporaries(length):
    """Bytes of temporaries of forward and gradient with 8 heads of 64 and 64 states."""
    shapes = {n: jax.ShapeDtypeStruct(a.shape, jnp.float32) for n, a in inputs(length, 1, 8, 64, 1, 64).items()}

    def loss(arrays):
        y, last = ssd(**arrays, form="chunked", chunk=64)
        return y.sum() + last.sum()

    return jax.jit(jax.grad(loss)).lower(shapes).compile().memory_analysis().temp_size_in_bytes


def test_gradient_at_2048_positions_needs_at_most_24_mib():
    """Every state would be 256 MiB; inputs and outputs are 4 each."""
    assert temporaries(2048) <= 24 * 2**20


def test_the_form_is_noted():
    with noted() as chosen:
        jax.eval_shape(lambda arrays: ssd(**arrays), inputs(100, dtype=jnp.float32))
        jax.eval_shape(lambda arrays: ssd(**arrays), inputs(1, dtype=jnp.float32))
    assert chosen == {"ssd": "chunked 64, sequential"}
