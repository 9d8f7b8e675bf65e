"""The transposition in blocks is a transposition."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from hybrid.ops import turn


@pytest.mark.parametrize("shape", [(1000, 3), (3, 1000), (512, 2), (5, 100), (256, 256)])
def test_blocks_of_either_axis_and_what_is_left_over(shape, monkeypatch):
    monkeypatch.setattr(turn, "_LEAST", 0)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(jax.jit(lambda x: turn.turned(x))(x), x.T)
    padded = np.pad(x.T, ((0, 0), (2, 0)))
    np.testing.assert_array_equal(jax.jit(lambda x: turn.turned(x, 2))(x), padded)
