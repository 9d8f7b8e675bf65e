"""The chunked form of the SSD (Dao and Gu 2024, section 6) with its derivative written out.

A loop goes over groups of chunks; what a group works on fits into the cache of a CPU core, or is the whole length where
the groups are made that large. Inside of a group everything is a product of matrices: within chunks as attention does
it, head by head; from and to the states for all heads of a group of B and C at once, since they share B and C. Only the
states follow one another.

The derivative keeps the inputs, the outputs and the states that enter the chunks, and makes the masks and scores again.
What the logarithms of the decays get needs no derivative of a mask: with total[q] the logarithm of all decays up to q,
an output grows like exp(total[q]) and what a position adds to later ones like exp(-total[s]), so that

    d total[q] = dy[q] . y[q] - drive[q] . d drive[q]        and at the last position of a chunk + h . dh, h leaving it.

Axes: b row, c chunk of the group, q and s positions of a chunk (s acts on q), r head, p of head_dim, n of d_state, k =
r p. There is no axis of the groups of heads that share B and C: each is a row. An axis of length one would make XLA
copy whole inputs to another layout, which has the same order.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Inputs(NamedTuple):
    """What the forms get, in the dtype of the state; heads with a B and C of their own are rows of their own."""

    x: jax.Array  # (rows, length, heads, head_dim)
    dt: jax.Array  # (rows, length, heads)
    log_decay: jax.Array  # (rows, length, heads): dt A
    B: jax.Array  # (rows, length, d_state)
    C: jax.Array  # (rows, length, d_state)
    keep: jax.Array | None  # (rows, length) bool: False where a document begins; None: one document


class Tiles(NamedTuple):
    chunk: int
    """Positions a chunk."""
    chunks: int
    """Chunks a group."""


class _Documents(NamedTuple):
    number: jax.Array  # (rows, length): running number of the document of each position
    before: jax.Array  # (rows, all chunks): of the position before each chunk


def chunked(tiles: Tiles, inputs: Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Outputs like x, and the last state; state: (rows, heads, head_dim, d_state)."""
    length = inputs.x.shape[1]
    missing = -length % (tiles.chunk * tiles.chunks)
    *arrays, keep = inputs
    if missing:  # positions that fill up the last group have dt = 0: they leave the state as it was
        arrays = [jnp.pad(a, [(0, 0), (0, missing)] + [(0, 0)] * (a.ndim - 2)) for a in arrays]
    documents = None
    if keep is not None:
        number = jnp.pad(jnp.cumsum(~keep, axis=1, dtype=jnp.int32), ((0, 0), (0, missing)), mode="edge")
        documents = _Documents(number, jnp.pad(number[:, tiles.chunk - 1 : -1 : tiles.chunk], ((0, 0), (1, 0))))
    y, state = _core(tiles, *arrays, documents, state.transpose(0, 3, 1, 2))
    return y[:, :length], state.transpose(0, 2, 3, 1)


