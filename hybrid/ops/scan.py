"""The selective scan of Mamba (Gu and Dao 2023, algorithm 2): a diagonal linear recurrence with data-dependent steps.

    h[t] = keep[t] exp(dt[t] A) h[t-1] + dt[t] B[t] x[t]        y[t] = C[t] . h[t] + D x[t]

`keep[t]` is 0 where a new document begins, else 1. The input enters by Euler's rule (dt B x), as in the published
code, not by the zero-order hold of the paper's equation 4. Three forms compute the same values and gradients:

`associative`  `lax.associative_scan` over chunks: logarithmic depth, memory of a chunk of states. For accelerators.
`sequential`   `lax.scan` differentiated by jax: saves every state. The plainest.
`chunked`      a sequential loop with its derivative written out: saves the states at chunk boundaries only and
               recomputes the others chunk by chunk. The fastest on a CPU, by far the least memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hybrid.ops.forms import accumulator, by_platform, keep_mask, lookup, note
from hybrid.ops.spread import spread
from hybrid.validation import ConfigError


def selective_scan(
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
    """Outputs (batch, length, d_inner) in the dtype of x, and the last state (batch, d_inner, d_state).

    x, dt: (batch, length, d_inner), dt positive. A: (d_inner, d_state), negative. B, C: (batch, length, d_state), or
    (d_inner, d_state) where they do not depend on the input. D: (d_inner,), the skip.
    initial_state: (batch, d_inner, d_state), zeros if None. segment_ids: (batch, length); the state entering position t
    is dropped where segment_ids[t] differs from segment_ids[t-1]. previous_segment: (batch,), the segment of the
    position before this call, which decides the same at t = 0; without it the initial state is always used.
    form: `associative`, `sequential`, `chunked`, or `auto`, which goes by platform. chunk: positions per chunk
    (`sequential` has none); None chooses.

    States are at least float32, and so is the last state. Positions with dt = 0 leave the state as it was.
    """
    batch, length, d_inner = x.shape
    dtype = accumulator(x, dt, A, B, C)
    if initial_state is None:
        initial_state = jnp.zeros((batch, d_inner, A.shape[1]), dtype)
    if chunk is not None and chunk < 1:
        raise ConfigError("chunk", f"{chunk} is not allowed; must be at least 1")
    name = by_platform(_AUTO) if form == "auto" else form
    function, default_chunk = lookup(_FORMS, name)
    if length == 0:
        return x, initial_state.astype(dtype)
    chunk = min(chunk or default_chunk, length)
    note("selective_scan", name if name == "sequential" else f"{name} {chunk}")
    keep = None if segment_ids is None else keep_mask(segment_ids, previous_segment).astype(dtype)
    state = initial_state.astype(dtype).swapaxes(1, 2)
    B, C = (matrix.astype(dtype).T if matrix.ndim == 2 else matrix for matrix in (B, C))
    y, state = function(chunk, _Inputs(x, dt, A.astype(dtype).T, B, C, keep), state)
    if D is not None:
        y = y + spread(D.astype(dtype), x.shape) * x
    return y.astype(x.dtype), state.swapaxes(1, 2)


def selective_scan_reference(
    x, dt, A, B, C, D=None, *, initial_state=None, segment_ids=None, previous_segment=None
) -> tuple[jax.Array, jax.Array]:
    """The definition, one position and one document boundary at a time."""
    batch, length, d_inner = x.shape
    h = jnp.zeros((batch, d_inner, A.shape[1]), x.dtype) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        if segment_ids is not None:
            before = previous_segment if t == 0 else segment_ids[:, t - 1]
            if before is not None:
                h = jnp.where((before == segment_ids[:, t])[:, None, None], h, 0)
        b, c = (matrix if matrix.ndim == 2 else matrix[:, t, None, :] for matrix in (B, C))
        h = jnp.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[:, :, None] * b
        outputs.append(jnp.sum(c * h, axis=-1))
    y = jnp.stack(outputs, axis=1)
    return (y if D is None else y + D * x), h


class _Inputs(NamedTuple):
    """What the forms get. Channels are last everywhere, so that they fill the vector lanes."""

    x: jax.Array  # (batch, length, d_inner)
    dt: jax.Array  # (batch, length, d_inner)
    A: jax.Array  # (d_state, d_inner)
    B: jax.Array  # (batch, length, d_state), or a constant (d_state, d_inner)
    C: jax.Array  # (batch, length, d_state), or a constant (d_state, d_inner)
    keep: jax.Array | None  # (batch, length) 0 or 1; None: one document


# A form: (chunk, inputs, state (batch, d_state, d_inner)) -> outputs (batch, length, d_inner), last state.
_Form = Callable[[int, _Inputs, jax.Array], tuple[jax.Array, jax.Array]]


def _decay(dt: jax.Array, A: jax.Array, keep: jax.Array | None) -> jax.Array:
    """exp(dt A), zero where a document begins: (..., d_inner) -> (..., d_state, d_inner).

    The product with a mask, not exp of minus infinity: the gradient of the latter is not a number.
    """
    decay = jnp.exp(dt[..., None, :] * A)
    return decay if keep is None else decay * keep[..., None, None]


def _constant(matrix: jax.Array) -> bool:
    """Whether an entry B or C of _Inputs does not depend on the position."""
    return matrix.ndim == 2


def _drive(x: jax.Array, dt: jax.Array, B: jax.Array, constant: bool) -> jax.Array:
    """dt B x: (..., d_state, d_inner)."""
    return (dt * x)[..., None, :] * (B if constant else B[..., :, None])


def _read(h: jax.Array, C: jax.Array, constant: bool) -> jax.Array:
    """C . h, over the states: (..., d_state, d_inner) -> (..., d_inner). A dot, not a reduction."""
    if constant:
        return _over_states(h * C)
    return jnp.einsum("...nd,...n->...d", h, C)


def _over_states(h: jax.Array) -> jax.Array:
    """The sum over the states: (..., d_state, d_inner) -> (..., d_inner).

    A dot, not a reduction, and with a vector for each row: one for all rows makes XLA turn h around first.
    """
    return jnp.einsum("...nd,...n->...d", h, jnp.ones(h.shape[:-1], h.dtype))


def _associative(chunk: int, inputs: _Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Chunks one after another, an associative scan in each, recomputed in the backward pass."""
    A, dtype = inputs.A, state.dtype
    length = inputs.x.shape[1]
    chunks = -(-length // chunk)

    def cut(array: jax.Array, fill: int = 0) -> jax.Array:  # (batch, length, ...) -> (chunks, batch, chunk, ...)
        widths = [(0, 0), (0, chunks * chunk - length)] + [(0, 0)] * (array.ndim - 2)
        padded = jnp.pad(array, widths, constant_values=fill)
        return padded.reshape(array.shape[0], chunks, chunk, *array.shape[2:]).swapaxes(0, 1)

    def combine(first, second):
        (a1, b1), (a2, b2) = first, second
        return a1 * a2, a2 * b1 + b2

    @jax.checkpoint
    def body(h, part):
        x, dt, keep, B, C = part
        x, dt, B, C = (array.astype(dtype) for array in (x, dt, _either(B, inputs.B), _either(C, inputs.C)))
        decay, drive = _decay(dt, A, keep), _drive(x, dt, B, _constant(inputs.B))
        drive = drive.at[:, 0].add(decay[:, 0] * h)
        _, states = lax.associative_scan(combine, (decay, drive), axis=1)
        return states[:, -1], _read(states, C, _constant(inputs.C))

    # Padded positions leave the state as it was: dt = 0 and keep = 1.
    keep = None if inputs.keep is None else cut(inputs.keep, fill=1)
    varying = (None if _constant(matrix) else cut(matrix) for matrix in (inputs.B, inputs.C))
    state, y = lax.scan(body, state, (cut(inputs.x), cut(inputs.dt), keep, *varying))
    y = y.swapaxes(0, 1).reshape(inputs.x.shape[0], chunks * chunk, -1)
    return y[:, :length], state


def _either(varying: jax.Array | None, constant: jax.Array) -> jax.Array:
    return constant if varying is None else varying


def _sequential(chunk: int, inputs: _Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    del chunk
    A, dtype = inputs.A, state.dtype

    def body(h, part):
        x, dt, keep, B, C = part
        x, dt, B, C = (array.astype(dtype) for array in (x, dt, _either(B, inputs.B), _either(C, inputs.C)))
        h = _decay(dt, A, keep) * h + _drive(x, dt, B, _constant(inputs.B))
        return h, _read(h, C, _constant(inputs.C))

    varying = (None if _constant(matrix) else matrix for matrix in (inputs.B, inputs.C))
    over_time = (inputs.x, inputs.dt, inputs.keep, *varying)
    state, y = lax.scan(body, state, jax.tree.map(lambda array: array.swapaxes(0, 1), over_time))
    return y.swapaxes(0, 1), state


# --- chunked ---------------------------------------------------------------------------------------------------------
# Written for XLA's CPU backend. Time is indexed in place (no transposed copies), contractions are dots (a reduction in
# a small loop body costs tens of microseconds of thread hand-off), and loops are not unrolled (the compiler would
# recompute the exponentials in every fusion).


class _Position(NamedTuple):
    """The inputs at one position, in the dtype of the state."""

    x: jax.Array  # (batch, d_inner)
    dt: jax.Array  # (batch, d_inner)
    B: jax.Array  # (batch, d_state), or (d_state, d_inner)
    C: jax.Array  # (batch, d_state), or (d_state, d_inner)
    keep: jax.Array | None  # (batch,)


def _at(array: jax.Array, t: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(array, t, axis=1, keepdims=False)


def _put(array: jax.Array, value: jax.Array, t: jax.Array | int, axis: int = 1) -> jax.Array:
    return lax.dynamic_update_index_in_dim(array, value.astype(array.dtype), t, axis)


def _position(inputs: _Inputs, t: jax.Array, dtype: jnp.dtype) -> _Position:
    x, dt = (_at(array, t).astype(dtype) for array in (inputs.x, inputs.dt))
    B, C = (matrix if _constant(matrix) else _at(matrix, t).astype(dtype) for matrix in (inputs.B, inputs.C))
    return _Position(x, dt, B, C, None if inputs.keep is None else _at(inputs.keep, t))


def _advance(h: jax.Array, inputs: _Inputs, p: _Position) -> jax.Array:
    return _decay(p.dt, inputs.A, p.keep) * h + _drive(p.x, p.dt, p.B, _constant(inputs.B))


def _forward_loop(chunk: int, inputs: _Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Outputs, last state, and the states that enter the chunks (chunks, batch, d_state, d_inner)."""
    length, dtype = inputs.x.shape[1], state.dtype
    chunks = -(-length // chunk)

    def position(t, carry):
        h, y = carry
        p = _position(inputs, t, dtype)
        h = _advance(h, inputs, p)
        return h, _put(y, _read(h, p.C, _constant(inputs.C)), t)

    def one_chunk(i, carry):
        h, y, entering = carry
        entering = _put(entering, h, i, axis=0)
        h, y = lax.fori_loop(i * chunk, jnp.minimum((i + 1) * chunk, length), position, (h, y))
        return h, y, entering

    entering = jnp.zeros((chunks, *state.shape), dtype)
    state, y, entering = lax.fori_loop(0, chunks, one_chunk, (state, jnp.zeros(inputs.x.shape, dtype), entering))
    return y, state, entering


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(chunk: int, inputs: _Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, state, _ = _forward_loop(chunk, inputs, state)
    return y, state


def _chunked_forward(chunk, inputs, state):
    y, state, entering = _forward_loop(chunk, inputs, state)
    return (y, state), (inputs, entering)


def _chunked_backward(chunk, saved, cotangents):
    inputs, entering = saved
    dy, g = cotangents
    A, dtype, length = inputs.A, entering.dtype, inputs.x.shape[1]
    chunks = entering.shape[0]

    def one_chunk(k, carry):
        i = chunks - 1 - k
        start = i * chunk
        steps = jnp.minimum(chunk, length - start)

        def refill(j, carry):  # states[j] enters position start + j: the state that the position before left
            h, states, dC = carry
            t = start + j
            h = _advance(h, inputs, _position(inputs, t, dtype))
            return h, _put(states, h, j + 1, axis=0), _gathered(dC, h, _at(dy, t).astype(dtype), t, fixed_C)

        def position(k, carry):
            g, dA, (dx, ddts, dB) = carry  # g: cotangent of the state that leaves the position
            j = steps - 1 - k
            t = start + j
            p, dy_t = _position(inputs, t, dtype), _at(dy, t).astype(dtype)
            before = lax.dynamic_index_in_dim(states, j, 0, keepdims=False)
            g = g + (p.C if fixed_C else p.C[:, :, None]) * dy_t[:, None, :]
            gB = _read(g, p.B, fixed_B)
            dB = _gathered(dB, g, p.dt * p.x, t, fixed_B)
            g = g * _decay(p.dt, A, p.keep)
            q = g * before  # derivative of dt A
            ddt = p.x * gB + _over_states(q * A)
            dA = dA + q * p.dt[:, None, :]
            return g, dA, (_put(dx, p.dt * gB, t), _put(ddts, ddt, t), dB)

        g, dA, grads, dC, states = carry
        h = entering[i]
        _, states, dC = lax.fori_loop(0, steps, refill, (h, _put(states, h, 0, axis=0), dC))
        g, dA, grads = lax.fori_loop(0, steps, position, (g, dA, grads))
        return g, dA, grads, dC, states

    fixed_B, fixed_C = _constant(inputs.B), _constant(inputs.C)
    grads = tuple(
        jnp.zeros_like(g) if _constant(array) else jnp.zeros_like(array)
        for array in (inputs.x, inputs.dt, inputs.B, inputs.C)
    )
    states = jnp.zeros((chunk + 1, *g.shape), dtype)
    carry = (g, jnp.zeros_like(g), grads[:3], grads[3], states)
    g, dA, (dx, ddt, dB), dC, _ = lax.fori_loop(0, chunks, one_chunk, carry)
    keep = None if inputs.keep is None else jnp.zeros_like(inputs.keep)
    dB, dC = (total.sum(0) if fixed else total for total, fixed in ((dB, fixed_B), (dC, fixed_C)))
    return _Inputs(dx, ddt, dA.sum(0), dB, dC, keep), g


def _gathered(total: jax.Array, h: jax.Array, x: jax.Array, t: jax.Array, constant: bool) -> jax.Array:
    """The gradient to B or C with h x of one position in it: added up for a constant, else written at t."""
    return total + h * x[:, None, :] if constant else _put(total, jnp.einsum("bnd,bd->bn", h, x), t)


_chunked.defvjp(_chunked_forward, _chunked_backward)

# name -> form and its default chunk. 32 positions of 16 x 512 float32 states are 1 MiB: they stay in the L2 cache.
_FORMS: dict[str, tuple[_Form, int]] = {
    "associative": (_associative, 256),
    "sequential": (_sequential, 1),
    "chunked": (_chunked, 32),
}
FORMS = tuple(_FORMS)
_AUTO = {"cpu": "chunked", "other": "associative"}
