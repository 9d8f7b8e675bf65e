"""Products and elementwise work over long arrays, a tile at a time, so that what stands between them stays in caches.

XLA's CPU backend runs a product of a few rows over a million columns at a fifth of its speed, and computes an
elementwise chain again for each of its consumers. In tiles of a few thousand columns the products are fast and the
chain is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid.ops.room import room

Function = Callable[[tuple[Any, ...], Any], Any]
"""(tiles of the long arrays, shared) -> a tree of arrays whose last axis is the tile."""


def by_tiles(function: Function, long: tuple[Any, ...], shared: Any, tile: int, halos: Sequence[int] = ()) -> Any:
    """function(long, shared), tile by tile along the last axis, in the backward pass too (which computes tiles again).

    long: arrays (..., length + halo); the tile of one with a halo has so many columns more, which it shares with the
    tile before. shared: a tree of small arrays that every tile reads. A function that is not a closure over arrays.
    """
    halos = tuple(halos) or (0,) * len(long)
    length = long[0].shape[-1] - halos[0]
    return function(long, shared) if length < 2 * tile else _tiled(function, tile, halos, long, shared)


def pulled_by_tiles(
    function: Function,
    long: tuple[Any, ...],
    shared: Any,
    cotangent: Any,
    tile: int,
    halos: Sequence[int] = (),
    onto: tuple[Any, ...] | None = None,
) -> tuple[tuple[Any, ...], Any]:
    """The gradients to `long` and `shared` of `by_tiles`, without its value.

    onto: arrays of the shapes of `long` that its gradients are added to, which costs no array more.
    """
    start = _zeros(long, cotangent) if onto is None else onto
    return _pulled(function, tile, tuple(halos) or (0,) * len(long), (long, shared), cotangent, start, onto is not None)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _tiled(function: Function, tile: int, halos: tuple[int, ...], long: tuple[Any, ...], shared: Any) -> Any:
    length = long[0].shape[-1] - halos[0]

    def put(size: int, start: Any, outputs: Any) -> Any:
        made = function(_pieces(long, halos, start, size), shared)
        return jax.tree.map(lambda out, y: lax.dynamic_update_slice_in_dim(out, y, start, -1), outputs, made)

    shapes = jax.eval_shape(lambda: function(_pieces(long, halos, 0, tile), shared))
    outputs = jax.tree.map(lambda made: room((*made.shape[:-1], length), made.dtype, after=long[0]), shapes)
    return _over(length, tile, put, outputs)


def _forward(function, tile, halos, long, shared):
    return _tiled(function, tile, halos, long, shared), (long, shared)


def _backward(function, tile, halos, saved, cotangent):
    return _pulled(function, tile, halos, saved, cotangent, _zeros(saved[0], cotangent), False)


def _pulled(
    function: Function, tile: int, halos: tuple[int, ...], saved: Any, cotangent: Any, start: Any, added: bool
) -> Any:
    long, shared = saved
    length = long[0].shape[-1] - halos[0]

    def put(size: int, at: Any, sums: Any) -> Any:
        dlong, dshared = sums
        given = jax.tree.map(lambda dy: lax.dynamic_slice_in_dim(dy, at, size, -1), cotangent)
        pieces = _pieces(long, halos, at, size)
        own, of_shared = jax.vjp(function, pieces, shared)[1](given)
        dlong = tuple(
            _put(at, whole, piece, added or halo > 0) for whole, piece, halo in zip(dlong, own, halos, strict=True)
        )
        return dlong, jax.tree.map(jnp.add, dshared, of_shared)

    return _over(length, min(tile, length), put, (start, jax.tree.map(jnp.zeros_like, shared)))


_tiled.defvjp(_forward, _backward)


def _zeros(like: tuple[Any, ...], cotangent: Any) -> tuple[Any, ...]:
    return tuple(room(array.shape, array.dtype, after=jax.tree.leaves(cotangent)[0]) for array in like)


def _pieces(long: tuple[Any, ...], halos: tuple[int, ...], start: Any, size: int) -> tuple[Any, ...]:
    return tuple(
        lax.dynamic_slice_in_dim(array, start, size + halo, -1) for array, halo in zip(long, halos, strict=True)
    )


def _put(at: Any, whole: Any, piece: Any, added: bool) -> Any:
    if added:
        piece = piece + lax.dynamic_slice_in_dim(whole, at, piece.shape[-1], -1)
    return lax.dynamic_update_slice_in_dim(whole, piece, at, -1)


def _over(length: int, tile: int, put: Callable[[int, Any, Any], Any], carry: Any) -> Any:
    """put(size, start, carry) for every tile, and for what is left over."""
    carry = lax.fori_loop(0, length // tile, lambda i, carry: put(tile, i * tile, carry), carry)
    return put(length % tile, length // tile * tile, carry) if length % tile else carry
