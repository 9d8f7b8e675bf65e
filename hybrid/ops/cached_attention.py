"""Attention of new tokens to a cache of keys and values: the cost follows the slots that are filled, not the room.

The cache lies as the sums read it: keys (batch, n_kv_heads, head_dim, slots), so that the scores of neighbouring slots
come from neighbouring numbers, and values (batch, n_kv_heads, slots, value_dim). Slots may stand in any order:
positions and validity decide what is seen, as in hybrid/ops/attention.py.

    keys = put(keys, new_keys, filled, axis=3)      first the new slots, in place where the cache is donated,
    y = cached_attention(q, keys, ...)              then the read: the other way round XLA copies the cache.

`chunked`  a loop over chunks of the filled slots with a running softmax. Nothing grows with the number of slots.
`plain`    the scores of all slots at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from hybrid.ops.forms import accumulator, lookup, note
from hybrid.ops.visibility import NEGLIGIBLE, Visibility
from hybrid.validation import ConfigError

CHUNK = 1 << 17
"""Products of queries and keys that are there at one time, in the read of one token: half a megabyte in float32. On two
CPU cores, one row, 4 heads of 64: chunks of 256, 512 and 1024 slots took 1.8, 1.75 and 1.7 ms for 8000."""
NARROWEST, WIDEST = 128, 1024
"""Slots of a chunk."""
QUERIES = 256
"""New tokens that are worked on together: a prompt is read in tiles of them."""


class _Plan(NamedTuple):
    chunk: int
    queries: int
    scale: float
    softcap: float | None


def put(cache: jax.Array, new: jax.Array, at: jax.Array, axis: int, real: jax.Array | None = None) -> jax.Array:
    """The cache (batch, ...) with `new` in the slots of `axis` from at[row] on, row by row.

    new: as the cache, with fewer slots. at: (batch,) integers. real: (batch,) bool, rows that are written.
    """

    def row(i: jax.Array | int, cache: jax.Array) -> jax.Array:
        zero = jnp.zeros((), at.dtype)
        start = [zero] * cache.ndim
        start[0], start[axis] = jnp.asarray(i, at.dtype), at[i]
        part = lax.dynamic_slice_in_dim(new, i, 1)
        if real is not None:
            part = jnp.where(real[i], part, lax.dynamic_slice(cache, start, part.shape))
        return lax.dynamic_update_slice(cache, part, start)

    new = new.astype(cache.dtype)
    return row(0, cache) if cache.shape[0] == 1 else lax.fori_loop(0, cache.shape[0], row, cache)


def cached_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    q_positions: jax.Array,
    k_positions: jax.Array,
    k_valid: jax.Array,
    used: jax.Array | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    form: str = "auto",
) -> jax.Array:
    """softmax(softcap(scale q k) + bias) v over the visible slots: (batch, new, n_heads, value_dim), dtype of q.

    q: (batch, new, n_heads, head_dim); query head h reads key head h // (n_heads / n_kv_heads). keys and values as
    above. q_positions: (batch, new); k_positions, k_valid: (batch, slots). A query sees the valid slots whose position
    is not later than its own and less than `window` before it. used: () integer, slots from the first that can be valid
    in some row (None: all); those behind are not read. bias: a function of positions (batch, new) and (batch, slots),
    as in hybrid/ops/attention.py.

    Temporaries of `chunked` for one new token: about half a MiB in float32 up to batch n_heads head_dim = 1024, and in
    proportion to it beyond.
    """
    batch, new, n_heads, head_dim = q.shape
    n_kv_heads, slots = keys.shape[1], keys.shape[3]
    if keys.shape[:3] != (batch, n_kv_heads, head_dim) or values.shape[:3] != (batch, n_kv_heads, slots):
        raise ConfigError("keys", f"shapes q {q.shape}, keys {keys.shape}, values {values.shape} do not fit")
    if n_heads % n_kv_heads:
        raise ConfigError("n_kv_heads", f"{n_kv_heads} is not allowed; must divide n_heads = {n_heads}")
    form = "chunked" if form == "auto" else form
    run = lookup(_FORMS, form)
    wide = CHUNK // (batch * n_heads * head_dim) if new == 1 else WIDEST // 2
    chunk = min(slots, max(NARROWEST, min(WIDEST, 1 << max(0, wide.bit_length() - 1))))
    note("cached_attention", f"chunked {chunk}" if form == "chunked" else form)
    plan = _Plan(chunk, min(new, QUERIES), head_dim**-0.5 if scale is None else scale, softcap)
    bias = bias if bias is None or isinstance(bias, Partial) else Partial(bias)
    visibility = Visibility(q_positions, k_positions, None, None, k_valid, causal=True, window=window)
    used = jnp.asarray(slots if used is None else used, jnp.int32)
    grouped = q.reshape(batch, new, n_kv_heads, n_heads // n_kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    out = run(plan, grouped, keys, values, bias, visibility, used)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, new, n_heads, -1).astype(q.dtype)


def _scores(plan: _Plan, q: jax.Array, k: jax.Array, bias, visibility: Visibility) -> tuple[jax.Array, jax.Array]:
    """(batch, n_kv_heads, group, queries, slots) of q (.., queries, d) and k (.., d, slots), and which are visible."""
    dtype = accumulator(q, k)
    batch, n_kv_heads, group, queries, _ = q.shape
    if group * queries == 1:  # a product of a row and a matrix: a sum of rows keeps the slots side by side
        scores = (q[:, :, 0, 0, :, None].astype(dtype) * k.astype(dtype)).sum(2)
    else:
        rows = q.reshape(batch, n_kv_heads, group * queries, -1)
        scores = jnp.einsum("bhqd,bhds->bhqs", rows, k.astype(q.dtype), preferred_element_type=dtype)
    scores = plan.scale * scores.reshape(batch, n_kv_heads, group, queries, -1)
    if plan.softcap is not None:
        scores = plan.softcap * jnp.tanh(scores / plan.softcap)
    if bias is not None:
        added = bias(visibility.q_positions, visibility.k_positions)
        added = jnp.broadcast_to(added, (added.shape[0], n_kv_heads * group, *added.shape[2:]))
        scores = scores + added.reshape(added.shape[0], *scores.shape[1:]).astype(dtype)
    visible = visibility.mask()[:, None, None]
    return jnp.where(visible, scores, NEGLIGIBLE), visible


def _mixed(weights: jax.Array, v: jax.Array, q_dtype) -> jax.Array:
    """Sums over the slots: weights (batch, n_kv_heads, group, queries, slots), v (batch, n_kv_heads, slots, d)."""
    batch, n_kv_heads, group, queries, slots = weights.shape
    if group * queries == 1:
        mixed = (weights.reshape(batch, n_kv_heads, slots, 1) * v.astype(weights.dtype)).sum(2)
    else:
        rows = weights.reshape(batch, n_kv_heads, group * queries, slots).astype(q_dtype)
        mixed = jnp.einsum("bhqs,bhsd->bhqd", rows, v.astype(q_dtype), preferred_element_type=weights.dtype)
    return mixed.reshape(batch, n_kv_heads, group, queries, -1)


def _plain(plan: _Plan, q, keys, values, bias, visibility: Visibility, used) -> jax.Array:
    """(batch, n_kv_heads, group, new, value_dim)"""
    scores, visible = _scores(plan, q, keys, bias, visibility)
    highest = lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(visible, jnp.exp(scores - highest), 0)
    total = weights.sum(-1, keepdims=True)
    return _mixed(weights / jnp.where(total == 0, 1, total), values, q.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(plan: _Plan, q, keys, values, bias, visibility: Visibility, used) -> jax.Array:
    new = q.shape[3]
    size = plan.queries
    if new == size:
        return _tile(plan, q, keys, values, bias, visibility, used)
    tiles = -(-new // size)
    out = jnp.zeros((*q.shape[:4], values.shape[-1]), accumulator(q, keys, values))

    def query_tile(i, out):
        start = jnp.minimum(i * size, new - size)  # the last tile does some queries again
        part = lax.dynamic_slice_in_dim(q, start, size, axis=3)
        seen = dataclasses.replace(
            visibility, q_positions=lax.dynamic_slice_in_dim(visibility.q_positions, start, size, axis=1)
        )
        return lax.dynamic_update_slice_in_dim(out, _tile(plan, part, keys, values, bias, seen, used), start, axis=3)

    return lax.fori_loop(0, tiles, query_tile, out)


def _tile(plan: _Plan, q, keys, values, bias, visibility: Visibility, used) -> jax.Array:
    dtype, slots = accumulator(q, keys, values), keys.shape[3]
    assert visibility.k_valid is not None
    if q.shape[3] > 1:  # of a prompt's tiles the first do not see the slots of the last
        seen = visibility.k_valid & (visibility.k_positions <= visibility.q_positions.max(1, keepdims=True))
        used = jnp.minimum(used, slots - jnp.argmax(seen.any(0)[::-1]))

    def chunk(j, carry):
        highest, total, acc = carry
        start = jnp.minimum(j * plan.chunk, slots - plan.chunk)
        part = visibility.tile(jnp.int32(0), q.shape[3], start, plan.chunk)
        # the last chunk begins earlier where the slots are not a multiple of it
        assert part.k_valid is not None
        part = dataclasses.replace(part, k_valid=part.k_valid & (start + jnp.arange(plan.chunk) >= j * plan.chunk))
        k = lax.dynamic_slice_in_dim(keys, start, plan.chunk, axis=3)
        scores, visible = _scores(plan, q, k, bias, part)
        now = jnp.maximum(highest, scores.max(-1))
        weights = jnp.where(visible, jnp.exp(scores - now[..., None]), 0)
        shrink = jnp.exp(highest - now)
        v = lax.dynamic_slice_in_dim(values, start, plan.chunk, axis=2)
        update = _mixed(weights, v, q.dtype)
        return now, total * shrink + weights.sum(-1), acc * shrink[..., None] + update

    rows = q.shape[:4]
    start = (jnp.full(rows, NEGLIGIBLE, dtype), jnp.zeros(rows, dtype), jnp.zeros((*rows, values.shape[-1]), dtype))
    _, total, acc = lax.fori_loop(0, -(-used // plan.chunk), chunk, start)
    return acc / jnp.where(total == 0, 1, total)[..., None]


def _chunked_forward(plan: _Plan, q, keys, values, bias, visibility, used):
    return _chunked(plan, q, keys, values, bias, visibility, used), (q, keys, values, bias, visibility, used)


def _chunked_backward(plan: _Plan, saved, dout):
    """By the plain form: a derivative through a cache is rare, and the turns of its loop depend on data."""
    q, keys, values, bias, visibility, used = saved

    def plain(q, keys, values, bias):
        return _plain(plan, q, keys, values, bias, visibility, used)

    _, pull = jax.vjp(plain, q, keys, values, bias)
    return *pull(dout), None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)

_FORMS: dict[str, Callable[..., jax.Array]] = {"chunked": _chunked, "plain": _plain}
FORMS = tuple(_FORMS)
