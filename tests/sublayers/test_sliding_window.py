"""Sliding windows: which keys are seen, whole and from a ring of slots, and what decoding carries."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import Context
from hybrid.accounting import state_bytes
from hybrid.sublayers import KINDS
from hybrid.testing import Subject, example

pytestmark = pytest.mark.usefixtures("x64")
LENGTH = 13


def sliding(window, **fields):
    return Subject("S", example("S", **{"sliding_window": {"window": window}, **fields}))


def test_window_of_w_keys_sees_itself_and_w_minus_1_before():
    influence = sliding(4).influence
    seen = [np.flatnonzero(row).tolist() for row in influence]
    assert seen == [list(range(max(0, t - 3), t + 1)) for t in range(LENGTH)]


@pytest.mark.parametrize("window", [LENGTH, 50])
def test_a_window_of_the_whole_row_is_attention(window):
    subject, attention = sliding(window), Subject("A")
    x = subject.inputs()
    np.testing.assert_allclose(
        subject.apply(subject.params, x), attention.apply(subject.params, x), rtol=1e-9, atol=1e-12
    )


def test_one_token_sees_w_keys_from_a_full_ring():
    """The rolling cache of w slots holds w - 1 keys that the new token sees, and one that it must not."""
    subject = sliding(4)
    x = subject.inputs()
    _, state = subject.extend(subject.params, x[:, :8], subject.kind.state(subject.view, 2, 100), 0)

    def newest(slot, amount):
        moved = state.replace(values=state.values.at[:, :, slot].add(amount))
        return subject.extend(subject.params, x[:, 8:9], moved, 8)[0]

    plain = newest(0, 0.0)
    # Token 4 lies in slot 0, which token 8 takes; 5, 6 and 7 in the slots after it.
    assert [bool((newest(slot, 1.0) != plain).any()) for slot in range(4)] == [False, True, True, True]
    np.testing.assert_allclose(plain[:, 0], subject.apply(subject.params, x)[:, 8], rtol=1e-9)


@pytest.mark.parametrize("sizes", [(13,), (9, 4), (1, 5, 7), (4, 4, 4, 1), (1,) * 13])
def test_chunks_longer_than_the_ring_are_exact(sizes):
    subject = sliding(3)
    x = subject.inputs()
    state, start, outputs = subject.kind.state(subject.view, 2, LENGTH), 0, []
    for size in sizes:
        y, state = subject.extend(subject.params, x[:, start : start + size], state, start)
        outputs.append(y)
        start += size
    whole = subject.apply(subject.params, x)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), whole, rtol=1e-8, atol=1e-12)
    assert np.sort(state.positions, axis=1).tolist() == [[10, 11, 12]] * 2


def test_rows_padded_on_the_left_go_on_as_if_the_padding_were_not_there():
    subject = sliding(4)
    x = subject.inputs()
    padding = jnp.stack([jnp.arange(9) >= 2, jnp.arange(9) >= 7])
    positions = jnp.maximum(jnp.cumsum(padding, axis=1) - 1, 0).astype(jnp.int32)
    fresh = subject.kind.state(subject.view, 2, 20)

    def extend(x, state, context):
        return subject.kind.extend(subject.view, subject.params, x, state, context)[:2]

    y, state = extend(x[:, :9], fresh, Context(positions=positions, padding=padding))
    next_y, state = extend(x[:, 9:10], state, Context(positions=positions[:, -1:] + 1))
    for row, first in enumerate((2, 7)):
        alone = subject.apply(subject.params, x[row : row + 1, first:10])[0]
        np.testing.assert_allclose(jnp.concatenate([y[row, first:], next_y[row]]), alone, rtol=1e-8, atol=1e-12)
    assert state.filled.tolist() == [8, 3]
    assert state.valid.sum(1).tolist() == [4, 3]


def test_what_decoding_carries_does_not_grow_with_the_capacity():
    config = dataclasses.replace(sliding(8).config, compute_dtype="bfloat16")
    assert state_bytes(config, 100) == state_bytes(config, 1_000_000) == 2 * 8 * 8 * 2 + 8 * 5 + 4
    assert state_bytes(config, 5) < state_bytes(config, 100)
    shapes = jax.eval_shape(lambda: KINDS["S"].state(config.sublayer("S")[1], 3, 100))
    assert shapes.keys.shape == (3, 2, 4, 8) and shapes.keys.dtype == jnp.bfloat16


def test_two_windows_may_stand_in_one_stack():
    config = example("SwA", symbols={"w": {"kind": "S", "window": 5}})
    windows = [view.sliding_window.window for _, view in config.kinds()]
    assert windows == [128, 5, 128]
