"""Sampling: the cuts of top-k and top-p against their definitions, and draws in distribution."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hybrid.decoding.limits import check_sampling
from hybrid.decoding.sampling import kept, sample
from hybrid.validation import ConfigError

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.07, 0.03]]))
DRAWS = 4000


def shares(**options):
    """How often each token is drawn."""
    options = {"temperature": 1.0, **options}
    keys = jax.random.split(jax.random.key(3), DRAWS)
    drawn = jax.vmap(lambda key: sample(LOGITS, key, **options)[0])(keys)
    return np.bincount(np.asarray(drawn), minlength=5) / DRAWS


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.07, 0.03]),
        ({"temperature": 0.5}, np.square([0.5, 0.25, 0.15, 0.07, 0.03])),
        ({"top_k": 2}, [0.5, 0.25, 0, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0, 0]),
        ({"top_k": 5}, [0.5, 0.25, 0.15, 0.07, 0.03]),
        ({"top_p": 0.5}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.51}, [0.5, 0.25, 0, 0, 0]),
        ({"top_p": 0.9}, [0.5, 0.25, 0.15, 0, 0]),
        ({"top_p": 1.0}, [0.5, 0.25, 0.15, 0.07, 0.03]),
        ({"top_k": 3, "top_p": 0.6}, [0.5, 0.25, 0, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(options, expected):
    expected = np.asarray(expected) / np.sum(expected)
    drawn = shares(**options)
    assert (drawn[expected == 0] == 0).all()
    error = np.abs(drawn - expected)
    assert (error <= 4 * np.sqrt(expected * (1 - expected) / DRAWS)).all(), drawn


def by_definition(weights, top_k, top_p):
    """The tokens that may be drawn, with exact shares; None where p is so near a sum that float32 may miss it."""
    order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))[: top_k or len(weights)]
    if top_p is None:
        return set(order)
    total, before, chosen = sum(weights[token] for token in order), 0, []
    for token in order:
        share = Fraction(before, total)
        if before and abs(share - Fraction(top_p)) < 1e-5:
            return None
        if before and share >= Fraction(top_p):
            break
        chosen.append(token)
        before += weights[token]
    return set(chosen)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.integers(1, 6), min_size=7, max_size=7),  # few values: many tokens are equally likely
    st.none() | st.integers(1, 9),
    st.none() | st.floats(0.01, 1.0),
)
def test_the_kept_tokens_are_those_of_the_definition(weights, top_k, top_p):
    wanted = by_definition(weights, top_k, top_p)
    assume(wanted is not None)
    found = kept(jnp.log(jnp.asarray([weights], jnp.float32)), top_k, top_p)
    assert set(np.flatnonzero(found[0])) == wanted


def test_each_row_has_its_own_cut():
    rows = jnp.log(jnp.array([[0.05, 0.9, 0.05], [0.3, 0.3, 0.4]]))
    np.testing.assert_array_equal(kept(rows, None, 0.6), [[False, True, False], [True, False, True]])


def test_tokens_without_probability_are_never_kept():
    row = jnp.array([[-jnp.inf, 0.0, -jnp.inf, 1.0]])
    for cut in ((3, 1.0), (3, None), (None, 1.0)):
        np.testing.assert_array_equal(kept(row, *cut), [[False, True, False, True]])


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_near_zero_temperature_takes_the_likeliest(temperature):
    logits = jnp.array([[3.0, 5.0, 4.9, -80.0]])
    assert all(int(sample(logits, jax.random.key(seed), temperature)[0]) == 1 for seed in range(8))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ((-1.0, None, None), "temperature"),
        ((float("nan"), None, None), "temperature"),
        ((float("inf"), None, None), "temperature"),
        ((1.0, 0, None), "top_k"),
        ((1.0, None, 0.0), "top_p"),
        ((1.0, None, 1.5), "top_p"),
        ((1.0, None, float("nan")), "top_p"),
    ],
)
def test_values_out_of_range_are_refused(options, field):
    with pytest.raises(ConfigError) as caught:
        check_sampling(*options)
    assert caught.value.field == field
