"""Long convolutions whose taps are sums of decaying oscillations: the filters of StripedHyena (Poli et al. 2023).

    h[c, t] = Re of the sum over n of residue[c, n] * pole[c, n]^t

Such a filter is a linear recurrence with one complex number a pole, so that decoding carries a state that does not grow
(Massaroli et al. 2023, "Laughing Hyena"). Poles and residues are stored as published: real and imaginary part as they
are. Nothing keeps a pole inside of the unit circle but where it starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hybrid.lazy import jax, jnp
from hybrid.params import Param, normal

if TYPE_CHECKING:
    from hybrid.config import ModelConfig

SLOWEST, FASTEST = 1e-3, 0.5
"""Initial poles are exp(-decay + i angle): decays log-uniform between these, angles around 0."""


def _poles(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    first, second = jax.random.split(key)
    low, high = math.log(SLOWEST), math.log(FASTEST)
    radius = jnp.exp(-jnp.exp(jax.random.uniform(first, shape[:-1], dtype, low, high)))
    angle = 0.1 * jax.random.normal(second, shape[:-1], dtype)
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=-1)


def modal_spec(config: ModelConfig, convs: int) -> dict[str, Any]:
    """Of `convs` long convolutions; the last axis is the real and the imaginary part."""
    shape, axes = (convs, config.d_model, config.hyena.modes, 2), (None, "inner", None, None)
    return {
        "poles": Param(shape, axes, _poles, decay=False, dtype="float32"),
        "residues": Param(shape, axes, normal(0.1 * config.hyena.modes**-0.5), decay=False, dtype="float32"),
    }


def _parts(leaf: Any) -> tuple[Any, Any]:
    """Real and imaginary part, in at least float32."""
    precise = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return precise[..., 0], precise[..., 1]


def _powers(pole: Any, times: Any) -> tuple[Any, Any]:
    """Real and imaginary part of pole[..., None]^times: (..., times)."""
    real, imaginary = (part[..., None] for part in _parts(pole))
    size = jnp.exp(0.5 * jnp.log(real**2 + imaginary**2) * times)
    angle = jnp.arctan2(imaginary, real) * times
    return size * jnp.cos(angle), size * jnp.sin(angle)


def modal_taps(config: ModelConfig, params: Mapping[str, Any], length: int) -> Any:
    """The first `length` taps of each long convolution: (convolutions, d_model, length), at least float32."""
    taps, times = 0.0, jnp.arange(length)
    for mode in range(config.hyena.modes):  # one at a time: a mode is as large as the sum
        real, imaginary = _powers(params["poles"][:, :, mode], times)
        a, b = (part[..., None] for part in _parts(params["residues"][:, :, mode]))
        taps = taps + a * real - b * imaginary
    return taps


def modal_state(config: ModelConfig, batch: int) -> Any:
    """(batch, d_model, modes, 2), at least float32: the recurrence of one long convolution."""
    precise = jnp.promote_types(config.compute_dtype, jnp.float32)
    return jnp.zeros((batch, config.d_model, config.hyena.modes, 2), precise)


def modal_extend(pole: Any, residue: Any, kernel: Any, skip: Any, u: Any, state: Any) -> tuple[Any, Any]:
    """One long convolution of new inputs u (batch, d_model, length): outputs, and the state after them.

    pole, residue: (d_model, modes, 2). kernel: (d_model, length), its first taps.
    """
    from hybrid.ops.fftconv import fft_conv

    length = u.shape[-1]
    real, imaginary = _powers(pole, jnp.arange(length + 1))  # (d_model, modes, length + 1)
    a, b = _parts(residue)
    s, z = _parts(state)

    def turned(t: slice) -> tuple[Any, Any]:
        """pole^t times the state: (batch, d_model, modes, times)."""
        return (
            real[:, :, t] * s[..., None] - imaginary[:, :, t] * z[..., None],
            real[:, :, t] * z[..., None] + imaginary[:, :, t] * s[..., None],
        )

    before = turned(slice(1, None))
    y = fft_conv(u, kernel, skip)
    y = y + jnp.einsum("dn,bdnt->bdt", a, before[0]) - jnp.einsum("dn,bdnt->bdt", b, before[1])
    wide = u.astype(s.dtype)
    back = [part[:, :, :length][:, :, ::-1] for part in (real, imaginary)]  # the last input has the power 0
    last = [old[..., -1] + jnp.einsum("dnt,bdt->bdn", power, wide) for old, power in zip(before, back, strict=True)]
    return y.astype(u.dtype), jnp.stack(last, axis=-1).astype(state.dtype)


def modal_taps_reference(config: ModelConfig, params: Mapping[str, Any], length: int) -> Any:
    """The same, (length, convolutions * d_model), by multiplying with the pole again and again."""
    (p, q), (a, b) = (_parts(params[name]) for name in ("poles", "residues"))
    rows = []
    for _ in range(length):
        rows.append(a.sum(-1).reshape(-1))
        a, b = a * p - b * q, a * q + b * p
    return jnp.stack(rows)
