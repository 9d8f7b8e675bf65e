"""RMSNorm and LayerNorm over the last axis, computed in at least float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hybrid.ops.spread import spread


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """x / sqrt(mean(x^2) + eps) * scale (Zhang & Sennrich 2019)."""
    precise = jnp.promote_types(x.dtype, jnp.float32)
    wide = x.astype(precise)
    power = jnp.einsum("...d,...d->...", wide, wide)[..., None] / x.shape[-1]
    return (wide * jax.lax.rsqrt(power + eps) * spread(scale.astype(precise), x.shape)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """(x - mean) / sqrt(variance + eps) * scale + bias (Ba et al. 2016)."""
    precise = jnp.promote_types(x.dtype, jnp.float32)
    wide = x.astype(precise)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.einsum("...d,...d->...", centred, centred)[..., None] / x.shape[-1]
    normal = centred * jax.lax.rsqrt(variance + eps)
    scaled = normal * spread(scale.astype(precise), x.shape)
    return (scaled + spread(bias.astype(precise), x.shape)).astype(x.dtype)


def norm(params: Mapping[str, Any], x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    """The norm that the parameters are of: LayerNorm has a bias."""
    if "bias" in params:
        return layer_norm(x, params["scale"], params["bias"], eps)
    return rms_norm(x, params["scale"], eps)
