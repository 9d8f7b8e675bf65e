"""Room for a result that a loop writes piece by piece."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def room(shape: tuple[int, ...], dtype: Any, after: jax.Array) -> jax.Array:
    """Zeros that the compiled program makes when `after`, an array of numbers, is there, and for this use alone.

    XLA makes one array of all zeros of a shape, at the start of the program or where the first of them is needed, holds
    it to the last, and copies it for each loop that writes into it. `lax.empty` is such zeros on a CPU. A number that
    cannot be known before it runs keeps them apart: for Hyena of two layers and 65,536 positions, 100 MiB of 645.
    Where the first number of `after` is NaN, so are these.
    """
    nothing = jnp.minimum(jnp.abs(after[(0,) * after.ndim]), 0)
    return jnp.broadcast_to(jax.lax.stop_gradient(nothing).astype(dtype), shape)
