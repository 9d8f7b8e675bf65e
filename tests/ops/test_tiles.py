"""Tile by tile: the values and gradients of the whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops.tiles import by_tiles, pulled_by_tiles


def differences(long, shared):
    """Two outputs of a tile: one looks at the position before (a halo of 1), one at its own."""
    x, z = long
    return {"a": jnp.tanh(shared["w"] @ (x[:, 1:] - shared["s"] * x[:, :-1])), "b": z * x[:1, 1:]}


@pytest.mark.parametrize("length", [8, 11, 3])
def test_equals_the_whole_in_value_and_gradient(length, x64):
    """Two tiles, two and something left over, less than two."""
    g = np.random.default_rng(0)
    long = (jnp.asarray(g.normal(size=(3, length + 1))), jnp.asarray(g.normal(size=(1, length))))
    shared = {"w": jnp.asarray(g.normal(size=(2, 3))), "s": jnp.asarray(0.7)}
    wanted, pull = jax.vjp(differences, long, shared)
    got, pull_tiles = jax.vjp(lambda long, shared: by_tiles(differences, long, shared, 4, (1, 0)), long, shared)
    cotangent = jax.tree.map(jnp.cos, wanted)
    check = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13)  # noqa: E731
    jax.tree.map(check, got, wanted)
    jax.tree.map(check, pull_tiles(cotangent), pull(cotangent))
    jax.tree.map(check, pulled_by_tiles(differences, long, shared, cotangent, 4, (1, 0)), pull(cotangent))
    twice, _ = pulled_by_tiles(differences, long, shared, cotangent, 4, (1, 0), onto=pull(cotangent)[0])
    jax.tree.map(lambda a, b: check(a, 2 * b), twice, pull(cotangent)[0])
