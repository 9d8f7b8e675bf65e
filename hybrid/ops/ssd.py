"""State space duality: the linear recurrence of Mamba-2, whose decay is one number a head (Dao and Gu 2024).

    h[t] = keep[t] exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]^T        y[t] = h[t] C[t] + D x[t]

with h[t] of (head_dim, d_state) for each head. `keep[t]` is 0 where a new document begins, else 1. Because the decay is
a scalar, y is also a masked product like attention's: y = (decays * (C B^T)) (dt x), where decays[t, s] is the product
of the factors of s+1..t (section 3). Two forms compute the same values and gradients:

`sequential`  `lax.scan` over positions. The plainest, and what one new token costs least in.
`chunked`     matrix products (section 6): inside of a chunk as attention does it, between chunks through the states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hybrid.ops.forms import accumulator, by_platform, keep_mask, lookup
from hybrid.ops.spread import spread
from hybrid.validation import ConfigError


def ssd(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    *,
    initial_state: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    previous_segment: jax.Array | None = None,
    form: str = "auto",
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Outputs (batch, length, heads, head_dim) in the dtype of x, and the last state (batch, heads, head_dim, d_state).

    x: (batch, length, heads, head_dim). dt: (batch, length, heads), not negative. A: (heads,), negative. B, C: (batch,
    length, groups, d_state); each group serves heads / groups heads that follow one another. D: (heads,), the skip.
    initial_state: (batch, heads, head_dim, d_state), zeros if None. segment_ids: (batch, length); the state entering
    position t is dropped where segment_ids[t] differs from segment_ids[t-1]. previous_segment: (batch,), the segment of
    the position before this call, which decides the same at t = 0; without it the initial state is always used. form:
    `chunked`, `sequential`, or `auto`: chunked for more than one position. chunk: positions per chunk, any number;
    None goes by platform.

    States are at least float32, and so is the last state. Positions with dt = 0 leave the state as it was.
    """
    batch, length, heads, head_dim = x.shape
    groups, d_state = B.shape[2:]
    if heads % groups:
        raise ConfigError("B", f"{groups} groups are not allowed; must divide the {heads} heads")
    if chunk is not None and chunk < 1:
        raise ConfigError("chunk", f"{chunk} is not allowed; must be at least 1")
    function = lookup(_FORMS, ("chunked" if length > 1 else "sequential") if form == "auto" else form)
    dtype = accumulator(x, dt, A, B, C)
    shape = (batch, heads, head_dim, d_state)
    state = jnp.zeros(shape, dtype) if initial_state is None else initial_state.astype(dtype)
    if length == 0:
        return x, state
    keep = None if segment_ids is None else keep_mask(segment_ids, previous_segment)
    dt = dt.astype(dtype)
    by_group = (groups, heads // groups)
    inputs = _Inputs(
        (x.astype(dtype) * dt[..., None]).reshape(batch, length, *by_group, head_dim),
        (dt * A.astype(dtype)).reshape(batch, length, *by_group),
        B.astype(dtype),
        C.astype(dtype),
        keep,
    )
    size = min(chunk or by_platform(_CHUNK), length)
    y, state = function(size, inputs, state.reshape(batch, *by_group, head_dim, d_state))
    y, state = y.reshape(x.shape), state.reshape(shape)
    if D is not None:
        y = y + spread(D.astype(dtype), x.shape, axis=2) * x
    return y.astype(x.dtype), state


def ssd_reference(
    x, dt, A, B, C, D=None, *, initial_state=None, segment_ids=None, previous_segment=None
) -> tuple[jax.Array, jax.Array]:
    """The definition, one position, head and document boundary at a time."""
    batch, length, heads, head_dim = x.shape
    per_group = heads // B.shape[2]
    h = jnp.zeros((batch, heads, head_dim, B.shape[3]), x.dtype) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        if segment_ids is not None:
            before = previous_segment if t == 0 else segment_ids[:, t - 1]
            if before is not None:
                h = jnp.where((before == segment_ids[:, t])[:, None, None, None], h, 0)
        states, now = [], []
        for head in range(heads):
            group = head // per_group
            decay, drive = jnp.exp(dt[:, t, head] * A[head]), dt[:, t, head, None] * x[:, t, head]
            states.append(decay[:, None, None] * h[:, head] + drive[:, :, None] * B[:, t, group, None, :])
            y = (states[-1] * C[:, t, group, None, :]).sum(-1)
            now.append(y if D is None else y + D[head] * x[:, t, head])
        h = jnp.stack(states, axis=1)
        outputs.append(jnp.stack(now, axis=1))
    return jnp.stack(outputs, axis=1), h


class _Inputs(NamedTuple):
    """What the forms get, in the dtype of the state; heads are split into groups and the heads of each."""

    drive: jax.Array  # (batch, length, groups, heads of a group, head_dim): dt x
    log_decay: jax.Array  # (batch, length, groups, heads of a group): dt A
    B: jax.Array  # (batch, length, groups, d_state)
    C: jax.Array  # (batch, length, groups, d_state)
    keep: jax.Array | None  # (batch, length) bool; None: one document


# A form: (chunk, inputs, state (batch, groups, heads of a group, head_dim, d_state)) -> outputs like drive, last state.
_Form = Callable[[int, _Inputs, jax.Array], tuple[jax.Array, jax.Array]]


def _sequential(chunk: int, inputs: _Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    del chunk

    def body(h, part: _Inputs):
        decay = jnp.exp(part.log_decay)
        if part.keep is not None:
            decay = decay * part.keep[:, None, None]
        h = decay[..., None, None] * h + part.drive[..., None] * part.B[:, :, None, None, :]
        return h, jnp.einsum("bgrpn,bgn->bgrp", h, part.C)

    if inputs.drive.shape[1] == 1:  # one new token: no loop around it
        state, y = body(state, jax.tree.map(lambda array: array[:, 0], inputs))
        return y[:, None], state
    state, y = lax.scan(body, state, jax.tree.map(lambda array: array.swapaxes(0, 1), inputs))
    return y.swapaxes(0, 1), state


def _chunked(chunk: int, inputs: _Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All chunks at once; only their states follow one another.

    Axes: b batch, c chunk, q and s positions of a chunk, g group, r head of the group, p of head_dim, n of d_state.
    """
    batch, length = inputs.drive.shape[:2]
    chunks = -(-length // chunk)

    def cut(array: jax.Array) -> jax.Array:  # (batch, length, ...) -> (batch, chunks, chunk, ...)
        widths = [(0, 0), (0, chunks * chunk - length)] + [(0, 0)] * (array.ndim - 2)
        return jnp.pad(array, widths).reshape(batch, chunks, chunk, *array.shape[2:])

    # Positions that fill up the last chunk have dt = 0: they leave the state as it was.
    drive, log_decay, B, C = map(cut, inputs[:4])
    within = jnp.tril(jnp.ones((chunk, chunk), log_decay.dtype))[None, None]  # bcqs: s acts on q
    starts = ends = jnp.ones((1,), log_decay.dtype)  # what enters acts on q; s acts on what leaves
    if inputs.keep is not None:
        before, document = _documents(inputs.keep, chunks, chunk)
        within = within * (document[..., None] == document[:, :, None, :])
        starts = (document == before[..., None]).astype(within.dtype)[:, :, None, None]
        ends = (document == document[..., -1:]).astype(within.dtype)[:, :, None, None]

    # Logarithms of the decays since the chunk, or the document, began. A product with the mask and not a cumulative
    # sum: what another document adds would cancel in values, but leave its rounding in gradients.
    spread_mask = jnp.broadcast_to(within, (batch, chunks, chunk, chunk))
    total = jnp.einsum("bcqs,bcsgr->bcgrq", spread_mask, log_decay, precision=lax.Precision.HIGHEST)

    # Masked before the exponential, where it would overflow, and after it: minus infinity has no gradient.
    within = within[:, :, None, None]
    decays = jnp.exp(jnp.where(within > 0, total[..., :, None] - total[..., None, :], 0)) * within
    scores = jnp.einsum("bcqgn,bcsgn->bcgqs", C, B)
    y = jnp.einsum("bcgrqs,bcsgrp->bcqgrp", scores[:, :, :, None] * decays, drive)

    leaving = jnp.exp(jnp.where(ends > 0, total[..., -1:] - total, 0)) * ends
    made = jnp.einsum("bcsgn,bcsgrp->bcgnrp", B, drive * leaving.transpose(0, 1, 4, 2, 3)[..., None])

    def pass_on(h, part):
        decay, new = part
        return decay[:, :, None, :, None] * h + new, h

    carried = jnp.exp(total[..., -1]) * starts[..., -1]
    over_chunks = (carried.swapaxes(0, 1), made.swapaxes(0, 1))
    state, entering = lax.scan(pass_on, state.transpose(0, 1, 4, 2, 3), over_chunks)
    read = jnp.einsum("bcqgn,cbgnrp->bcqgrp", C, entering)
    y = y + read * (jnp.exp(total) * starts).transpose(0, 1, 4, 2, 3)[..., None]
    return y.reshape(batch, chunks * chunk, *y.shape[3:])[:, :length], state.transpose(0, 1, 3, 4, 2)


def _documents(keep: jax.Array, chunks: int, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Running numbers of the document that stands before each chunk (batch, chunks), and of each position."""
    batch, length = keep.shape
    number = jnp.cumsum(~keep, axis=1, dtype=jnp.int32)
    number = jnp.pad(number, ((0, 0), (0, chunks * chunk - length)), mode="edge").reshape(batch, chunks, chunk)
    return jnp.pad(number[:, :-1, -1], ((0, 0), (1, 0))), number


_FORMS: dict[str, _Form] = {"chunked": _chunked, "sequential": _sequential}
FORMS = tuple(_FORMS)
# Tiles of 64 stay in the cache of a CPU core (32 and 128 took longer); larger ones feed the matrix units of a GPU.
_CHUNK = {"cpu": 64, "other": 128}