def _slice(array: jax.Array, i: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(array, i * size, size, axis=1)


def _cut(tiles: Tiles, array: jax.Array, i: jax.Array) -> jax.Array:
    """Group i of (rows, length, ...) as (rows, chunks of a group, chunk, ...)."""
    part = _slice(array, i, tiles.chunk * tiles.chunks)
    return part.reshape(array.shape[0], tiles.chunks, tiles.chunk, *array.shape[2:])


def _put(array: jax.Array, part: jax.Array, i: jax.Array) -> jax.Array:
    """array (rows, length or all chunks, ...) with group i of it set."""
    part = part.reshape(array.shape[0], -1, *array.shape[2:])
    return lax.dynamic_update_slice_in_dim(array, part, i * part.shape[1], axis=1)


def _columns(tiles: Tiles, array: jax.Array) -> jax.Array:
    """(rows, length, n) -> (rows, all chunks, n, chunk): once for all groups, for products that want it so."""
    return array.reshape(array.shape[0], -1, tiles.chunk, array.shape[2]).swapaxes(2, 3)


class _Decays(NamedTuple):
    """Products of the decays between positions of a chunk, zero where a document or the order of time is between."""

    within: jax.Array  # (q, s) or (b, c, q, s), 0 or 1: s acts on q
    total: jax.Array  # (b, c, r, q): logarithm since the chunk, or the document, began
    since: jax.Array  # (b, c, q, r): of what enters the chunk, at q
    leaving: jax.Array  # (b, c, s, r): of what s adds, where the chunk ends
    carried: jax.Array  # (b, c, r): of what enters, where the chunk ends


def _decays(tiles: Tiles, log_decay: jax.Array, documents: _Documents | None, i: jax.Array) -> _Decays:
    dtype = log_decay.dtype
    within = jnp.tril(jnp.ones((tiles.chunk, tiles.chunk), dtype))
    starts = ends = jnp.ones((1, 1, 1, 1), dtype)  # what enters acts on q; s acts on what leaves
    if documents is not None:
        number, before = _cut(tiles, documents.number, i), _slice(documents.before, i, tiles.chunks)
        within = within * (number[..., None] == number[:, :, None, :])
        starts = (number == before[..., None]).astype(dtype)[..., None]
        ends = (number == number[..., -1:]).astype(dtype)[..., None]
    # A product with the mask and not a cumulative sum: what another document adds would cancel in values, but leave its
    # rounding in gradients.
    total = _over_time("bcsr,{}->bcrq", log_decay, within)
    by_time = total.swapaxes(2, 3)
    last = by_time[:, :, -1:]
    leaving = jnp.exp(jnp.where(ends > 0, last - by_time, 0)) * ends
    carried = jnp.exp(last[:, :, 0]) * starts[:, :, -1]
    return _Decays(within, total, jnp.exp(by_time) * starts, leaving, carried)


def _over_time(equation: str, array: jax.Array, within: jax.Array) -> jax.Array:
    mask = "qs" if within.ndim == 2 else "bcqs"
    return jnp.einsum(equation.format(mask), array, within, precision=lax.Precision.HIGHEST)


def _between(total: jax.Array, within: jax.Array) -> jax.Array:
    """(b, c, r, q, s): the decays from s to q. Both swapped where those of `within` are, with `total` negated.

    Masked before the exponential, where it would overflow, and after it: minus infinity has no gradient.
    """
    mask = within if within.ndim == 2 else within[:, :, None]
    return jnp.exp(jnp.where(mask > 0, total[..., :, None] - total[..., None, :], 0)) * mask


def _pass_on(h: jax.Array, decay: jax.Array, added: jax.Array, reverse: bool = False) -> tuple[jax.Array, jax.Array]:
    """The last of h <- decay h + added over the chunks of a group, and those before each; h: (b, n, r, p)."""
    if decay.shape[1] > _UNROLLED:

        def step(h, part):
            decay, added = part
            return decay[:, None, :, None] * h + added, h

        over_chunks = (decay.swapaxes(0, 1), added.swapaxes(0, 1))
        h, before = lax.scan(step, h, over_chunks, reverse=reverse)
        return h, before.swapaxes(0, 1)
    before = []
    for c in reversed(range(decay.shape[1])) if reverse else range(decay.shape[1]):
        before.append(h)
        h = decay[:, c, None, :, None] * h + added[:, c]
    return h, jnp.stack(before[::-1] if reverse else before, axis=1)


_UNROLLED = 8  # chunks


def _wide(array: jax.Array) -> jax.Array:
    """Heads and their values as one axis: (..., r, p) -> (..., k)."""
    return array.reshape(*array.shape[:-2], -1)


def _forward_loop(tiles: Tiles, x, dt, log_decay, B, C, documents, state, save: bool):
    """Outputs, last state, and, where they are saved, the states that enter chunks (rows, all chunks, n, r, p)."""
    arrays, B_columns = (x, dt, log_decay, B, C), _columns(tiles, B)

    def one_group(i, carry):
        h, y, entering = carry
        x, dt, log_decay, B, C = (_cut(tiles, array, i) for array in arrays)
        decays = _decays(tiles, log_decay, documents, i)
        drive = x * dt[..., None]
        scores = jnp.einsum("bcqn,bcsn->bcqs", C, B)[:, :, None] * _between(decays.total, decays.within)
        inside = jnp.einsum("bcrqs,bcrsp->bcrqp", scores, drive.swapaxes(2, 3))
        added = jnp.einsum(
            "bcns,bcsk->bcnk", _slice(B_columns, i, tiles.chunks), _wide(drive * decays.leaving[..., None])
        )
        h, before = _pass_on(h, decays.carried, added.reshape(*added.shape[:3], *h.shape[2:]))
        read = jnp.einsum("bcqn,bcnk->bcqk", C, _wide(before)).reshape(x.shape)
        y = _put(y, inside.swapaxes(2, 3) + read * decays.since[..., None], i)
        return h, y, _put(entering, before, i) if save else None

    chunks = x.shape[1] // tiles.chunk
    entering = jnp.zeros((state.shape[0], chunks, *state.shape[1:]), state.dtype) if save else None
    state, y, entering = lax.fori_loop(0, chunks // tiles.chunks, one_group, (state, jnp.zeros_like(x), entering))
    return y, state, entering


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _core(tiles: Tiles, x, dt, log_decay, B, C, documents, state):
    y, state, _ = _forward_loop(tiles, x, dt, log_decay, B, C, documents, state, save=False)
    return y, state


def _core_forward(tiles, x, dt, log_decay, B, C, documents, state):
    y, state, entering = _forward_loop(tiles, x, dt, log_decay, B, C, documents, state, save=True)
    return (y, state), (x, dt, log_decay, B, C, documents, y, state, entering)


def _core_backward(tiles, saved, cotangents):
    x, dt, log_decay, B, C, documents, y, state, entering = saved
    dy, dh = cotangents
    arrays, C_columns = (x, dt, log_decay, B, C, y, dy), _columns(tiles, C)
    groups = x.shape[1] // (tiles.chunk * tiles.chunks)
    head_dim, heads = x.shape[3], x.shape[2]
    ones = jnp.ones(head_dim, x.dtype)

    def summed(array):
        """Over p, by a product: reductions are slow."""
        return (array.reshape(-1, head_dim) @ ones).reshape(array.shape[:-1])

    def one_group(j, carry):
        dh, after, totals = carry  # after: the state that leaves the group
        i = groups - 1 - j
        x, dt, log_decay, B, C, y, dy = (_cut(tiles, array, i) for array in arrays)
        before = _slice(entering, i, tiles.chunks)
        decays = _decays(tiles, log_decay, documents, i)
        leaving, since = decays.leaving[..., None], decays.since[..., None]
        drive = x * dt[..., None]

        read = _wide(dy * since)
        dread = jnp.einsum("bcnq,bcqk->bcnk", _slice(C_columns, i, tiles.chunks), read)
        dh, dleft = _pass_on(dh, decays.carried, dread.reshape(before.shape), reverse=True)
        left = jnp.concatenate([before[:, 1:], after[:, None]], axis=1)

        # Inside of the chunks, with keys before queries: s, q.
        between = _between(-decays.total, decays.within.swapaxes(-1, -2))
        by_head, dy_by_head = (array.swapaxes(2, 3) for array in (drive, dy))
        scores = jnp.einsum("bcsn,bcqn->bcsq", B, C)[:, :, None] * between
        ddrive = jnp.einsum("bcrsq,bcrqp->bcrsp", scores, dy_by_head).swapaxes(2, 3)
        ddrive = ddrive + jnp.einsum("bcsn,bcnk->bcsk", B, _wide(dleft)).reshape(x.shape) * leaving
        dscores = jnp.einsum("bcrsp,bcrqp->bcrsq", by_head, dy_by_head)
        dscores = functools.reduce(jnp.add, [dscores[:, :, r] * between[:, :, r] for r in range(heads)])

        dC = jnp.einsum("bcsq,bcsn->bcqn", dscores, B) + jnp.einsum("bcqk,bcnk->bcqn", read, _wide(before))
        dB = jnp.einsum("bcsq,bcqn->bcsn", dscores, C)
        dB = dB + jnp.einsum("bcsk,bcnk->bcsn", _wide(drive * leaving), _wide(dleft))
        ddt = summed(x * ddrive)
        dtotal = summed(dy * y) - ddt * dt
        dtotal = dtotal.at[:, :, -1].add(summed(jnp.sum(left * dleft, axis=2)))
        dlog_decay = _over_time("bcqr,{}->bcsr", dtotal, decays.within)
        totals = tuple(
            _put(total, part, i)
            for total, part in zip(totals, (ddrive * dt[..., None], ddt, dlog_decay, dB, dC), strict=True)
        )
        return dh, before[:, 0], totals

    totals = tuple(jnp.zeros_like(array) for array in arrays[:5])
    dh, _, totals = lax.fori_loop(0, groups, one_group, (dh, state, totals))
    return *totals, None, dh


_core.defvjp(_core_forward, _core_backward)
