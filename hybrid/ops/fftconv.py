"""Causal convolution with a kernel as long as the sequence, by fast Fourier transform (Hyena: Poli et al. 2023).

    y[t] = sum over s <= t of kernel[s] u[t - s] + skip u[t]

Arrays are channel-major, (batch, channels, length): transforms then run over contiguous memory, and nobody transposes
between a layer's projections and its convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from hybrid.ops.forms import accumulator, lookup
from hybrid.ops.spread import spread
from hybrid.validation import ConfigError


def fft_conv(u: jax.Array, kernel: jax.Array, skip: jax.Array | None = None) -> jax.Array:
    """y (batch, channels, length) in the dtype of u, for u of that shape, kernel (channels, taps), skip (channels,).

    The convolution is linear, not circular; taps beyond the length are not used, and a shorter kernel is as good as
    one padded with zeros. Transforms are float32 (float64 where an input is). Only the inputs are saved for the
    gradient. Cost per channel, n the padded size of about 2 length: three transforms of n forward (one of the three
    once for the whole batch), five backward, and three complex arrays of n/2 a channel in memory.
    """
    _check(u, kernel, skip)
    dtype = accumulator(u, kernel)
    y = u.astype(dtype)
    if u.shape[-1]:
        y = _convolve(y, kernel[:, : u.shape[-1]].astype(dtype))
    return _with_skip(y, u, skip)


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
    if skip is not None:
        y = y + spread(skip.astype(y.dtype), y.shape, 1) * u
    return y.astype(u.dtype)


def _size(u: jax.Array, kernel: jax.Array) -> int:
    """Large enough that neither the convolution nor the two correlations of its gradient wrap around."""
    return transform_size(u.shape[-1] + kernel.shape[-1] - 1)


@jax.custom_vjp
def _convolve(u: jax.Array, kernel: jax.Array) -> jax.Array:
    """(batch, channels, length), (channels, taps <= length) -> (batch, channels, length)."""
    n = _size(u, kernel)
    return jnp.fft.irfft(jnp.fft.rfft(u, n) * jnp.fft.rfft(kernel, n), n)[..., : u.shape[-1]]


def _convolve_forward(u, kernel):
    return _convolve(u, kernel), (u, kernel)


def _convolve_backward(saved, dy):
    """Both gradients are correlations with dy: products with a conjugate spectrum."""
    u, kernel = saved
    n = _size(u, kernel)
    spectrum = jnp.fft.rfft(dy, n)
    du = jnp.fft.irfft(spectrum * jnp.fft.rfft(kernel, n).conj(), n)[..., : u.shape[-1]]
    # The batch is summed before the transform back: one transform a channel and not one a row.
    dkernel = jnp.fft.irfft((spectrum * jnp.fft.rfft(u, n).conj()).sum(0), n)[..., : kernel.shape[-1]]
    return du, dkernel


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _tail_fft(history: jax.Array, u: jax.Array, kernel: jax.Array, filled: jax.Array) -> jax.Array:
    new = u.shape[-1]
    inputs = jnp.pad(history, ((0, 0), (0, 0), (0, new)))
    inputs = lax.dynamic_update_slice_in_dim(inputs, u, filled, axis=-1)
    y = _convolve(inputs, kernel[:, : inputs.shape[-1]])
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
