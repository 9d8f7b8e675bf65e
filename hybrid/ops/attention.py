"""Softmax attention with grouped queries, over positions that may stand in any order.

A query sees a key when all of these hold: the key is valid, both are of one segment, the key's position is not later
(`causal`), and it is less than `window` away. Positions and not indices decide, so that a cache may keep its keys in
any slots. A query that sees no key gives zeros, and zero gradients. The forms compute the same values and gradients:

`reference`  the definition, head by head.
`plain`      all scores at once; grouped queries share their keys without repeating them. For short sequences.
`chunked`    tiles of scores with a running softmax and a written derivative (Dao 2023, FlashAttention-2): memory linear
             in the length, and tiles in which nothing is visible are skipped (hybrid/ops/flash.py).
`fused`      `jax.nn.dot_product_attention`: cuDNN on a GPU where it takes the arrays (`implementation`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from hybrid.ops.flash import flash_attention, tile_of
from hybrid.ops.forms import accumulator, by_platform, lookup, note
from hybrid.ops.local_attention import block_attention
from hybrid.ops.visibility import NEGLIGIBLE, Visibility
from hybrid.validation import ConfigError

Bias = jax.Array | Callable[[jax.Array, jax.Array], jax.Array]
"""(batch or 1, n_heads or 1, q_length, k_length), or a function that makes it from positions (batch or 1, length) of
queries and of keys: a form that works on parts makes the parts alone."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call, checked and with its defaults filled in."""

    q: jax.Array  # (batch, q_length, n_heads, head_dim)
    k: jax.Array  # (batch, k_length, n_kv_heads, head_dim)
    v: jax.Array  # (batch, k_length, n_kv_heads, value_dim)
    visibility: Visibility
    scale: float
    softcap: float | None
    bias: Bias | None
    in_order: bool  # both positions are 0, 1, 2, ...

    def whole_bias(self) -> jax.Array | None:
        """(batch or 1, n_heads or 1, q_length, k_length)."""
        return self.bias(self.visibility.q_positions, self.visibility.k_positions) if callable(self.bias) else self.bias


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_positions: jax.Array | None = None,
    k_positions: jax.Array | None = None,
    q_segments: jax.Array | None = None,
    k_segments: jax.Array | None = None,
    k_valid: jax.Array | None = None,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Bias | None = None,
    form: str = "auto",
) -> jax.Array:
    """softmax(softcap(scale q k) + bias) v over the visible keys: (batch, q_length, n_heads, value_dim), dtype of q.

    q: (batch, q_length, n_heads, head_dim); k, v: (batch, k_length, n_kv_heads, head_dim); query head h reads key
    head h // (n_heads / n_kv_heads). Positions: (batch, length) integers, or None for 0, 1, 2, ... (inside one packed
    document the index serves as well as the position; `fused` needs None to be fast). Segments: (batch, length), both
    or neither. k_valid: (batch, k_length) bool. window: the number of keys seen, the query's own included; without
    `causal` the keys less than `window` away on both sides. scale: 1 / sqrt(head_dim) if None. softcap: c tanh(s / c).
    bias: (batch or 1, n_heads or 1, q_length, k_length), or a function of the positions that gives it. Softmax in
    float32 at least (float64 where an input is).

    Time is quadratic in the length, linear with a window in the forms `chunked` and `blocks`. `auto` takes one of these
    two for a causal window over a row of more than two windows. Otherwise `plain` for small score matrices, else
    `fused` on a GPU where positions, segments, softcap and k_valid allow it and cuDNN takes the arrays or the scores
    are few, else `chunked`.
    """
    call = _checked(
        q, k, v, q_positions, k_positions, q_segments, k_segments, k_valid, causal, window, scale, softcap, bias
    )
    form = _automatic(call) if form == "auto" else form
    run = lookup(_FORMS, form)
    note("attention", f"{form}{_detail(call, form)}")
    return run(call).astype(q.dtype)


