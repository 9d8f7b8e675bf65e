"""Rows cut along their length: what a shard needs to know of the shards before it.

Positions, masks, norms, projections and losses need nothing of this: they are written for whole rows, and XLA cuts them
along with their inputs. Only what mixes positions asks its neighbours, and does so inside of
`hybrid.sharding.per_device`, by one of four ways (hybrid/ops/on_mesh.py has who uses which):

    before(x, n)            the n positions in front of this shard's       (short convolutions, windows)
    gathered(x)             all positions                                  (keys and values)
    entering(step, start)   the state that the shards before leave         (recurrences)
    channels for lengths    the axis "channels" of hybrid.sharding.RULES   (Fourier transforms): XLA's all-to-all

In front of the first shard stand zeros. All of them can be differentiated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hybrid.sharding import RULES, active_mesh

AXIS = "sequence"
assert RULES["length"] == (AXIS,)


def shards(*lengths: int) -> int:
    """Into how many parts rows of these lengths are cut here: 1 without a mesh, or where one of them does not divide.

    Asked outside of `per_device`; inside of it each device has its part and nothing is cut any more.
    """
    mesh = active_mesh()
    parts = 1 if mesh is None else mesh.shape[AXIS]
    return parts if all(length % parts == 0 for length in lengths) else 1


def index() -> jax.Array:
    """Which shard this device has, counted from 0."""
    return jax.lax.axis_index(AXIS)


def before(x: jax.Array, n: int, axis: int = 1) -> jax.Array:
    """The n positions in front of this shard's along `axis`, oldest first; zeros where there are none.

    Bytes received: n positions, from as many neighbours as hold them.
    """
    size, local = jax.lax.axis_size(AXIS), x.shape[axis]
    parts, left = [], n
    for hop in range(1, min(size - 1, math.ceil(n / max(local, 1))) + 1):
        take = min(left, local)
        last = jax.lax.slice_in_dim(x, local - take, local, axis=axis)
        parts.append(jax.lax.ppermute(last, AXIS, [(i, i + hop) for i in range(size - hop)]))
        left -= take
    shape = list(x.shape)
    shape[axis] = left
    return jnp.concatenate([jnp.zeros(shape, x.dtype), *reversed(parts)], axis=axis)


def gathered(x: jax.Array, axis: int = 1) -> jax.Array:
    """All positions of the row along `axis`."""
    return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True)


def entering(step: Callable[[Any, jax.Array], Any], start: Any) -> Any:
    """The state that enters this shard, where `start` enters the first.

    step(state, due): the state that leaves this shard if `state` enters it. All shards call it as often as there are
    borders and it is their turn, `due`, at one of them, so what is dear belongs under a lax.cond. No device sends more
    than one state: the bytes are the fewest, and the hops of one small message each are waited for. Trees are allowed.
    """
    here, state = index(), start
    for i in range(jax.lax.axis_size(AXIS) - 1):
        left = step(state, here == i)
        received = jax.tree.map(functools.partial(jax.lax.ppermute, axis_name=AXIS, perm=[(i, i + 1)]), left)
        state = jax.tree.map(lambda new, old, i=i: jnp.where(here == i + 1, new, old), received, state)
    return state


def of_last(x: jax.Array) -> jax.Array:
    """What the last shard has, on all of them."""
    is_last = index() == jax.lax.axis_size(AXIS) - 1
    return jax.lax.psum(jnp.where(is_last, x, jnp.zeros_like(x)), AXIS)
