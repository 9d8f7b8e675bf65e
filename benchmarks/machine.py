"""The limits of this machine, measured: bandwidth of memory, rate of matrix products, of exponentials.

Other suites state their figures as multiples of these (`bandwidth()`, `matmul_rate()`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

from benchmarks.rows import Row

ENVIRONMENT: dict[str, str] = {}


def _best(run: Callable[[], object], rounds: int) -> float:
    """Seconds: the fastest of some rounds, for a limit is what the machine can do at best."""
    run()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@functools.cache
def bandwidth() -> float:
    """Bytes a second that are read and written by adding one array to another in place (two reads, one write)."""
    import jax
    import jax.numpy as jnp

    a, b = jnp.ones(2**25, jnp.float32), jnp.ones(2**25, jnp.float32)
    triad = jax.jit(lambda a, b: a + 0.5 * b, donate_argnums=0)

    def run() -> None:
        nonlocal a
        a = jax.block_until_ready(triad(a, b))

    return 3 * a.nbytes / _best(run, 9)


@functools.cache
def read_bandwidth() -> float:
    """Bytes a second that are read by a matrix-vector product."""
    import jax
    import jax.numpy as jnp

    matrix, vector = jnp.ones((4096, 8192), jnp.float32), jnp.ones(8192, jnp.float32)
    product = jax.jit(lambda m, v: m @ v)
    return matrix.nbytes / _best(lambda: jax.block_until_ready(product(matrix, vector)), 15)


@functools.cache
def matmul_rate(size: int = 2048) -> float:
    """Floating-point operations a second of a product of two square float32 matrices."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a, b: a @ b)
    return 2 * size**3 / _best(lambda: jax.block_until_ready(product(a, a)), 9)


@functools.cache
def exp_rate() -> float:
    """Exponentials a second, of arrays that stay in the cache of a core."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(2**16, jnp.float32)
    many = jax.jit(lambda x: jax.lax.fori_loop(0, 256, lambda _, y: jnp.exp(y * 0.1), x))
    return 256 * x.size / _best(lambda: jax.block_until_ready(many(x)), 9)


def limits() -> Iterator[Row]:
    yield Row("memory, read and written (triad)", "", bandwidth() / 1e9, "GB/s")
    yield Row("memory, read (matrix times vector)", "", read_bandwidth() / 1e9, "GB/s")
    yield Row("matrix product 2048, float32", "", matmul_rate() / 1e9, "GFLOP/s")
    yield Row("exponentials in the cache, float32", "", exp_rate() / 1e9, "G/s")


FUNCTIONS = {"limits": limits}