def _checked(q, k, v, q_positions, k_positions, q_segments, k_segments, k_valid, causal, window, scale, softcap, bias):
    batch, q_length, n_heads, head_dim = q.shape
    k_length, n_kv_heads = k.shape[1:3]
    if k.shape[0] != batch or k.shape[3] != head_dim or v.shape[:3] != k.shape[:3]:
        raise ConfigError("k", f"shapes q {q.shape}, k {k.shape}, v {v.shape} do not fit")
    if n_heads % n_kv_heads:
        raise ConfigError("n_kv_heads", f"{n_kv_heads} is not allowed; must divide n_heads = {n_heads}")
    if (q_segments is None) != (k_segments is None):
        raise ConfigError("k_segments", "must be given together with q_segments")
    if window is not None and window < 1:
        raise ConfigError("window", f"{window} is not allowed; must be at least 1")
    if (
        bias is not None
        and not callable(bias)
        and (
            bias.shape[2:] != (q_length, k_length)
            or bias.shape[0] not in (1, batch)
            or bias.shape[1] not in (1, n_heads)
        )
    ):
        allowed = f"({batch} or 1, {n_heads} or 1, {q_length}, {k_length})"
        raise ConfigError("bias", f"shape {bias.shape} is not allowed; must be {allowed}")
    in_order = q_positions is None and k_positions is None

    def positions(given: jax.Array | None, length: int) -> jax.Array:
        """One row for all where they are the places in the row."""
        return jnp.arange(length, dtype=jnp.int32)[None] if given is None else jnp.broadcast_to(given, (batch, length))

    visibility = Visibility(
        positions(q_positions, q_length),
        positions(k_positions, k_length),
        q_segments,
        k_segments,
        k_valid,
        causal=causal,
        window=window,
    )
    return _Call(q, k, v, visibility, head_dim**-0.5 if scale is None else scale, softcap, bias, in_order)


