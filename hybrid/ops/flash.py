"""Attention in tiles, with memory linear in the length (FlashAttention-2: Dao 2023), as two loops that XLA compiles.

Tiles of queries are the outer loop, tiles of keys the inner. The inner loop runs from the first to the last tile in
which something is visible: half of them under causality, a constant number with a window, those of the document when
documents are packed. The trip counts depend on data, through which jax cannot differentiate in reverse: the derivative
is written out, and recomputes the scores from the saved log-sum-exp of each query.

Scores are kept with the keys on the rows, (batch, n_kv_heads, keys, group * queries): the reductions of the softmax
then run over a leading axis, and a group of queries shares one product with its keys.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hybrid.ops.forms import accumulator
from hybrid.ops.visibility import NEGLIGIBLE, Visibility

TILE = 128
"""On two busy CPU cores twice as fast as 512 for rows of 256 to 2048."""


def tile_of(window: int | None) -> int:
    """Queries, and keys, of a tile. Half a window, so that few of the scores that are computed are not seen."""
    if window is None:
        return TILE
    half = 1 << max(0, (window // 2).bit_length() - 1)  # a power of two
    return min(2 * TILE, max(TILE // 2, half))


def flash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visibility: Visibility,
    bias: jax.Array | None,
    scale: float,
    softcap: float | None,
    tile: int | None = None,
) -> jax.Array:
    """Arguments and result as in hybrid/ops/attention.py; `tile` bounds the queries, and the keys, of a tile."""
    tile = tile_of(visibility.window) if tile is None else tile
    batch, q_length, n_heads, _ = q.shape
    k_length, n_kv_heads = k.shape[1:3]
    plan = _Plan(min(tile, q_length), min(tile, k_length), n_heads // n_kv_heads, scale, softcap)
    q_padded = -(-q_length // plan.q_tile) * plan.q_tile
    k_padded = -(-k_length // plan.k_tile) * plan.k_tile

    def heads_first(array: jax.Array, length: int) -> jax.Array:
        return jnp.pad(array.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - array.shape[1]), (0, 0)))

    q = heads_first(q, q_padded).reshape(batch, n_kv_heads, plan.group, q_padded, -1)
    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, q_padded - q_length), (0, k_padded - k_length)))
    k, v = heads_first(k, k_padded), heads_first(v, k_padded)
    out = _flash(plan, q, k, v, bias, visibility.padded(q_padded, k_padded))
    return out.reshape(batch, n_heads, q_padded, -1)[:, :, :q_length].swapaxes(1, 2)


class _Plan(NamedTuple):
    q_tile: int
    k_tile: int
    group: int  # query heads a key head
    scale: float
    softcap: float | None


class _Tile(NamedTuple):
    scores: jax.Array  # (batch, n_kv_heads, keys, group * queries), NEGLIGIBLE where not visible
    slope: jax.Array | None  # derivative of the soft cap, same shape
    visible: jax.Array  # (batch, 1, keys, group * queries)


def _rows(array: jax.Array, i: jax.Array, size: int, axis: int = -2) -> jax.Array:
    return lax.dynamic_slice_in_dim(array, i * size, size, axis=axis)


def _q_tile(plan: _Plan, q: jax.Array, i: jax.Array) -> jax.Array:
    """(batch, n_kv_heads, group, length, d) -> (batch, n_kv_heads, group * queries, d)."""
    part = _rows(q, i, plan.q_tile)
    return part.reshape(*part.shape[:2], -1, part.shape[-1])


def _bias_tile(plan: _Plan, bias: jax.Array, i: jax.Array, j: jax.Array, n_kv_heads: int) -> jax.Array:
    """(batch or 1, heads or 1, q, k) -> (batch or 1, n_kv_heads or 1, keys, group * queries or queries of one head)."""
    part = lax.dynamic_slice(
        bias, (0, 0, i * plan.q_tile, j * plan.k_tile), (*bias.shape[:2], plan.q_tile, plan.k_tile)
    )
    if part.shape[1] == 1:
        part = jnp.broadcast_to(part, (part.shape[0], plan.group, *part.shape[2:]))[:, None]
    else:
        part = part.reshape(part.shape[0], n_kv_heads, plan.group, *part.shape[2:])
    return part.reshape(*part.shape[:2], -1, plan.k_tile).swapaxes(2, 3)


def _score(plan: _Plan, q: jax.Array, k: jax.Array, bias, visibility: Visibility, i: jax.Array, j: jax.Array) -> _Tile:
    """Scores of query tile i (already cut) with key tile j (already cut)."""
    dtype = accumulator(q, k)
    scores = plan.scale * jnp.einsum("bhkd,bhqd->bhkq", k, q, preferred_element_type=dtype)
    slope = None
    if plan.softcap is not None:
        bounded = jnp.tanh(scores / plan.softcap)
        scores, slope = plan.softcap * bounded, 1 - bounded**2
    if bias is not None:
        scores = scores + _bias_tile(plan, bias, i, j, k.shape[1]).astype(dtype)
    part = visibility.tile(i * plan.q_tile, plan.q_tile, j * plan.k_tile, plan.k_tile)
    visible = jnp.tile(part.mask().swapaxes(1, 2), (1, 1, plan.group))[:, None]
    return _Tile(jnp.where(visible, scores, NEGLIGIBLE), slope, visible)


def _bounds(plan: _Plan, visibility: Visibility) -> tuple[jax.Array, jax.Array]:
    """First key tile, and one past the last, that each query tile has to visit: two arrays (q tiles,)."""
    tiles = visibility.tiles(plan.q_tile, plan.k_tile)
    first = jnp.argmax(tiles, axis=1)
    last = tiles.shape[1] - jnp.argmax(tiles[:, ::-1], axis=1)
    return first, jnp.where(tiles.any(1), last, first)


def _forward(plan: _Plan, q, k, v, bias, visibility) -> tuple[jax.Array, jax.Array]:
    """Outputs (batch, n_kv_heads, group, length, d), and log-sum-exp (batch, n_kv_heads, group, length)."""
    dtype = accumulator(q, k, v)
    first, last = _bounds(plan, visibility)
    batch, n_kv_heads, group, length, _ = q.shape
    columns = group * plan.q_tile

    def query_tile(i, carry):
        out, lse = carry
        part = _q_tile(plan, q, i)

        def key_tile(j, carry):
            highest, total, acc = carry
            tile = _score(plan, part, _rows(k, j, plan.k_tile), bias, visibility, i, j)
            now = jnp.maximum(highest, tile.scores.max(2))
            weights = jnp.where(tile.visible, jnp.exp(tile.scores - now[:, :, None]), 0)
            shrink = jnp.exp(highest - now)
            values = _rows(v, j, plan.k_tile)
            update = jnp.einsum("bhkq,bhkd->bhqd", weights.astype(v.dtype), values, preferred_element_type=dtype)
            return now, total * shrink + weights.sum(2), acc * shrink[..., None] + update

        start = (
            jnp.full((batch, n_kv_heads, columns), NEGLIGIBLE, dtype),
            jnp.zeros((batch, n_kv_heads, columns), dtype),
            jnp.zeros((batch, n_kv_heads, columns, v.shape[-1]), dtype),
        )
        highest, total, acc = lax.fori_loop(first[i], last[i], key_tile, start)
        total = jnp.where(total == 0, 1, total)
        acc = (acc / total[..., None]).reshape(batch, n_kv_heads, group, plan.q_tile, -1)
        row_lse = (highest + jnp.log(total)).reshape(batch, n_kv_heads, group, plan.q_tile)
        out = lax.dynamic_update_slice_in_dim(out, acc.astype(out.dtype), i * plan.q_tile, axis=3)
        return out, lax.dynamic_update_slice_in_dim(lse, row_lse, i * plan.q_tile, axis=3)

    out = jnp.zeros((batch, n_kv_heads, group, length, v.shape[-1]), q.dtype)
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
    first, last = _bounds(plan, visibility)
    # sum over keys of weight times its cotangent, for every query
    mean = jnp.einsum("bhgqd,bhgqd->bhgq", out, dout, preferred_element_type=dtype)

    def query_tile(i, carry):
        dq, dk, dv, dbias = carry
        q_i, dout_i = _q_tile(plan, q, i), _q_tile(plan, dout, i)
        mean_i, lse_i = (_rows(array, i, plan.q_tile, axis=3).reshape(*array.shape[:2], 1, -1) for array in (mean, lse))

        def key_tile(j, carry):
            dq_i, dk, dv, dbias = carry
            k_j, v_j = _rows(k, j, plan.k_tile), _rows(v, j, plan.k_tile)
            tile = _score(plan, q_i, k_j, bias, visibility, i, j)
            weights = jnp.where(tile.visible, jnp.exp(tile.scores - lse_i), 0)
            dweights = jnp.einsum("bhkd,bhqd->bhkq", v_j, dout_i, preferred_element_type=dtype)
            dscores = weights * (dweights - mean_i)
            if dbias is not None:
                dbias = _add_bias_tile(plan, dbias, dscores, i, j)
            if tile.slope is not None:
                dscores = dscores * tile.slope
            dscores = (plan.scale * dscores).astype(q.dtype)
            dq_i = dq_i + jnp.einsum("bhkq,bhkd->bhqd", dscores, k_j, preferred_element_type=dtype)
            dk_j = jnp.einsum("bhkq,bhqd->bhkd", dscores, q_i, preferred_element_type=dtype)
            dv_j = jnp.einsum("bhkq,bhqd->bhkd", weights.astype(q.dtype), dout_i, preferred_element_type=dtype)
            return dq_i, _add_rows(dk, dk_j, j * plan.k_tile), _add_rows(dv, dv_j, j * plan.k_tile), dbias

        start = (jnp.zeros(q_i.shape, dtype), dk, dv, dbias)
        dq_i, dk, dv, dbias = lax.fori_loop(first[i], last[i], key_tile, start)
        dq_i = dq_i.reshape(*q.shape[:3], plan.q_tile, -1).astype(q.dtype)
        return lax.dynamic_update_slice_in_dim(dq, dq_i, i * plan.q_tile, axis=3), dk, dv, dbias

    dbias = None if bias is None else jnp.zeros(bias.shape, dtype)
    start = (jnp.zeros_like(q), jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype), dbias)
    dq, dk, dv, dbias = lax.fori_loop(0, q.shape[3] // plan.q_tile, query_tile, start)
    dbias = None if dbias is None else dbias.astype(bias.dtype)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), dbias, None


def _add_rows(array: jax.Array, value: jax.Array, start: jax.Array) -> jax.Array:
    old = lax.dynamic_slice_in_dim(array, start, value.shape[2], axis=2)
    return lax.dynamic_update_slice_in_dim(array, old + value, start, axis=2)


def _add_bias_tile(plan: _Plan, dbias: jax.Array, dscores: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
    """Adds (batch, n_kv_heads, keys, group * queries), summed over what the bias broadcasts."""
    batch, n_kv_heads = dscores.shape[:2]
    part = dscores.reshape(batch, n_kv_heads, plan.k_tile, plan.group, plan.q_tile).transpose(0, 1, 3, 4, 2)
    part = part.reshape(batch, n_kv_heads * plan.group, plan.q_tile, plan.k_tile)
    summed = tuple(axis for axis in (0, 1) if dbias.shape[axis] == 1)
    part = part.sum(summed, keepdims=True)
    start = (0, 0, i * plan.q_tile, j * plan.k_tile)
    return lax.dynamic_update_slice(dbias, lax.dynamic_slice(dbias, start, part.shape) + part, start)


_flash.defvjp(_flash_forward, _flash_backward)
