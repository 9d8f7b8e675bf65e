"""Room for results of loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hybrid.ops.room import room


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int32"])
def test_room_is_zeros(dtype, x64):
    made = jax.jit(lambda x: room((2, 3), dtype, after=x))(-jnp.ones((4, 5)))
    assert made.dtype == dtype
    np.testing.assert_array_equal(np.asarray(made, "float32"), np.zeros((2, 3)))


def test_room_has_no_gradient():
    gradient = jax.grad(lambda x: (room((2, 3), x.dtype, after=x) + 2 * x).sum())(jnp.ones((2, 3)))
    np.testing.assert_array_equal(gradient, np.full((2, 3), 2.0))


def test_loops_one_after_another_do_not_share_an_array_of_zeros():
    """Four loops that each write an array of 4 MiB, the sum of which the next one reads."""

    def four(make):
        def function(x):
            for _ in range(4):
                rows = lax.fori_loop(0, 1024, lambda i, out, x=x: out.at[i].set(jnp.sin(x + i)), make(x))
                x = rows.sum(0)
            return x

        return jax.jit(function).lower(jax.ShapeDtypeStruct((1024,), "float32")).compile().memory_analysis()

    shared = four(lambda x: jnp.zeros((1024, 1024), x.dtype)).temp_size_in_bytes
    own = four(lambda x: room((1024, 1024), x.dtype, after=x)).temp_size_in_bytes
    assert own < 4.5 * 2**20 < shared
