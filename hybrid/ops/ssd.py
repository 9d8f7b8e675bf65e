"""State space duality: the linear recurrence of Mamba-2, whose decay is one number a head (Dao and Gu 2024).

    h[t] = keep[t] exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]^T        y[t] = h[t] C[t] + D x[t]

with h[t] of (head_dim, d_state) for each head. `keep[t]` is 0 where a new document begins, else 1. Because the decay is
a scalar, y is also a masked product like attention's: y = (decays * (C B^T)) (dt x), where decays[t, s] is the product
of the factors of s+1..t (section 3). Two forms compute the same values and gradients:

`sequential`  `lax.scan` over positions. The plainest, and what one new token costs least in.
`chunked`     matrix products (section 6): inside of a chunk as attention does it, between chunks through the states;
              its derivative keeps the states that enter the chunks and no others (hybrid.ops.ssd_chunks).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from hybrid.ops import ssd_chunks
from hybrid.ops.forms import accumulator, by_platform, keep_mask, lookup, note
from hybrid.ops.spread import spread
from hybrid.ops.ssd_chunks import Inputs
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
    name = ("chunked" if length > 1 else "sequential") if form == "auto" else form
    function = lookup(_FORMS, name)
    dtype = accumulator(x, dt, A, B, C)
    shape = (batch, heads, head_dim, d_state)
    state = jnp.zeros(shape, dtype) if initial_state is None else initial_state.astype(dtype)
    if length == 0:
        return x, state
    keep = None if segment_ids is None else jnp.repeat(keep_mask(segment_ids, previous_segment), groups, axis=0)
    dt = dt.astype(dtype)
    by_head = x.astype(dtype), dt, dt * A.astype(dtype)
    values, steps, log_decay = (_by_group(array, groups) for array in by_head)
    B, C = (_by_group(array, groups)[:, :, 0] for array in (B.astype(dtype), C.astype(dtype)))
    inputs = Inputs(values, steps, log_decay, B, C, keep)
    y, state = function(chunk, inputs, state.reshape(batch * groups, heads // groups, head_dim, d_state))
    y = y.reshape(batch, groups, length, heads // groups, head_dim).swapaxes(1, 2).reshape(x.shape)
    state = state.reshape(shape)
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


def _by_group(array: jax.Array, groups: int) -> jax.Array:
    """(batch, length, heads, ...) -> (batch groups, length, heads of a group, ...)."""
    batch, length, heads, *rest = array.shape
    parts = array.reshape(batch, length, groups, heads // groups, *rest).swapaxes(1, 2)
    return parts.reshape(batch * groups, length, heads // groups, *rest)


# A form: (chunk or None, inputs, state (rows, heads, head_dim, d_state)) -> outputs like inputs.x, last state.
_Form = Callable[[int | None, Inputs, jax.Array], tuple[jax.Array, jax.Array]]


def _sequential(chunk: int | None, inputs: Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    del chunk
    note("ssd", "sequential")

    def body(h, part: Inputs):
        decay = jnp.exp(part.log_decay)
        if part.keep is not None:
            decay = decay * part.keep[:, None]
        drive = part.dt[..., None] * part.x
        h = decay[..., None, None] * h + drive[..., None] * part.B[:, None, None, :]
        return h, jnp.einsum("brpn,bn->brp", h, part.C)

    if inputs.x.shape[1] == 1:  # one new token: no loop around it
        state, y = body(state, jax.tree.map(lambda array: array[:, 0], inputs))
        return y[:, None], state
    state, y = lax.scan(body, state, jax.tree.map(lambda array: array.swapaxes(0, 1), inputs))
    return y.swapaxes(0, 1), state


def _chunked(chunk: int | None, inputs: Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    tiles = tiles_of(chunk, *inputs.x.shape)
    note("ssd", f"chunked {tiles.chunk}")
    return ssd_chunks.chunked(tiles, inputs, state)


def tiles_of(chunk: int | None, rows: int, length: int, heads: int, head_dim: int) -> ssd_chunks.Tiles:
    """The chunks, and how many at once. chunk None: by platform."""
    usual, numbers = by_platform(_TILES)
    chunk = min(chunk or usual, length)
    chunks = -(-length // chunk)
    if numbers is None:
        return ssd_chunks.Tiles(chunk, chunks)
    most = max(1, numbers // (rows * heads * chunk * max(chunk, head_dim)))
    return ssd_chunks.Tiles(chunk, -(-chunks // -(-chunks // most)))  # groups of equal size, so that few are padding


_FORMS: dict[str, _Form] = {"chunked": _chunked, "sequential": _sequential}
FORMS = tuple(_FORMS)
# Positions a chunk, and how many numbers the scores or the inputs of the chunks at once may have (None: all chunks).
# Tiles of 64 and half a MiB stay in the caches of a CPU core; larger ones feed the matrix units of a GPU.
_TILES: dict[str, tuple[int, int | None]] = {"cpu": (64, 2**17), "other": (128, None)}
