"""The short causal depthwise convolution in front of a recurrence or a long convolution (Mamba, Hyena, H3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hybrid.ops.forms import accumulator
from hybrid.ops.spread import spread
from hybrid.validation import ConfigError


def causal_conv(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    *,
    initial: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    previous_segments: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """y[t, c] = bias[c] + sum over j of weight[k-1-j, c] x[t-j, c], and the last k-1 inputs.

    x: (batch, length, channels). weight: (k, channels), the last row for the current input. bias: (channels,).
    initial: (batch, k-1, channels), the inputs before x, oldest first; zeros if None. segment_ids: (batch, length);
    inputs of another document count as zero. previous_segments: the documents of `initial`, (batch, k-1), or (batch,)
    when they are of one; without it they belong to the document of position 0.

    Returns y in the dtype of x, and (batch, k-1, channels), what the next call takes as `initial`: inputs of other
    documents than the last position's are zeroed there, so that the next call's `previous_segments` may be just
    `segment_ids[:, -1]`. Products are summed in float32 at least.
    """
    batch, length, channels = x.shape
    before = weight.shape[0] - 1
    if weight.ndim != 2 or weight.shape[1] != channels:
        raise ConfigError("weight", f"shape {weight.shape} does not fit x {x.shape}; must be (k, {channels})")
    if initial is None:
        initial = jnp.zeros((batch, before, channels), x.dtype)
    if initial.shape != (batch, before, channels):
        raise ConfigError("initial", f"shape {initial.shape} is not allowed; must be {(batch, before, channels)}")
    if length == 0:
        return x, initial.astype(x.dtype)
    padded = jnp.concatenate([initial.astype(x.dtype), x], axis=1)
    documents = None if segment_ids is None else _documents(segment_ids, previous_segments, before)
    dtype = accumulator(x, weight)
    y = jnp.zeros((), dtype) if bias is None else spread(bias.astype(dtype), x.shape)
    for j in range(before + 1):
        shifted = padded[:, j : j + length].astype(dtype)
        if documents is not None:
            shifted = jnp.where((documents[:, j : j + length] == documents[:, before:])[..., None], shifted, 0)
        y = y + shifted * spread(weight[j].astype(dtype), x.shape)
    last = padded[:, length:]
    if documents is not None:
        last = jnp.where((documents[:, length:] == documents[:, -1:])[..., None], last, 0)
    return y.astype(x.dtype), last


def causal_conv_reference(
    x, weight, bias=None, *, initial=None, segment_ids=None, previous_segments=None
) -> tuple[jax.Array, jax.Array]:
    """The definition, one position and one tap at a time; walks back until a document boundary."""
    batch, length, channels = x.shape
    before = weight.shape[0] - 1
    initial = jnp.zeros((batch, before, channels), x.dtype) if initial is None else initial
    inputs = jnp.concatenate([initial, x], axis=1)
    same = jnp.ones((batch, before + length), bool)  # same[i]: input i belongs to the document of input i - 1
    if segment_ids is not None:
        old = segment_ids[:, :1] if previous_segments is None else previous_segments.reshape(batch, -1)
        ids = jnp.concatenate([jnp.broadcast_to(old, (batch, before)), segment_ids], axis=1)
        same = same.at[:, 1:].set(ids[:, 1:] == ids[:, :-1])

    def visible(position: int) -> list[jax.Array]:
        """The input at `position` and those before it, newest first, zero from the document boundary on."""
        taps, mask = [], jnp.ones((batch, 1), bool)
        for j in range(before + 1):
            taps.append(jnp.where(mask, inputs[:, position - j], 0) if position >= j else jnp.zeros_like(x[:, 0]))
            mask = mask & same[:, position - j, None] if position >= j else mask
        return taps

    outputs = []
    for t in range(length):
        taps = visible(before + t)
        y = sum(weight[before - j] * tap for j, tap in enumerate(taps))
        outputs.append(y if bias is None else y + bias)
    last = visible(before + length - 1)[:before]
    return jnp.stack(outputs, axis=1), jnp.stack(last[::-1], axis=1) if before else x[:, :0]


def past_padding(initial: jax.Array, x: jax.Array, padding: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`initial` and `x` with the inputs of before moved behind each row's leading padding, for `causal_conv`.

    initial: (batch, k-1, channels). x: (batch, length, channels). padding: (batch, length), True at real tokens, which
    stand at the end of a row. What stood at padded positions is gone; zeros stand in front. The convolution then gives
    at real tokens what it gives without the padding, and keeps the same last inputs (`initial` in a row of padding).
    """
    before, length = initial.shape[1], x.shape[1]
    skipped = (length - padding.sum(1, dtype=jnp.int32))[:, None]  # leading positions that are padding
    at = jnp.arange(before + length, dtype=jnp.int32)[None]
    source = jnp.where(at >= before + skipped, at, at - skipped)
    joined = jnp.concatenate([initial.astype(x.dtype), x], axis=1)
    moved = jnp.take_along_axis(joined, jnp.maximum(source, 0)[..., None], axis=1)
    moved = jnp.where((source >= 0)[..., None], moved, 0)
    return moved[:, :before], moved[:, before:]


def _documents(segment_ids: jax.Array, previous: jax.Array | None, before: int) -> jax.Array:
    """(batch, before + length) running number of the document, so that a segment id may come back later."""
    batch = segment_ids.shape[0]
    old = segment_ids[:, :1] if previous is None else previous.reshape(batch, -1)
    ids = jnp.concatenate([jnp.broadcast_to(old, (batch, before)).astype(segment_ids.dtype), segment_ids], axis=1)
    changes = ids[:, 1:] != ids[:, :-1]
    return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
