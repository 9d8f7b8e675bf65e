"""Attention: what its options mean, padding, the cache."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import Context
from hybrid.sublayers import KINDS
from hybrid.testing import Subject, example
from hybrid.testing.subject import compiled

pytestmark = pytest.mark.usefixtures("x64")


def test_grouped_heads_are_repeated_keys_and_values():
    grouped = Subject("A", example("A", n_heads=4, n_kv_heads=2))
    full = Subject("A", example("A", n_heads=4))
    params = dict(grouped.params)
    for name in ("key", "value"):  # head h reads key head h // 2
        params[name] = jnp.repeat(params[name].reshape(8, 2, 2), 2, axis=1).reshape(8, 8)
    x = grouped.inputs()
    np.testing.assert_allclose(full.apply(params, x), grouped.apply(grouped.params, x), rtol=1e-10)


def test_rotary_positions_see_distances_alone():
    subject = Subject("A")
    params, x = subject.params, subject.inputs()
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])

    def run(positions):
        return subject.kind.apply(subject.view, params, x, Context(positions=positions))[0]

    apply = compiled(run)
    np.testing.assert_allclose(apply(positions + 1000), apply(positions), rtol=1e-8)
    assert not np.allclose(apply(2 * positions), apply(positions))


def test_left_padding_is_as_if_the_tokens_were_not_there():
    subject = Subject("A")
    x = subject.inputs(1)
    padding = jnp.arange(x.shape[1])[None] >= 4
    padded = subject.apply(subject.params, x, None, padding)
    np.testing.assert_allclose(padded[:, 4:], subject.apply(subject.params, x[:, 4:]), rtol=1e-9, atol=1e-12)


def test_without_positions_earlier_tokens_have_no_order():
    subject = Subject("A", example("A", positions="none"))
    x = subject.inputs(1)
    turned = jnp.concatenate([x[:, :5][:, ::-1], x[:, 5:]], axis=1)
    last, other = (subject.apply(subject.params, each)[:, -1] for each in (x, turned))
    np.testing.assert_allclose(last, other, rtol=1e-10)


def test_a_slot_that_is_not_valid_is_not_read():
    """What eviction is: the newest token then attends as if the evicted one had never been."""
    subject = Subject("A", example("A", positions="none"))
    x = subject.inputs()
    state = subject.kind.state(subject.view, 2, 13)
    _, state = subject.extend(subject.params, x[:, :6], state, 0)
    evicted = state.replace(valid=state.valid.at[:, 2].set(False))
    y, _ = subject.extend(subject.params, x[:, 6:7], evicted, 6)
    without = jnp.concatenate([x[:, :2], x[:, 3:7]], axis=1)
    np.testing.assert_allclose(y[:, 0], subject.apply(subject.params, without)[:, -1], rtol=1e-10)


def test_rows_may_be_filled_to_different_lengths():
    subject = Subject("A")
    x = subject.inputs()
    state = subject.kind.state(subject.view, 2, 13)
    _, state = subject.extend(subject.params, x[:, :3], state, 0)
    _, longer = subject.extend(subject.params, x[:, 3:6], state, 3)
    mixed = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), state, longer)
    positions = jnp.array([[3], [6]])
    token = jnp.stack([x[0, 3:4], x[1, 6:7]])
    y, state, _ = subject.kind.extend(subject.view, subject.params, token, mixed, Context(positions=positions))
    whole = subject.apply(subject.params, x)
    np.testing.assert_allclose(y[:, 0], jnp.stack([whole[0, 3], whole[1, 6]]), rtol=1e-9)
    assert state.filled.tolist() == [4, 7]


def test_the_cache_has_the_compute_dtype():
    config = dataclasses.replace(example("A", n_heads=4, n_kv_heads=1, head_dim=6), compute_dtype="bfloat16")
    shapes = jax.eval_shape(lambda: KINDS["A"].state(config, 3, 10))
    assert shapes.keys.shape == (3, 1, 6, 10) and shapes.values.shape == (3, 1, 10, 6)
    assert shapes.keys.dtype == shapes.values.dtype == jnp.bfloat16
