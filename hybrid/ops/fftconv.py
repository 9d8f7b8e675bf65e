"""Causal convolution with a kernel as long as the sequence, by fast Fourier transform (Hyena: Poli et al. 2023).

    y[t] = after[t] (sum over s <= t of kernel[s] u[t - s] + skip u[t]),    u = before v

with gates `before` and `after` where there are some. Arrays are channel-major, their last axis is the length:
transforms then run over contiguous memory, and nobody transposes between a layer's projections and its convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hybrid.ops.forms import accumulator, by_platform, lookup, note
from hybrid.validation import ConfigError


def fft_conv(u: jax.Array, kernel: jax.Array, skip: jax.Array | None = None) -> jax.Array:
    """y (batch, channels, length) in the dtype of u, for u of that shape, kernel (channels, taps), skip (channels,).

    The convolution is linear, not circular; taps beyond the length are not used, and a shorter kernel is as good as
    one padded with zeros. Transforms are float32 (float64 where an input is). Only the inputs are saved for the
    gradient. Cost per channel, n the padded size of about 2 length: three transforms of n forward (one of the three
    once for the whole batch), five backward. Many channels of a long input go block by block, so that the transforms
    of one block (three complex arrays of n/2 a channel) are what stands in memory, and not those of all.
    """
    _check(u, kernel, skip)
    if 0 in u.shape:
        return u
    (batch, channels, length), taps = u.shape, min(kernel.shape[-1], u.shape[-1])
    blocks = channel_blocks(channels, batch, length)
    note("fft_conv", "whole" if blocks == 1 else f"blocks of {channels // blocks} channels")
    if blocks == 1:
        return gated_conv(u, kernel, skip=skip, channel_axis=1)
    cut = jnp.moveaxis(u.reshape(batch, blocks, -1, length), 1, 0)
    parts = (cut, kernel[:, :taps].reshape(blocks, -1, taps), None if skip is None else skip.reshape(blocks, -1))
    y = lax.map(lambda part: gated_conv(part[0], part[1], skip=part[2], channel_axis=1), parts)
    return jnp.moveaxis(y, 0, 1).reshape(u.shape)


def gated_conv(
    v: jax.Array,
    kernel: jax.Array,
    *,
    before: jax.Array | None = None,
    after: jax.Array | None = None,
    skip: jax.Array | None = None,
    channel_axis: int = 0,
    saved: str = "inputs",
) -> jax.Array:
    """The formula above, of three-dimensional v, before and after (one shape), with the length last.

    channel_axis: 0 for (channels, batch, length), 1 for (batch, channels, length). kernel: (channels, taps), skip:
    (channels,). Gates and skip belong to the function so that one backward pass serves all: with `saved="inputs"` it
    keeps what it was given and takes six transforms (three of them a second time), with "spectra" it keeps the
    transforms and the convolution too, about six times the size of v, and takes three. All at once: see
    `channel_blocks` for how many channels that should be.
    """
    lookup(_KEPT, saved)
    dtype = accumulator(v, kernel)
    arrays = [v, before, after, kernel[:, : v.shape[-1]], skip]
    wide = [None if array is None else array.astype(dtype) for array in arrays]
    return _gated(*wide, channel_axis, saved).astype(v.dtype)


def channel_blocks(channels: int, batch: int, length: int) -> int:
    """In how many equal blocks `channels` should be convolved: 1 while all of them are small.

    The block is the smallest divisor of `channels` that is at least what fills _BLOCK_BYTES, and not below 16: the
    products of a layer over fewer channels would read their other operand too often. A prime number is one block.
    """
    each = 4 * batch * transform_size(2 * length)
    if channels * each <= by_platform(_WHOLE_BYTES):
        return 1
    target = min(channels, max(_LEAST_CHANNELS, min(channels // 2, by_platform(_BLOCK_BYTES) // each)))
    return channels // next(size for size in range(target, channels + 1) if channels % size == 0)


_WHOLE_BYTES = {"cpu": 2**23, "other": 2**31}
_BLOCK_BYTES = {"cpu": 2**24, "other": 2**29}
"""Of the padded input, in float32. On a CPU blocks of 32 channels take as long as of 64 and three quarters of the time
of all 128 at 65,536 positions; elsewhere only memory was thought of."""
_LEAST_CHANNELS = 16


def conv_tail(
    history: jax.Array,
    u: jax.Array,
    kernel: jax.Array,
    skip: jax.Array | None = None,
    *,
    filled: jax.Array | int,
    form: str = "auto",
) -> jax.Array:
    """Outputs (batch, channels, new) for the inputs u that follow the first `filled` entries of `history`.

    history: (batch, channels, capacity), oldest first, zero from index `filled` on (a scalar that may be traced);
    u: (batch, channels, new); kernel: (channels, taps); filled + new may exceed the capacity. With all earlier inputs
    in the history this is what `fft_conv` gives at the last `new` positions.

    `direct` is one dot product of the history with the reversed kernel for each new input: capacity multiply-adds a
    channel each. `fft` is one `fft_conv` over capacity + new, whatever `filled` is. `auto` takes `direct` up to
    8 new inputs. Neither has a cost below the capacity per token: this is what decoding a long convolution costs.
    """
    _check(u, kernel, skip)
    if history.shape[:2] != u.shape[:2]:
        raise ConfigError("history", f"shape {history.shape} does not fit u {u.shape}")
    if u.shape[-1] == 0:
        return u
    dtype = accumulator(u, kernel, history)
    chosen = ("direct" if u.shape[-1] <= _DIRECT_UP_TO else "fft") if form == "auto" else form
    function = lookup(_TAIL_FORMS, chosen)
    y = function(history.astype(dtype), u.astype(dtype), kernel.astype(dtype), jnp.asarray(filled, jnp.int32))
    return _with_skip(y, u, skip)


def fft_conv_reference(u: jax.Array, kernel: jax.Array, skip: jax.Array | None = None) -> jax.Array:
    """The definition as a sum of shifted inputs."""
    length = u.shape[-1]
    y = jnp.zeros_like(u) if skip is None else skip[:, None] * u
    for s in range(min(length, kernel.shape[1])):
        y = y.at[..., s:].add(kernel[:, s, None] * u[..., : length - s])
    return y


def transform_size(least: int) -> int:
    """The smallest even product of powers of 2, 3 and 5 that is at least `least`: sizes that FFT libraries do fast."""
    best = 2 ** max(1, (least - 1).bit_length())
    power_of_5 = 1
    while power_of_5 < best:
        odd = power_of_5
        while odd < best:
            even = 2 * odd
            while even < least:
                even *= 2
            best = min(best, even)
            odd *= 3
        power_of_5 *= 5
    return best


def _check(u: jax.Array, kernel: jax.Array, skip: jax.Array | None) -> None:
    if u.ndim != 3 or kernel.ndim != 2 or kernel.shape[0] != u.shape[1]:
        raise ConfigError(
            "kernel", f"shape {kernel.shape} does not fit u {u.shape}; must be (channels, taps), (batch, channels, L)"
        )
    if skip is not None and skip.shape != u.shape[1:2]:
        raise ConfigError("skip", f"shape {skip.shape} is not allowed; must be {u.shape[1:2]}")


def _with_skip(y: jax.Array, u: jax.Array, skip: jax.Array | None) -> jax.Array:
    return (y if skip is None else y + skip.astype(y.dtype)[:, None] * u).astype(u.dtype)


def _size(u: jax.Array, kernel: jax.Array) -> int:
    """Large enough that neither the convolution nor the two correlations of its gradient wrap around."""
    return transform_size(u.shape[-1] + kernel.shape[-1] - 1)


def _beside(per_channel: jax.Array, channel_axis: int) -> jax.Array:
    """(channels, n) as it stands beside a three-dimensional array: an axis of one for the batch."""
    return jnp.expand_dims(per_channel, 1 - channel_axis)


def _spectra(v: Any, before: Any, kernel: Any, channel_axis: int) -> tuple[Any, Any, Any]:
    """u, and the transforms of u and of the kernel (which has one for the whole batch)."""
    n = _size(v, kernel)
    u = v if before is None else v * before
    return u, jnp.fft.rfft(u, n), _beside(jnp.fft.rfft(kernel, n), channel_axis)


def _convolved(u: jax.Array, spectrum: jax.Array, of_kernel: jax.Array, n: int, skip: Any, channel_axis: int) -> Any:
    c = jnp.fft.irfft(spectrum * of_kernel, n)[..., : u.shape[-1]]
    return c if skip is None else c + _beside(skip[:, None], channel_axis) * u


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _gated(v: Any, before: Any, after: Any, kernel: Any, skip: Any, channel_axis: int, saved: str) -> Any:
    u, of_u, of_kernel = _spectra(v, before, kernel, channel_axis)
    c = _convolved(u, of_u, of_kernel, _size(v, kernel), skip, channel_axis)
    return c if after is None else c * after


def _gated_forward(v, before, after, kernel, skip, channel_axis, saved):
    inputs = (v, before, after, kernel, skip)
    if not _KEPT[saved]:
        return _gated(*inputs, channel_axis, saved), (inputs, None)
    u, of_u, of_kernel = _spectra(v, before, kernel, channel_axis)
    c = _convolved(u, of_u, of_kernel, _size(v, kernel), skip, channel_axis)
    return (c, (inputs, (of_u, of_kernel, None))) if after is None else (c * after, (inputs, (of_u, of_kernel, c)))


def _gated_backward(channel_axis, saved, residuals, dy):
    """The gradients to u and to the kernel are correlations with that of the convolution: products with a conjugate
    spectrum. The batch is summed before the transform back, which is then one a channel and not one a row."""
    (v, before, after, kernel, skip), kept = residuals
    n, batch_axis = _size(v, kernel), 1 - channel_axis
    u = v if before is None else v * before
    if kept is None:
        _, of_u, of_kernel = _spectra(v, before, kernel, channel_axis)
        c = None if after is None else _convolved(u, of_u, of_kernel, n, skip, channel_axis)
    else:
        of_u, of_kernel, c = kept
    dc = dy if after is None else dy * after
    of_dc = jnp.fft.rfft(dc, n)
    du = jnp.fft.irfft(of_dc * of_kernel.conj(), n)[..., : u.shape[-1]]
    dkernel = jnp.fft.irfft((of_dc * of_u.conj()).sum(batch_axis), n)[..., : kernel.shape[-1]]
    if skip is not None:
        du = du + _beside(skip[:, None], channel_axis) * dc
    return (
        du if before is None else du * before,
        None if before is None else du * v,
        None if after is None else dy * c,
        dkernel,
        None if skip is None else jnp.einsum("cbl,cbl->c" if channel_axis == 0 else "bcl,bcl->c", dc, u),
    )


_gated.defvjp(_gated_forward, _gated_backward)
_KEPT = {"inputs": False, "spectra": True}


def _tail_fft(history: jax.Array, u: jax.Array, kernel: jax.Array, filled: jax.Array) -> jax.Array:
    new = u.shape[-1]
    inputs = jnp.pad(history, ((0, 0), (0, 0), (0, new)))
    inputs = lax.dynamic_update_slice_in_dim(inputs, u, filled, axis=-1)
    y = gated_conv(inputs, kernel, channel_axis=1)
    return lax.dynamic_slice_in_dim(y, filled, new, axis=-1)


def _tail_direct(history: jax.Array, u: jax.Array, kernel: jax.Array, filled: jax.Array) -> jax.Array:
    capacity, new = history.shape[-1], u.shape[-1]
    # Output j needs kernel[filled + j - i] at history index i. In the reversed, padded kernel, where tap s stands at
    # index (taps - 1 - s) + capacity, that is a window that starts at capacity + taps - 1 - filled - j.
    taps = capacity + new
    kernel = jnp.pad(kernel[:, :taps], ((0, 0), (0, max(0, taps - kernel.shape[-1]))))
    reversed_kernel = jnp.pad(kernel[:, ::-1], ((0, 0), (capacity, capacity)))
    outputs = []
    for j in range(new):
        window = lax.dynamic_slice_in_dim(reversed_kernel, capacity + taps - 1 - filled - j, capacity, axis=-1)
        y = jnp.einsum("bch,ch->bc", history, window)
        for i in range(j + 1):
            y = y + kernel[:, j - i] * u[..., i]
        outputs.append(y)
    return jnp.stack(outputs, axis=-1)


_TailForm = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
_TAIL_FORMS: dict[str, _TailForm] = {"direct": _tail_direct, "fft": _tail_fft}
_DIRECT_UP_TO = 8
TAIL_FORMS = tuple(_TAIL_FORMS)
