"""What the tests of all recurrences share."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

# Compiling is nearly all the time that these tests take.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def segments(length, batch=2, seed=0):
    """Random documents, some of one token, with ids that come back."""
    g = np.random.default_rng(seed)
    return jnp.asarray(np.cumsum(g.random((batch, length)) < 0.3, axis=1) % 3)


@partial(jax.jit, compiler_options=QUICKLY, static_argnames=("function", "form", "chunk", "cut"))
def value_and_gradient(function, arrays, **options):
    """Outputs, last state and gradients to all inputs, of a loss that sees outputs and last state."""
    out, pull = jax.vjp(lambda arrays: function(**arrays, **options), arrays)
    return out, pull(jax.tree.map(jnp.cos, out))[0]


def close(a, b, rtol=1e-9, atol=1e-11):
    """AssertionError unless two trees of arrays are equal but for rounding in float64."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)
