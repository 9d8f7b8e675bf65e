"""Rotations, sinusoids, and the place of a token in its document."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.positions import (
    alibi,
    bucket_starts,
    documents,
    frequencies,
    in_document,
    relative_bias,
    rope,
    scale_frequencies,
    sinusoids,
)
from hybrid.sublayers.attention import AttentionConfig


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 2), min_size=9, max_size=9))
def test_positions_and_documents_count_where_the_id_changes(ids):
    position, document, places, numbers = -1, -1, [], []
    for i, segment in enumerate(ids):
        new = i == 0 or segment != ids[i - 1]
        position, document = (0, document + 1) if new else (position + 1, document)
        places.append(position)
        numbers.append(document)
    given_ids = jnp.array([ids])
    assert in_document(given_ids)[0].tolist() == places
    assert documents(given_ids)[0].tolist() == numbers


def test_rows_are_numbered_apart():
    ids = jnp.array([[7, 7, 8], [1, 2, 2]])
    assert documents(ids).tolist() == [[0, 0, 1], [0, 1, 1]]
    assert in_document(ids).tolist() == [[0, 1, 0], [0, 0, 1]]


def test_frequencies_fall_from_one():
    np.testing.assert_allclose(frequencies(4, 10000.0), [1.0, 0.01], rtol=1e-6)


def test_rotation_is_a_product_with_a_complex_number_of_each_pair(x64):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 5, 3, 6))
    positions = np.array([[0, 1, 2, 3, 4], [4, 100, 0, 7, 7]])
    z = x[..., :3] + 1j * x[..., 3:]
    turns = np.exp(1j * positions[..., None, None] * 500.0 ** (-np.arange(3) / 3))
    wanted = np.concatenate([(z * turns).real, (z * turns).imag], axis=-1)
    turned = rope(jnp.asarray(x), jnp.asarray(positions), frequencies(6, 500.0, jnp.float64))
    np.testing.assert_allclose(turned, wanted, rtol=1e-12, atol=1e-13)


def test_products_of_rotated_vectors_hang_on_their_distance_alone(x64):
    draw = np.random.default_rng(0)
    q, k = (jnp.asarray(draw.standard_normal((1, 1, 1, 8))) for _ in range(2))
    turns = frequencies(8, 1e4, jnp.float64)

    def score(at_q, at_k):
        return float((rope(q, jnp.array([[at_q]]), turns) * rope(k, jnp.array([[at_k]]), turns)).sum())

    np.testing.assert_allclose(score(9, 4), score(1005, 1000), rtol=1e-10)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_narrow_vectors_are_rotated_by_precise_angles():
    """In bfloat16 position 1001 would be 1000: angles are float32, the result is rounded once."""
    x = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    turned = rope(x, jnp.array([[1000, 1001]]), frequencies(4, 1e4))
    assert turned.dtype == jnp.bfloat16
    exact = rope(x.astype(jnp.float32), jnp.array([[1000, 1001]]), frequencies(4, 1e4))
    np.testing.assert_allclose(np.asarray(turned, np.float32), exact, atol=0.01)
    assert (turned[:, 0] != turned[:, 1]).any()


def test_sinusoids_are_sines_and_cosines_in_turn(x64):
    table = np.asarray(sinusoids(jnp.array([[0, 1, 50]]), 6, jnp.float64))[0]
    for row, position in enumerate((0, 1, 50)):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            np.testing.assert_allclose(table[row, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], rtol=1e-10)


def test_gradients_of_a_rotation_are_the_rotation_back(x64):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 1, 4)))
    positions = jnp.array([[0, 5, 11]])
    gradient = jax.grad(lambda x: (rope(x, positions, frequencies(4, 1e4, jnp.float64)) ** 2).sum() / 2)(x)
    np.testing.assert_allclose(gradient, x, rtol=1e-12)  # lengths are kept


def test_a_part_of_a_head_may_be_left_alone(x64):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 2, 8)))
    positions, turns = jnp.array([[0, 5, 11]]), frequencies(4, 1e4, jnp.float64)
    turned = rope(x, positions, turns)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(turned[..., :4], rope(x[..., :4], positions, turns))


def test_llama3_divides_slow_turns_and_leaves_fast_ones():
    rule = AttentionConfig(rope_scaling="llama3", rope_factor=8.0, rope_original_length=1024)
    wavelengths = np.array([16.0, 256.0, 512.0, 1024.0, 5000.0])  # of 1024 / 4 and less: fast; above 1024: slow
    turns = 2 * np.pi / wavelengths
    scaled = np.asarray(scale_frequencies(jnp.asarray(turns), rule))
    share = (2 - 1) / (4 - 1)  # 1024 / 512 turns, between 1 and 4
    wanted = turns * np.array([1, 1, share + (1 - share) / 8, 1 / 8, 1 / 8])
    np.testing.assert_allclose(scaled, wanted, rtol=1e-5)
    linear = AttentionConfig(rope_scaling="linear", rope_factor=8.0)
    np.testing.assert_allclose(scale_frequencies(jnp.asarray(turns), linear), turns / 8, rtol=1e-6)


@pytest.mark.parametrize(("n_heads", "exponents"), [(8, range(1, 9)), (3, (4, 8, 2)), (6, (2, 4, 6, 8, 1, 3))])
def test_alibi_slopes_are_those_of_the_paper_and_between_powers_of_two_those_of_the_code(n_heads, exponents):
    bias = np.asarray(alibi(jnp.array([[5]]), jnp.array([[5, 4, 1]]), n_heads))
    assert bias.shape == (1, n_heads, 1, 3)
    slopes = 2.0 ** -np.array(list(exponents))
    np.testing.assert_allclose(bias[0, :, 0], -slopes[:, None] * np.array([0, 1, 4]), rtol=1e-6)


def test_buckets_are_single_up_to_half_and_grow_after_it():
    starts = bucket_starts(16, 128)
    assert starts[:9] == tuple(range(9))
    assert starts[8:] == (8, 12, 16, 23, 32, 46, 64, 91)  # 8 * 16^(i / 8), rounded up


def test_relative_bias_reads_the_bucket_of_each_distance():
    table = jnp.arange(32.0)[:, None]
    q, k = jnp.array([[100]]), jnp.array([[100, 99, 93, 92, 0, 101, 200]])
    causal = relative_bias(q, k, table, True, 128)[0, 0, 0]
    assert causal.tolist() == [0, 1, 7, 8, 30, 0, 0]
    both = relative_bias(q, k, table, False, 128)[0, 0, 0]
    assert both.tolist() == [0, 1, 7, 8, 15, 17, 31]
