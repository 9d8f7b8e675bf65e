"""Inverses of unit lower triangular matrices equal those of a general solver, and their derivative its derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops.unit_triangular import inverse


def matrices(n, scale=1.0, dtype=None):
    return jnp.asarray(np.random.default_rng(n).normal(size=(2, 3, n, n)) * scale, dtype)


def plain(below):
    return jnp.linalg.inv(jnp.eye(below.shape[-1], dtype=below.dtype) + jnp.tril(below, -1))


@pytest.mark.parametrize("n", [1, 5, 16, 17, 32, 64, 70])
def test_it_is_the_inverse_whatever_stands_on_and_above_the_diagonal(x64, n):
    below = matrices(n, scale=0.3)
    np.testing.assert_allclose(inverse(below), plain(below), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [5, 40])
def test_its_derivative_is_that_of_the_general_inverse(x64, n):
    below = matrices(n, scale=0.2)
    got, wanted = (jax.grad(lambda m, f=f: jnp.sum(jnp.cos(f(m))))(below) for f in (inverse, plain))
    np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-9)
    assert (jnp.triu(got) == 0).all()


def test_large_entries_lose_no_more_in_float32_than_substitution():
    """2 everywhere below the diagonal: the inverse has entries of size 2, powers of the matrix some of 1e28."""
    below = jnp.full((64, 64), 2.0, jnp.float32)
    exact = np.linalg.inv(np.eye(64) + np.tril(np.full((64, 64), 2.0), -1))
    np.testing.assert_allclose(inverse(below), exact, atol=1e-4)
