"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, "Gated Delta Networks"): a matrix memory that is corrected.

    S[t] = alpha S[t-1] + k (x) beta (v - alpha S[t-1]' k)        o[t] = S[t]' q

alpha = exp(log_decay[t]) and beta[t] are numbers of each head; k (x) w is an outer product, S is (d_key, d_value). A
key of length one and beta = 1 replace what the memory has at k by v. Forms of the same values and gradients:

`sequential`  `lax.scan`, one position after another: the definition. For single tokens.
`chunked`     the corrections of a chunk depend on each other through a unit triangular system (the WY representation
              of section 3.3, in its UT form): its inverse is made for all chunks at once, in matrix products; only the
              memory goes from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from hybrid.ops.forms import accumulator, by_platform, keep_mask, lookup, note
from hybrid.ops.unit_triangular import inverse
from hybrid.validation import ConfigError


def gated_delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array,
    *,
    initial_state: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    previous_segment: jax.Array | None = None,
    form: str = "auto",
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Outputs (batch, length, heads, d_value) in the dtype of v, and the last memory (batch, heads, d_key, d_value).

    q, k: (batch, length, key heads, d_key); each key head serves heads / key heads neighbouring heads. v: (batch,
    length, heads, d_value). log_decay (at most 0), beta: (batch, length, heads). The caller normalises and scales q and
    k. initial_state: (batch, heads, d_key, d_value), zeros if None. segment_ids: (batch, length); the memory entering
    position t is dropped where segment_ids[t] differs from segment_ids[t-1]. previous_segment: (batch,), the segment of
    the position before this call, which decides the same at t = 0; without it the initial state is always used.
    form: `sequential`, `chunked`, or `auto`: sequential for one position. chunk: positions a chunk, None: by platform.

    All is calculated in float32 at least, and so is the last memory. Positions with log_decay = 0 and beta = 0 leave
    the memory as it was.
    """
    batch, length, heads, d_value = v.shape
    key_heads, d_key = k.shape[2:]
    if heads % key_heads:
        raise ConfigError("k", f"{key_heads} key heads are not allowed; they must divide the {heads} of v")
    if chunk is not None and chunk < 1:
        raise ConfigError("chunk", f"{chunk} is not allowed; must be at least 1")
    dtype = accumulator(q, k, v, log_decay, beta)
    state = jnp.zeros((batch, heads, d_key, d_value), dtype) if initial_state is None else initial_state.astype(dtype)
    name = ("sequential" if length == 1 else "chunked") if form == "auto" else form
    function = lookup(_FORMS, name)
    if length == 0:
        return v, state
    chunk = min(chunk or by_platform(_CHUNK), length)
    note("gated_delta_rule", f"chunked {chunk}" if name == "chunked" else name)
    group = heads // key_heads

    def by_group(
        array: jax.Array,
    ) -> jax.Array:  # (batch, length, heads, ...) -> (batch, length, key heads, group, ...)
        return array.astype(dtype).reshape(*array.shape[:2], key_heads, group, *array.shape[3:])

    new = None if segment_ids is None else ~keep_mask(segment_ids, previous_segment)
    out, state = function(
        chunk, q.astype(dtype), k.astype(dtype), by_group(v), by_group(log_decay), by_group(beta),
        new, state.reshape(batch, key_heads, group, d_key, d_value),
    )  # fmt: skip
    return out.reshape(v.shape).astype(v.dtype), state.reshape(batch, heads, d_key, d_value)


def gated_delta_rule_reference(
    q, k, v, log_decay, beta, *, initial_state=None, segment_ids=None, previous_segment=None
) -> tuple[jax.Array, jax.Array]:
    """The definition as a product of matrices, S[t] = alpha (I - beta k k') S[t-1] + beta k v', head by head."""
    batch, length, heads, d_value = v.shape
    key_heads, d_key = k.shape[2:]
    state = jnp.zeros((batch, heads, d_key, d_value), v.dtype) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        if segment_ids is not None:
            before = previous_segment if t == 0 else segment_ids[:, t - 1]
            if before is not None:
                state = jnp.where((before == segment_ids[:, t])[:, None, None, None], state, 0)
        rows, outs = [], []
        for head in range(heads):
            shared = head * key_heads // heads
            key, b = k[:, t, shared], beta[:, t, head, None, None]
            turn = jnp.eye(d_key, dtype=v.dtype) - b * key[:, :, None] * key[:, None, :]
            kept = jnp.exp(log_decay[:, t, head])[:, None, None] * (turn @ state[:, head])
            rows.append(kept + b * key[:, :, None] * v[:, t, head, None, :])
            outs.append((rows[-1] * q[:, t, shared, :, None]).sum(1))
        state = jnp.stack(rows, axis=1)
        outputs.append(jnp.stack(outs, axis=1))
    return jnp.stack(outputs, axis=1), state


# --- forms ------------------------------------------------------------------------------------------------------------
# Axes: b batch, t s positions, h key heads, g heads of one key head, k d_key, v d_value, n chunks.
# A form: (chunk, q (b t h k), k, v (b t h g v), log_decay (b t h g), beta, new (b t) or None, state (b h g k v))
#         -> out (b t h g v), state


def _sequential(chunk, q, k, v, log_decay, beta, new, state):
    del chunk

    def step(state, inputs):
        q, k, v, decay, beta, new = inputs
        kept = jnp.exp(decay) if new is None else jnp.exp(decay) * ~new[:, None, None]
        state = state * kept[..., None, None]
        known = jnp.einsum("bhgkv,bhk->bhgv", state, k)
        state = state + k[:, :, None, :, None] * (beta[..., None] * (v - known))[..., None, :]
        return state, jnp.einsum("bhgkv,bhk->bhgv", state, q)

    inputs = (q, k, v, log_decay, beta, new)
    if v.shape[1] == 1:  # one new token: no loop around it
        state, out = step(state, jax.tree.map(lambda array: array[:, 0], inputs))
        return out[:, None], state
    state, out = lax.scan(step, state, jax.tree.map(lambda array: array.swapaxes(0, 1), inputs))
    return out.swapaxes(0, 1), state


def _chunked(chunk, q, k, v, log_decay, beta, new, state):
    batch, length, key_heads, group, d_value = v.shape
    chunks = -(-length // chunk)
    numbers = batch * key_heads * group * chunk * max(chunk, d_value, k.shape[-1])
    groups = -(-chunks // max(1, _AT_ONCE // numbers))
    chunks = -(-chunks // groups)  # of a group; of equal size, so that few are padding

    def cut(array):  # (b t ...) -> (groups n b ... t); positions of zeros behind the last leave the memory as it was
        widths = [(0, 0), (0, groups * chunks * chunk - length)] + [(0, 0)] * (array.ndim - 2)
        parts = jnp.pad(array, widths).reshape(batch, groups, chunks, chunk, *array.shape[2:])
        return jnp.moveaxis(jnp.moveaxis(parts, 0, 2), 3, -1)

    def rows(array):  # (b t ... d) -> (groups n b ... t d)
        return cut(array).swapaxes(-1, -2)

    inputs = (rows(q), rows(k), rows(v), cut(log_decay), cut(beta), None if new is None else cut(new))
    body = _chunks if groups == 1 else jax.checkpoint(_chunks)
    state, out = lax.scan(body, state, inputs)  # (groups n b h g t v)
    out = jnp.moveaxis(jnp.moveaxis(out, 2, 0), 5, 3)  # (b groups n t h g v)
    return out.reshape(batch, -1, *out.shape[4:])[:, :length], state


def _chunks(state, inputs):
    """The chunks of a group: all at once, but for what reads and writes the memory. (memory, out (n b h g t v))"""
    q, k, v, log_decay, beta, new = inputs
    chunk = v.shape[-2]
    seen = jnp.tril(jnp.ones((chunk, chunk), v.dtype))  # (t s): position s acts on t
    entered = jnp.ones((), v.dtype)
    if new is not None:
        # Where a document begins is a mask, since minus infinity has no gradient.
        document = jnp.cumsum(new, axis=2)
        seen = (seen * (document[..., :, None] == document[..., None, :]))[:, :, None, None]  # (n b 1 1 t s)
        entered = (document == 0)[:, :, None, None].astype(v.dtype)  # what enters the chunk is of that document still
    # Sums from the chunk's or the document's start on; a running sum would mix rounding errors of other documents in.
    decay = jnp.einsum("nbhgs,...ts->nbhgt" if new is None else "nbhgs,nbxyts->nbhgt", log_decay, seen,
                       precision=lax.Precision.HIGHEST)  # fmt: skip
    lag = decay[..., :, None] - decay[..., None, :]  # (n b h g t s); positive above the diagonal, where it is masked
    between = jnp.exp(jnp.where(seen > 0, lag, 0)) * seen
    since = jnp.exp(decay) * entered  # (n b h g t)
    until = between[..., -1, :]  # (n b h g s)

    similar = jnp.einsum("nbhtk,nbhsk->nbhts", k, k)[:, :, :, None]
    solver = inverse(similar * between * beta[..., None])
    solver = solver * beta[..., None, :]
    new_values = jnp.einsum("nbhgts,nbhgsv->nbhgtv", solver, v)
    reads = jnp.einsum("nbhgts,nbhsk->nbhgtk", solver * since[..., None, :], k)
    scores = jnp.einsum("nbhtk,nbhsk->nbhts", q, k)[:, :, :, None] * between
    queries = q[:, :, :, None] * since[..., None]  # (n b h g t k)
    keys = k[:, :, :, None] * until[..., None]

    def one_chunk(state, inputs):
        new_values, reads, scores, queries, keys, kept = inputs
        written = new_values - jnp.einsum("bhgtk,bhgkv->bhgtv", reads, state)
        out = jnp.einsum("bhgtk,bhgkv->bhgtv", queries, state) + jnp.einsum("bhgts,bhgsv->bhgtv", scores, written)
        return state * kept[..., None, None] + jnp.einsum("bhgtk,bhgtv->bhgkv", keys, written), out

    return lax.scan(one_chunk, state, (new_values, reads, scores, queries, keys, since[..., -1]))


_FORMS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {"sequential": _sequential, "chunked": _chunked}
FORMS = tuple(_FORMS)
_CHUNK = {"cpu": 32, "other": 64}  # on a CPU 16 to 64 take about as long; the smaller ones less memory
# Numbers that an input or a product of the chunks of a group may have, which bounds the temporaries of long rows: of
# several groups each is calculated again in the backward pass (a third more time), which keeps what enters it.
_AT_ONCE = 2**22