def _reference(call: _Call) -> jax.Array:
    """The definition: one head after another, minus infinity for what is not seen."""
    visible = call.visibility.mask()
    group = call.q.shape[2] // call.k.shape[2]
    outputs, bias = [], call.whole_bias()
    for head in range(call.q.shape[2]):
        q, k, v = call.q[:, :, head], call.k[:, :, head // group], call.v[:, :, head // group]
        scores = call.scale * jnp.einsum("bqd,bkd->bqk", q, k)
        if call.softcap is not None:
            scores = call.softcap * jnp.tanh(scores / call.softcap)
        if bias is not None:
            scores = scores + bias[:, head % bias.shape[1]]
        sees = visible.any(-1, keepdims=True)  # softmax of nothing but minus infinity is not a number
        weights = jax.nn.softmax(jnp.where(visible, scores, jnp.where(sees, -jnp.inf, 0.0)), axis=-1)
        outputs.append(jnp.einsum("bqk,bkd->bqd", jnp.where(visible, weights, 0), v))
    return jnp.stack(outputs, axis=2)


def _plain(call: _Call) -> jax.Array:
    dtype = accumulator(call.q, call.k, call.v)
    batch, q_length, n_heads, head_dim = call.q.shape
    n_kv_heads = call.k.shape[2]
    q = call.q.reshape(batch, q_length, n_kv_heads, n_heads // n_kv_heads, head_dim)
    scores = call.scale * jnp.einsum("bqhgd,bkhd->bhgqk", q, call.k, preferred_element_type=dtype)
    if call.softcap is not None:
        scores = call.softcap * jnp.tanh(scores / call.softcap)
    bias = call.whole_bias()
    if bias is not None:
        bias = jnp.broadcast_to(bias, (bias.shape[0], n_heads, *bias.shape[2:]))
        scores = scores + bias.reshape(bias.shape[0], *scores.shape[1:]).astype(dtype)
    visible = call.visibility.mask()[:, None, None]
    scores = jnp.where(visible, scores, NEGLIGIBLE)
    highest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(visible, jnp.exp(scores - highest), 0)
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    out = jnp.einsum("bhgqk,bkhd->bqhgd", weights.astype(call.v.dtype), call.v, preferred_element_type=dtype)
    return out.reshape(batch, q_length, n_heads, -1)


def _chunked(call: _Call) -> jax.Array:
    return flash_attention(call.q, call.k, call.v, call.visibility, call.bias, call.scale, call.softcap)


def _fused(call: _Call) -> jax.Array:
    if call.softcap is not None:
        raise ConfigError("form", "'fused' has no softcap; use 'chunked' or 'plain'")
    if call.v.shape[-1] != call.q.shape[-1]:
        raise ConfigError("form", "'fused' needs values as wide as keys; use 'chunked' or 'plain'")
    vis, how = call.visibility, implementation(call.q, call.k, call.v)
    if _is_simple(call):
        window = None if vis.window is None else (vis.window - 1, 0 if vis.causal else vis.window - 1)
        return jax.nn.dot_product_attention(
            call.q, call.k, call.v, call.whole_bias(), scale=call.scale, is_causal=vis.causal,
            local_window_size=window, implementation=how,
        )  # fmt: skip
    mask = vis.mask()
    out = jax.nn.dot_product_attention(
        call.q, call.k, call.v, call.whole_bias(), mask[:, None], scale=call.scale, implementation=how
    )
    return jnp.where(mask.any(-1)[:, :, None, None], out, 0)


def implementation(q: jax.Array, k: jax.Array, v: jax.Array, platform: str | None = None) -> Literal["cudnn"] | None:
    """What `jax.nn.dot_product_attention` is asked for: cuDNN's kernels where they take such arrays, else its choice.

    platform: that of jax if None.
    """
    half = all(array.dtype in (jnp.bfloat16, jnp.float16) for array in (q, k, v)) and q.dtype == k.dtype == v.dtype
    head_dim = q.shape[-1]
    fits = half and head_dim == v.shape[-1] and head_dim % 8 == 0 and head_dim <= CUDNN_HEAD_DIM
    return "cudnn" if fits and (jax.default_backend() if platform is None else platform) == "gpu" else None


CUDNN_HEAD_DIM = 128


def _blocks(call: _Call) -> jax.Array:
    if not _fits_blocks(call):
        needs = "a causal window, as many keys as queries at positions 0, 1, 2, ..., and no array as bias"
        raise ConfigError("form", f"'blocks' needs {needs}; use 'chunked' or 'plain'")

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility) -> jax.Array:
        in_order = visibility is call.visibility  # a row too short to be cut
        return _plain(dataclasses.replace(call, q=q, k=k, v=v, visibility=visibility, in_order=in_order))

    return block_attention(call.q, call.k, call.v, call.visibility, attend)


def _fits_blocks(call: _Call) -> bool:
    vis = call.visibility
    square = call.in_order and call.q.shape[1] == call.k.shape[1]
    return square and vis.causal and vis.window is not None and (call.bias is None or callable(call.bias))


def _is_simple(call: _Call) -> bool:
    """Causality and window follow from the indices alone, and every query sees itself."""
    vis = call.visibility
    square = call.q.shape[1] == call.k.shape[1]
    return call.in_order and square and vis.q_segments is None and vis.k_valid is None


_Form = Callable[[_Call], jax.Array]
_FORMS: dict[str, _Form] = {
    "reference": _reference,
    "plain": _plain,
    "chunked": _chunked,
    "blocks": _blocks,
    "fused": _fused,
}
FORMS = tuple(_FORMS)

_PLAIN_UP_TO = {"cpu": 64 * 64, "other": 256 * 256}
"""Scores a head. Forward and backward on two busy CPU cores, 8 rows, 4 heads of 16: rows of 64, 128 and 256 took 2, 31
and 213 ms plain and 2, 20 and 18 ms in tiles."""
_FUSED_UP_TO = {"gpu": 4096 * 4096, "other": 0}
"""Scores a head that `fused` may make where cuDNN does not take the arrays: XLA then has all of them at one time."""
_BLOCKS_UP_TO = {"gpu": 1 << 30, "other": 32}
"""Keys of a window. Forward and backward on two CPU cores, 8 rows of 512, 4 heads of 16: windows of 16, 32, 64 keys
took 9, 18, 71 ms in blocks and 16, 17, 20 ms in tiles. A GPU has no use for a loop over small tiles."""


def _automatic(call: _Call) -> str:
    window = call.visibility.window
    if window is not None and call.q.shape[1] > 2 * window and _fits_blocks(call):
        return "blocks" if window <= by_platform(_BLOCKS_UP_TO) else "chunked"
    if call.q.shape[1] * call.k.shape[1] <= by_platform(_PLAIN_UP_TO) or call.q.shape[1] == 1:
        return "plain"
    fits = _is_simple(call) and call.softcap is None and call.bias is None and call.v.shape[-1] == call.q.shape[-1]
    small = call.q.shape[1] * call.k.shape[1] <= by_platform(_FUSED_UP_TO)
    return "fused" if fits and (small or implementation(call.q, call.k, call.v)) else "chunked"


def _detail(call: _Call, form: str) -> str:
    """What was chosen within a form."""
    if form == "chunked":
        return f" {tile_of(max(call.q.shape[1], call.k.shape[1]), call.visibility.window)}"
    return " cudnn" if form == "fused" and implementation(call.q, call.k, call.v) else ""
