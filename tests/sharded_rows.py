"""Rows cut over 8 simulated devices against whole ones: for test_sequence.py.

    python -m tests.sharded_rows        (with the XLA flag for 8 devices)

A line of JSON a case: {"case", "error"}, the greatest difference of outputs and gradients.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from experiments import environment

LENGTH, WIDTH = 16, 3


def cases() -> dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple]]:
    """Name -> (what is done on the mesh, what it must give, arguments)."""
    import jax.numpy as jnp
    import numpy as np

    from hybrid import sequence
    from hybrid.ops import attention, on_mesh, scan, short_conv
    from hybrid.sharding import per_device

    draw = np.random.default_rng(0)

    def made(*shape: int) -> Any:
        return jnp.asarray(draw.standard_normal(shape))

    wide = ("batch", "length", None)
    x = made(1, LENGTH, WIDTH)
    ids = jnp.asarray([[0] * 3 + [1] * 3 + [2] * 5 + [3] * 5], jnp.int32)
    local = LENGTH // 8

    def before(n: int) -> Any:
        """The n positions in front of every shard, one shard after another."""
        return per_device(lambda x: sequence.before(x, n), [wide], wide)

    def before_whole(n: int) -> Any:
        def run(x: Any) -> Any:
            row = jnp.pad(x, ((0, 0), (n, 0), (0, 0)))
            return jnp.concatenate([row[:, first : first + n] for first in range(0, LENGTH, local)], axis=1)

        return run

    def entering(x: Any) -> Any:
        """Sums of the squares of what stands before each shard, halved at every border."""

        def piece(x: Any) -> Any:
            state = sequence.entering(lambda state, due: 0.5 * state + (x**2).sum(1), jnp.zeros_like(x[:, 0]))
            return jnp.broadcast_to(state[:, None], x.shape)

        return per_device(piece, [wide], wide)(x)

    def entering_whole(x: Any) -> Any:
        state, outputs = jnp.zeros_like(x[:, 0]), []
        for first in range(0, LENGTH, local):
            outputs += [state] * local
            state = 0.5 * state + (x[:, first : first + local] ** 2).sum(1)
        return jnp.stack(outputs, axis=1)

    dt = jnp.abs(made(1, LENGTH, WIDTH))
    A, B, C = -jnp.abs(made(WIDTH, 2)), made(1, LENGTH, 2), made(1, LENGTH, 2)
    taps, q, k, v = made(6, WIDTH), made(1, LENGTH, 2, 4), made(1, LENGTH, 1, 4), made(1, LENGTH, 1, 4)
    return {
        "positions before a shard": (before(1), before_whole(1), (x,)),
        "more positions than a shard has": (before(2 * local + 1), before_whole(2 * local + 1), (x,)),
        "more positions than there are": (before(LENGTH + 3), before_whole(LENGTH + 3), (x,)),
        "a state over all borders": (entering, entering_whole, (x,)),
        "a scan and its last state": (
            lambda *a: on_mesh.selective_scan(*a, segment_ids=ids),
            lambda *a: scan.selective_scan(*a, segment_ids=ids), (x, dt, A, B, C),
        ),
        "taps that reach over three shards": (
            lambda *a: on_mesh.causal_conv(*a, segment_ids=ids),
            lambda *a: short_conv.causal_conv(*a, segment_ids=ids), (x, taps),
        ),
        "a window over three shards": (
            lambda *a: on_mesh.attention(*a, segment_ids=ids, window=6),
            lambda *a: attention.attention(*a, q_segments=ids, k_segments=ids, window=6), (q, k, v),
        ),
    }  # fmt: skip


def main() -> int:
    environment.prepare(devices=8)
    import jax
    import numpy as np

    from hybrid.sharding import make_mesh, on

    jax.config.update("jax_enable_x64", True)

    def results(function: Callable[..., Any], arguments: tuple) -> Any:
        def loss(*arguments: Any) -> Any:
            out = function(*arguments)
            return sum((leaf * jax.numpy.cos(leaf)).sum() for leaf in jax.tree.leaves(out)), out

        every = tuple(range(len(arguments)))
        return jax.jit(jax.grad(loss, argnums=every, has_aux=True))(*arguments)

    for name, (ours, wanted, arguments) in cases().items():
        with on(make_mesh(sequence=8)):
            got = jax.device_get(results(ours, arguments))
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(results(wanted, arguments)), strict=True)
        error = max(float(np.abs(a - b).max()) for a, b in pairs)
        print(json.dumps({"case": name, "error": error}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
