"""A long sequence a piece at a time, each piece computed again in the backward pass: memory of a piece, not of all.

`extended` is for sublayers that hand a state from piece to piece, `overlapped` for those that look back a window.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from hybrid.sharding import active_mesh

if TYPE_CHECKING:
    from hybrid.config import ModelConfig
    from hybrid.sublayers import Context, Kind

ROWS = 4096
"""Positions of a piece: few enough that 512 numbers of each are 8 MiB, enough that products run at full speed. Mamba of
width 128 takes as long as in pieces of 16,384, and 181 MiB instead of 815 at that length."""


def way(kind: Kind, view: ModelConfig, params: Any, x: jax.Array, context: Context) -> str:
    """How a sublayer can be cut along the length of x: "state" (`extended`), "halo" (`overlapped`) or "no".

    Never where x is shorter than two pieces, its rows are of several documents, padded or spread over devices, or where
    the sublayer reports something of a whole sequence (losses of experts). `state`: it is of one size at any length,
    and any cut is exact. `halo`: the sublayer looks back a window and no further; pieces are no shorter than that.
    """
    traits = kind.traits(view)
    if kind.extend is None or kind.state is None or kind.prepare is not None or x.shape[1] < 2 * ROWS:
        return "no"
    if not (traits.decodable and traits.causal and traits.chunk_exact) or active_mesh() is not None:
        return "no"
    if context.segment_ids is not None or context.padding is not None:
        return "no"
    _, reported = jax.eval_shape(functools.partial(kind.apply, view), params, x, context)
    if jax.tree.leaves(reported):
        return "no"
    if traits.reach == "window":
        return "halo" if 0 < window(kind, view) <= x.shape[1] // 2 else "no"
    sizes = [jax.tree.map(jnp.shape, jax.eval_shape(functools.partial(kind.state, view, 1, n))) for n in (1, 2)]
    return "state" if sizes[0] == sizes[1] else "no"


def window(kind: Kind, view: ModelConfig) -> int:
    """Keys that a sublayer with a window sees, its own among them; 0 where the kind has no such field."""
    return getattr(getattr(view, kind.group), "window", 0)


def overlapped(
    run: Callable[[jax.Array, Context], tuple[jax.Array, Any]], x: jax.Array, context: Context, halo: int
) -> tuple[jax.Array, Any]:
    """(y, an Aux without numbers) of a sublayer that looks back `halo` positions: pieces begin that much earlier.

    run: (piece of x, its context) -> (y of the piece, Aux). In front of the first piece stands padding.
    """
    batch, length, _ = x.shape
    rows = max(ROWS, halo)  # a piece sees no farther back than the one before it
    pieces = -(-length // rows)
    spare = pieces * rows - length

    def cut(array: jax.Array) -> jax.Array:
        """(pieces, batch, halo + rows, ...)."""
        array = jnp.pad(array, ((0, 0), (0, spare), *((0, 0),) * (array.ndim - 2)))
        array = jnp.moveaxis(array.reshape(batch, pieces, rows, *array.shape[2:]), 1, 0)
        before = jnp.concatenate([jnp.zeros_like(array[:1, :, rows - halo :]), array[:-1, :, rows - halo :]])
        return jnp.concatenate([before, array], axis=2)

    def piece(x: Any, positions: Any, real: Any, number: Any) -> tuple[Any, Any]:
        key = context.dropout_key
        key = None if key is None else jax.random.fold_in(key, number)
        y, aux = run(x, dataclasses.replace(context, positions=positions, padding=real, dropout_key=key))
        return y[:, halo:], aux

    again = jax.checkpoint(piece, prevent_cse=False)
    inputs = (cut(x), cut(context.positions), cut(jnp.ones((batch, length), bool)), jnp.arange(pieces))
    y, aux = jax.lax.map(lambda inputs: again(*inputs), inputs)
    return jnp.moveaxis(y, 0, 1).reshape(batch, -1, *y.shape[3:])[:, :length], aux


def extended(
    run: Callable[[jax.Array, Any, Context], tuple[jax.Array, Any, Any]],
    state: Any,
    x: jax.Array,
    context: Context,
    rows: int | None = None,
) -> tuple[jax.Array, Any]:
    """(y, an Aux without numbers) for x (batch, length, d_model), cut along the length.

    run: (piece of x, state, its context) -> (piece of y, state, Aux). The context's positions are cut, its dropout key
    is folded with the number of the piece.
    """
    batch, length, _ = x.shape
    rows = rows or ROWS
    pieces = length // rows

    def piece(x: Any, positions: Any, number: Any, state: Any) -> tuple[Any, Any, Any]:
        key = context.dropout_key
        key = None if key is None else jax.random.fold_in(key, number)
        return run(x, state, dataclasses.replace(context, positions=positions, dropout_key=key))

    again = jax.checkpoint(piece, prevent_cse=False)

    def step(state: Any, inputs: tuple) -> tuple[Any, tuple]:
        y, state, aux = again(*inputs, state)
        return state, (y, aux)

    def cut(array: jax.Array) -> jax.Array:
        return jnp.moveaxis(array[:, : pieces * rows].reshape(batch, pieces, rows, *array.shape[2:]), 1, 0)

    state, (y, aux) = jax.lax.scan(step, state, (cut(x), cut(context.positions), jnp.arange(pieces)))
    y = jnp.moveaxis(y, 0, 1).reshape(batch, -1, *y.shape[3:])
    if length % rows:
        rest = slice(pieces * rows, None)
        last, _, aux = again(x[:, rest], context.positions[:, rest], jnp.int32(pieces), state)
        y = jnp.concatenate([y, last], axis=1)
    return y, aux
