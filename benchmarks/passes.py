"""An operator forward, and forward with all its gradients: the pieces of work of the tables of operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

PASSES = ("forward", "forward+backward")


def float32(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def lower(function: Callable[..., Any], arrays: Mapping[str, Any], gradient: bool) -> Any:
    """The compiled function of all arrays but dy, or its gradient, for a cotangent like the output."""
    import jax

    def pulled(*given: jax.Array) -> Any:
        y, pull = jax.vjp(function, *given)
        return pull(jax.lax.stop_gradient(y))

    given = [array for name, array in arrays.items() if name != "dy"]
    return jax.jit(pulled if gradient else function).lower(*given).compile()


def programs(function: Callable[..., Any], arrays: Mapping[str, Any]) -> dict[str, Callable[[], object]]:
    """PASSES as pieces of work. Arrays that lie on devices are used where they lie."""
    import jax
    import jax.numpy as jnp

    given = [jnp.asarray(array) for name, array in arrays.items() if name != "dy"]

    def piece(gradient: bool) -> Callable[[], object]:
        compiled = lower(function, dict(zip(arrays, given, strict=False)), gradient)
        return lambda: jax.block_until_ready(compiled(*given))

    return {name: piece(name != "forward") for name in PASSES}
