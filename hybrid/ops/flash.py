"""Attention in tiles, with memory linear in the length (FlashAttention-2: Dao 2023), as two loops that XLA compiles.

Tiles of queries are the outer loop, tiles of keys the inner. The inner loop runs from the first to the last tile in
which something is visible: half of them under causality, a constant number with a window, those of the document when
documents are packed. Tiles in which everything is visible are not masked. The trip counts depend on data, through which
jax cannot differentiate in reverse: the derivative is written out, and recomputes the scores from the saved
log-sum-exp of each query.

Scores are kept with the keys on the rows, (batch, n_kv_heads, keys, group * queries): the reductions of the softmax
then run over a leading axis, and a group of queries shares one product with its keys. What is summed over keys has the
queries on its columns too, (batch, n_kv_heads, d, group * queries), for a product that reads the scores across their
rows takes XLA's CPU backend 2.5 times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from hybrid.ops.forms import accumulator, by_platform
from hybrid.ops.visibility import NEGLIGIBLE, Visibility

Bias = jax.Array | Callable[[jax.Array, jax.Array], jax.Array] | None
"""(batch or 1, n_heads or 1, q_length, k_length), or a function that makes it from positions (batch or 1, length)."""

TILES = {"cpu": ((4096, 512), (2048, 256), (0, 128)), "other": ((0, 512),)}
"""(rows from this length on, queries and keys of a tile). CPU seconds of forward and backward on two busy CPU cores, 4
heads of 64: 2048 positions in tiles of 128, 256, 512 took 136, 132, 156 ms, 8192 in tiles of 256 and 512 2.03 and 2.13
s (of the busiest thread 1.05 and 1.10); tiles of 1024 take 92 MiB."""

NOTHING = NEGLIGIBLE / 8
"""The greatest score before a key was seen: weights of keys that are not visible then are exactly zero."""


def tile_of(length: int, window: int | None) -> int:
    """Queries, and keys, of a tile. With a window half of it, so that few of the computed scores are not seen."""
    tile = next(size for start, size in by_platform(TILES) if length >= start)
    if window is None:
        return tile
    half = 1 << max(0, (window // 2).bit_length() - 1)  # a power of two
    return min(256, max(64, half))


def flash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visibility: Visibility,
    bias: Bias,
    scale: float,
    softcap: float | None,
    tile: int | None = None,
) -> jax.Array:
    """Arguments and result as in hybrid/ops/attention.py; `tile` bounds the queries, and the keys, of a tile.

    A bias that is a function is called for each tile, and may hold traced arrays.
    """
    tile = tile_of(max(q.shape[1], k.shape[1]), visibility.window) if tile is None else tile
    batch, q_length, n_heads, _ = q.shape
    k_length, n_kv_heads = k.shape[1:3]
    plan = _Plan(min(tile, q_length), min(tile, k_length), n_heads // n_kv_heads, scale, softcap)
    q_padded = -(-q_length // plan.q_tile) * plan.q_tile
    k_padded = -(-k_length // plan.k_tile) * plan.k_tile

    def heads_first(array: jax.Array, length: int) -> jax.Array:
        return jnp.pad(array.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - array.shape[1]), (0, 0)))

    q = heads_first(q, q_padded).reshape(batch, n_kv_heads, plan.group, q_padded, -1)
    k, v = heads_first(k, k_padded), heads_first(v, k_padded)
    visibility = visibility.padded(q_padded, k_padded)
    if callable(bias):
        # what it holds of traced arrays becomes arguments, for the derivative to see
        examples = visibility.q_positions[:, : plan.q_tile], visibility.k_positions[:, : plan.k_tile]
        bias = Partial(_last_first, *_closed(bias, *examples))
    elif bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, q_padded - q_length), (0, k_padded - k_length)))
    out = _flash(plan, q, k, v, bias, visibility)
    return out.reshape(batch, n_heads, q_padded, -1)[:, :, :q_length].swapaxes(1, 2)


def _closed(function: Callable, *examples: jax.Array) -> tuple[Partial, tuple[jax.Array, ...]]:
    converted, held = jax.closure_convert(function, *examples)
    return Partial(converted), tuple(held)


def _last_first(converted: Callable, held: tuple[jax.Array, ...], *positions: jax.Array) -> jax.Array:
    return converted(*positions, *held)


class _Plan(NamedTuple):
    q_tile: int
    k_tile: int
    group: int  # query heads a key head
    scale: float
    softcap: float | None


class _Tile(NamedTuple):
    scores: jax.Array  # (batch, n_kv_heads, keys, group * queries), NEGLIGIBLE where not visible
    slope: jax.Array | None  # derivative of the soft cap, same shape


class _Visits(NamedTuple):
    """The key tiles that each query tile has to visit, first..last, and those inside of them of which nothing is
    masked, whole..masked. Arrays (q tiles,); the ends are one past the last."""

    first: jax.Array
    whole: jax.Array
    masked: jax.Array
    last: jax.Array

    def over(self, i: jax.Array, body: Callable[[bool], Callable], carry: Any) -> Any:
        """Folds body(masked)(j, carry) over the key tiles j of query tile i."""
        before = self.whole[i] - self.first[i]
        carry = lax.fori_loop(self.whole[i], self.masked[i], body(False), carry)

        def rest(t: jax.Array, carry: Any) -> Any:
            return body(True)(jnp.where(t < before, self.first[i] + t, self.masked[i] + t - before), carry)

        return lax.fori_loop(0, before + self.last[i] - self.masked[i], rest, carry)


def _rows(array: jax.Array, i: jax.Array, size: int, axis: int = -2) -> jax.Array:
    return lax.dynamic_slice_in_dim(array, i * size, size, axis=axis)


def _turned(array: jax.Array, tile: int) -> jax.Array:
    """(batch, heads, length, d) -> (batch, heads, d, length), a tile at a time.

    XLA's CPU backend turns what has left the caches at a twentieth of the rate of a copy.
    """

    def one(i: jax.Array, turned: jax.Array) -> jax.Array:
        part = _rows(array, i, tile).swapaxes(2, 3)
        return lax.dynamic_update_slice_in_dim(turned, part, i * tile, axis=3)

    batch, heads, length, width = array.shape
    return lax.fori_loop(0, length // tile, one, jnp.zeros((batch, heads, width, length), array.dtype))


def _q_tile(plan: _Plan, q: jax.Array, i: jax.Array) -> jax.Array:
    """(batch, n_kv_heads, group, length, d) -> (batch, n_kv_heads, group * queries, d)."""
    part = _rows(q, i, plan.q_tile)
    return part.reshape(*part.shape[:2], -1, part.shape[-1])


def _q_rows(plan: _Plan, columns: jax.Array) -> jax.Array:
    """(batch, n_kv_heads, d, group * queries) -> (batch, n_kv_heads, group, queries, d)."""
    parts = columns.reshape(*columns.shape[:3], plan.group, plan.q_tile)
    return parts.transpose(0, 1, 3, 4, 2)


def _bias_tile(plan: _Plan, bias: Any, i: jax.Array, j: jax.Array, visibility: Visibility) -> jax.Array:
    """(batch or 1, heads or 1, queries, keys). visibility: of the tile."""
    if isinstance(bias, Partial):
        return bias(visibility.q_positions, visibility.k_positions)
    size = (*bias.shape[:2], plan.q_tile, plan.k_tile)
    return lax.dynamic_slice(bias, (0, 0, i * plan.q_tile, j * plan.k_tile), size)


def _turned_bias(plan: _Plan, part: jax.Array, n_kv_heads: int) -> jax.Array:
    """(batch or 1, heads or 1, q, k) -> (batch or 1, n_kv_heads or 1, keys, group * queries)."""
    if part.shape[1] == 1:
        part = jnp.broadcast_to(part, (part.shape[0], plan.group, *part.shape[2:]))[:, None]
    else:
        part = part.reshape(part.shape[0], n_kv_heads, plan.group, *part.shape[2:])
    return part.reshape(*part.shape[:2], -1, plan.k_tile).swapaxes(2, 3)


def _scaled(plan: _Plan, q: jax.Array) -> tuple[jax.Array, float]:
    """Queries that are scaled already, and what is left to multiply their scores by: 1, where nothing is lost."""
    return (plan.scale * q, 1.0) if q.dtype == accumulator(q) else (q, plan.scale)


def _score(
    plan: _Plan, q: jax.Array, k: jax.Array, bias: Any, visibility: Visibility, masked: bool, i: jax.Array,
    j: jax.Array,
) -> _Tile:  # fmt: skip
    """Scores of query tile i (already cut) with key tile j (already cut)."""
    dtype = accumulator(q, k)
    q, scale = _scaled(plan, q)
    scores = jnp.einsum("bhkd,bhqd->bhkq", k, q, preferred_element_type=dtype)
    scores = scores if scale == 1.0 else scale * scores
    slope = None
    if plan.softcap is not None:
        bounded = jnp.tanh(scores / plan.softcap)
        scores, slope = plan.softcap * bounded, 1 - bounded**2
    part = visibility.tile(i * plan.q_tile, plan.q_tile, j * plan.k_tile, plan.k_tile)
    if bias is not None:
        scores = scores + _turned_bias(plan, _bias_tile(plan, bias, i, j, part), k.shape[1]).astype(dtype)
    if masked:
        visible = jnp.tile(part.mask().swapaxes(1, 2), (1, 1, plan.group))[:, None]
        scores = jnp.where(visible, scores, NEGLIGIBLE)
    return _Tile(scores, slope)


def _visits(plan: _Plan, visibility: Visibility) -> _Visits:
    tiles = visibility.tiles(plan.q_tile, plan.k_tile)
    count = tiles.shape[1]
    first = jnp.argmax(tiles, axis=1)
    last = count - jnp.argmax(tiles[:, ::-1], axis=1)
    last = jnp.where(tiles.any(1), last, first)
    # of the tiles that are seen in whole the first run
    seen = visibility.whole_tiles(plan.q_tile, plan.k_tile)
    start = jnp.where(seen.any(1), jnp.argmax(seen, axis=1), first)
    ends = ~seen & (jnp.arange(count) > start[:, None])
    end = jnp.where(ends.any(1), jnp.argmax(ends, axis=1), count)
    return _Visits(first, start, jnp.where(seen.any(1), end, start), last)


def _forward(plan: _Plan, q, k, v, bias, visibility) -> tuple[jax.Array, jax.Array]:
    """Outputs (batch, n_kv_heads, group, length, d), and log-sum-exp (batch, n_kv_heads, group, length)."""
    dtype = accumulator(q, k, v)
    visits = _visits(plan, visibility)
    batch, n_kv_heads, group, length, _ = q.shape
    columns = group * plan.q_tile
    v = _turned(v, plan.k_tile)

    def query_tile(i, carry):
        out, lse = carry
        part = _q_tile(plan, q, i)

        def key_tile(masked, j, carry):
            highest, total, acc = carry
            tile = _score(plan, part, _rows(k, j, plan.k_tile), bias, visibility, masked, i, j)
            now = jnp.maximum(highest, tile.scores.max(2))
            weights = jnp.exp(tile.scores - now[:, :, None])
            shrink = jnp.exp(highest - now)
            values = _rows(v, j, plan.k_tile, axis=3)
            update = jnp.einsum("bhdk,bhkq->bhdq", values, weights.astype(v.dtype), preferred_element_type=dtype)
            return now, total * shrink + weights.sum(2), acc * shrink[:, :, None] + update

        start = (
            jnp.full((batch, n_kv_heads, columns), NOTHING, dtype),
            jnp.zeros((batch, n_kv_heads, columns), dtype),
            jnp.zeros((batch, n_kv_heads, v.shape[2], columns), dtype),
        )
        highest, total, acc = visits.over(i, lambda masked: partial(key_tile, masked), start)
        total = jnp.where(total == 0, 1, total)
        acc = _q_rows(plan, acc / total[:, :, None])
        row_lse = (highest + jnp.log(total)).reshape(batch, n_kv_heads, group, plan.q_tile)
        out = lax.dynamic_update_slice_in_dim(out, acc.astype(out.dtype), i * plan.q_tile, axis=3)
        return out, lax.dynamic_update_slice_in_dim(lse, row_lse, i * plan.q_tile, axis=3)

    out = jnp.zeros((batch, n_kv_heads, group, length, v.shape[2]), q.dtype)
    lse = jnp.zeros((batch, n_kv_heads, group, length), dtype)
    return lax.fori_loop(0, length // plan.q_tile, query_tile, (out, lse))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(plan: _Plan, q, k, v, bias, visibility: Visibility) -> jax.Array:
    return _forward(plan, q, k, v, bias, visibility)[0]


def _flash_forward(plan, q, k, v, bias, visibility):
    out, lse = _forward(plan, q, k, v, bias, visibility)
    return out, (q, k, v, bias, visibility, out, lse)


def _flash_backward(plan, saved, dout):
    q, k, v, bias, visibility, out, lse = saved
    dtype = lse.dtype
    visits = _visits(plan, visibility)
    # sum over keys of weight times its cotangent, for every query
    mean = jnp.einsum("bhgqd,bhgqd->bhgq", out, dout, preferred_element_type=dtype)
    turned_k = _turned(k, plan.k_tile)

    def query_tile(i, carry):
        dq, dk, dv, dbias = carry
        q_i, dout_i = _q_tile(plan, q, i), _q_tile(plan, dout, i)
        mean_i, lse_i = (_rows(array, i, plan.q_tile, axis=3).reshape(*array.shape[:2], 1, -1) for array in (mean, lse))

        def key_tile(masked, j, carry):
            dq_i, dk, dv, dbias = carry
            k_j, v_j = _rows(k, j, plan.k_tile), _rows(v, j, plan.k_tile)
            tile = _score(plan, q_i, k_j, bias, visibility, masked, i, j)
            weights = jnp.exp(tile.scores - lse_i)
            dweights = jnp.einsum("bhkd,bhqd->bhkq", v_j, dout_i, preferred_element_type=dtype)
            dscores = weights * (dweights - mean_i)
            if bias is not None:
                dbias = _add_bias(plan, bias, dbias, dscores, visibility, i, j)
            if tile.slope is not None:
                dscores = dscores * tile.slope
            dscores = dscores.astype(q.dtype)
            keys = _rows(turned_k, j, plan.k_tile, axis=3)
            dq_i = dq_i + jnp.einsum("bhdk,bhkq->bhdq", keys, dscores, preferred_element_type=dtype)
            dk_j = jnp.einsum("bhkq,bhqd->bhkd", dscores, _scaled(plan, q_i)[0], preferred_element_type=dtype)
            dv_j = jnp.einsum("bhkq,bhqd->bhkd", weights.astype(q.dtype), dout_i, preferred_element_type=dtype)
            return dq_i, _add_rows(dk, dk_j, j * plan.k_tile), _add_rows(dv, dv_j, j * plan.k_tile), dbias

        start = (jnp.zeros((*q_i.shape[:2], q_i.shape[3], q_i.shape[2]), dtype), dk, dv, dbias)
        dq_i, dk, dv, dbias = visits.over(i, lambda masked: partial(key_tile, masked), start)
        dq_i = _q_rows(plan, plan.scale * dq_i).astype(q.dtype)
        return lax.dynamic_update_slice_in_dim(dq, dq_i, i * plan.q_tile, axis=3), dk, dv, dbias

    dbias = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, dtype)), bias)
    start = (jnp.zeros_like(q), jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype), dbias)
    dq, dk, dv, dbias = lax.fori_loop(0, q.shape[3] // plan.q_tile, query_tile, start)
    dbias = jax.tree.map(lambda given, leaf: given.astype(leaf.dtype), dbias, bias)
    dk = _scaled(plan, q)[1] * dk
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), dbias, None


def _add_rows(array: jax.Array, value: jax.Array, start: jax.Array) -> jax.Array:
    old = lax.dynamic_slice_in_dim(array, start, value.shape[2], axis=2)
    return lax.dynamic_update_slice_in_dim(array, old + value, start, axis=2)


def _add_bias(plan: _Plan, bias: Any, dbias: Any, dscores: jax.Array, visibility: Visibility, i, j) -> Any:
    """Adds the gradient of one tile: (batch, n_kv_heads, keys, group * queries), to what the bias is made of."""
    batch, n_kv_heads = dscores.shape[:2]
    part = dscores.reshape(batch, n_kv_heads, plan.k_tile, plan.group, plan.q_tile).transpose(0, 1, 3, 4, 2)
    part = part.reshape(batch, n_kv_heads * plan.group, plan.q_tile, plan.k_tile)
    if not isinstance(bias, Partial):
        part = _summed(part, bias.shape)
        start = (0, 0, i * plan.q_tile, j * plan.k_tile)
        return lax.dynamic_update_slice(dbias, lax.dynamic_slice(dbias, start, part.shape) + part, start)
    if not jax.tree.leaves(bias):
        return dbias
    seen = visibility.tile(i * plan.q_tile, plan.q_tile, j * plan.k_tile, plan.k_tile)
    added, pull = jax.vjp(lambda bias: _bias_tile(plan, bias, i, j, seen), bias)
    (more,) = pull(_summed(part, added.shape).astype(added.dtype))
    return jax.tree.map(jnp.add, dbias, more)


def _summed(part: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Over the batch or the heads, where the bias has one for all."""
    return part.sum([axis for axis in (0, 1) if shape[axis] == 1], keepdims=True)


_flash.defvjp(_flash_forward, _flash_backward)
