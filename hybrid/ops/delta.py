"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, "Gated Delta Networks"): a matrix memory that is corrected.

    S[t] = alpha S[t-1] + k (x) beta (v - alpha S[t-1]' k)        o[t] = S[t]' q

alpha = exp(log_decay[t]) and beta[t] are numbers of each head; k (x) w is an outer product, S is (d_key, d_value). A
key of length one and beta = 1 replace what the memory has at k by v. Forms of the same values and gradients:

`sequential`  `lax.scan`, one position after another: the definition. For single tokens.
`chunked`     the corrections of a chunk depend on each other through a unit triangular system (the WY representation
              of section 3.3, in its UT form): solved at once for all chunks, in matrix products; only the memory goes
              from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from hybrid.ops.forms import accumulator, keep_mask, lookup
from hybrid.validation import ConfigError

CHUNK = 64


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
    form: `sequential`, `chunked`, or `auto`: sequential for one position. chunk: positions a chunk, None: 64.

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
    function = lookup(_FORMS, ("sequential" if length == 1 else "chunked") if form == "auto" else form)
    if length == 0:
        return v, state
    group = heads // key_heads

    def by_group(
        array: jax.Array,
    ) -> jax.Array:  # (batch, length, heads, ...) -> (batch, length, key heads, group, ...)
        return array.astype(dtype).reshape(*array.shape[:2], key_heads, group, *array.shape[3:])

    new = jnp.zeros((batch, length), bool) if segment_ids is None else ~keep_mask(segment_ids, previous_segment)
    out, state = function(
        min(chunk or CHUNK, length), q.astype(dtype), k.astype(dtype), by_group(v), by_group(log_decay), by_group(beta),
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
# A form: (chunk, q (b t h k), k, v (b t h g v), log_decay (b t h g), beta, new (b t), state (b h g k v))
#         -> out (b t h g v), state


def _sequential(chunk, q, k, v, log_decay, beta, new, state):
    del chunk

    def step(state, inputs):
        q, k, v, decay, beta, new = inputs
        state = state * (jnp.exp(decay) * ~new[:, None, None])[..., None, None]
        known = jnp.einsum("bhgkv,bhk->bhgv", state, k)
        state = state + k[:, :, None, :, None] * (beta[..., None] * (v - known))[..., None, :]
        return state, jnp.einsum("bhgkv,bhk->bhgv", state, q)

    over_time = jax.tree.map(lambda array: array.swapaxes(0, 1), (q, k, v, log_decay, beta, new))
    state, out = lax.scan(step, state, over_time)
    return out.swapaxes(0, 1), state


def _chunked(chunk, q, k, v, log_decay, beta, new, state):
    length = v.shape[1]
    chunks = -(-length // chunk)

    def cut(array):  # (b t ...) -> (n b t ...); positions of zeros behind the last leave the memory as it was
        widths = [(0, 0), (0, chunks * chunk - length)] + [(0, 0)] * (array.ndim - 2)
        return jnp.pad(array, widths).reshape(array.shape[0], chunks, chunk, *array.shape[2:]).swapaxes(0, 1)

    q, k, v, log_decay, beta, new = map(cut, (q, k, v, log_decay, beta, new))
    # Where a document begins is a mask, since minus infinity has no gradient.
    document = jnp.cumsum(new, axis=2)
    entered = (document == 0)[..., None, None]  # the memory that enters the chunk is still that of the document
    seen = (document[:, :, :, None] == document[:, :, None, :]) & jnp.tril(jnp.ones((chunk, chunk), bool))  # (n b t s)
    # Sums from the chunk's or the document's start on; a running sum would mix rounding errors of other documents in.
    decay = jnp.einsum("nbts,nbshg->nbthg", seen.astype(log_decay.dtype), log_decay, precision=lax.Precision.HIGHEST)
    lag = decay[:, :, :, None] - decay[:, :, None, :]  # (n b t s h g); positive above the diagonal, where it is masked
    between = jnp.exp(jnp.minimum(lag, 0.0)) * seen[..., None, None]
    since = jnp.exp(decay) * entered  # (n b t h g)
    until = between[:, :, -1]  # (n b s h g)

    similar = jnp.einsum("nbthk,nbshk->nbtsh", k, k)[..., None] * between * beta[:, :, :, None]
    system = similar.transpose(0, 1, 4, 5, 2, 3)  # (n b h g t s); the solver takes a unit diagonal and what is below it
    wanted = (beta[..., None] * v).transpose(0, 1, 3, 4, 2, 5)  # (n b h g t v)
    asked = ((beta * since)[..., None] * k[:, :, :, :, None]).transpose(0, 1, 3, 4, 2, 5)  # (n b h g t k)
    solved = lax.linalg.triangular_solve(
        system, jnp.concatenate([wanted, asked], axis=-1), left_side=True, lower=True, unit_diagonal=True
    )
    new_values, reads = jnp.split(solved, [wanted.shape[-1]], axis=-1)
    scores = jnp.einsum("nbthk,nbshk->nbtsh", q, k)[..., None] * between
    queries = q[:, :, :, :, None] * since[..., None]  # (n b t h g k)
    keys = k[:, :, :, :, None] * until[..., None]

    def one_chunk(state, inputs):
        new_values, reads, scores, queries, keys, kept = inputs
        written = new_values - jnp.einsum("bhgtk,bhgkv->bhgtv", reads, state)
        out = jnp.einsum("bthgk,bhgkv->bthgv", queries, state) + jnp.einsum("btshg,bhgsv->bthgv", scores, written)
        return state * kept[..., None, None] + jnp.einsum("bthgk,bhgtv->bhgkv", keys, written), out

    state, out = lax.scan(one_chunk, state, (new_values, reads, scores, queries, keys, since[:, :, -1]))
    out = out.swapaxes(0, 1)
    return out.reshape(out.shape[0], chunks * chunk, *out.shape[3:])[:, :length], state


_FORMS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {"sequential": _sequential, "chunked": _chunked}
FORMS = tuple(_FORMS)
