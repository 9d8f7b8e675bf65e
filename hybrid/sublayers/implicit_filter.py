"""Long convolutions whose taps are a small network of the position: the filters of Hyena (Poli et al. 2023, 3.3).

    h[c, t] = window[c, t] * (W sin(w sin(.. sin(w (features[t] U + b)))))[c]

The network is shared by all channels but for its last product W; the window decays at a rate fixed by the channel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hybrid.lazy import jax, jnp, np
from hybrid.params import Param, fan_in_uniform

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


def _features(bands: int) -> Any:
    """Columns t, Re and Im of exp(-i f w): t in [0, 1], w = 2 pi index / length, f from 1e-4 to bands - 1."""

    def make(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        length = shape[0]
        time = jnp.linspace(0.0, 1.0, length, dtype=dtype)[:, None]
        angle = 2 * math.pi * jnp.arange(length, dtype=dtype)[:, None] / length
        phase = jnp.linspace(1e-4, bands - 1, bands, dtype=dtype)[None] * angle
        return jnp.concatenate([time, jnp.cos(phase), -jnp.sin(phase)], axis=1)

    return make


def _constant(value: float) -> Any:
    return lambda key, shape, dtype: jnp.full(shape, value, dtype)


def implicit_spec(config: ModelConfig, convs: int) -> dict[str, Any]:
    group, d, width = config.hyena, config.d_model, config.hyena.filter_width
    hidden = fan_in_uniform(width)
    network = {
        "in": Param((group.emb_dim, width), (None, None), fan_in_uniform(group.emb_dim)),
        "in_bias": Param((width,), (None,), fan_in_uniform(group.emb_dim), decay=False),
        "frequency": Param((width,), (None,), _constant(group.sine_frequency), decay=False),
        "out": Param((width, convs, d), (None, None, "inner"), hidden),
    }
    for i in range(group.filter_layers):
        network[f"hidden_{i}"] = Param((width, width), (None, None), hidden)
        network[f"hidden_{i}_bias"] = Param((width,), (None,), hidden, decay=False)
    features = Param(
        (group.filter_length, group.emb_dim), (None, None), _features((group.emb_dim - 1) // 2),
        decay=False, rate=group.feature_rate,
    )  # fmt: skip
    return {"features": features, "filter": network}


def _hidden(config: ModelConfig, network: Mapping[str, Any], features: Any) -> Any:
    """The last hidden layer of the filters' network, with sine activations: (positions, filter_width)."""
    precise = jnp.promote_types(features.dtype, jnp.float32)
    wide = {name: value.astype(precise) for name, value in network.items() if name != "out"}
    hidden = jnp.sin(wide["frequency"] * (features.astype(precise) @ wide["in"] + wide["in_bias"]))
    for i in range(config.hyena.filter_layers):
        hidden = jnp.sin(wide["frequency"] * (hidden @ wide[f"hidden_{i}"] + wide[f"hidden_{i}_bias"]))
    return hidden


def _hidden_tile(config: ModelConfig, long: tuple[Any], network: Mapping[str, Any]) -> Any:
    """The same channel-major: (filter_width, positions) for features (emb_dim, positions)."""
    return _hidden(config, network, long[0].T).T


def _rates(config: ModelConfig, convs: int) -> Any:
    """At which the window of each channel decays: (convolutions, d_model) float64."""
    d, target = config.d_model, math.log(config.hyena.decay_target)
    rates = np.linspace(target / config.hyena.slow_decay, target / config.hyena.fast_decay, convs * d)
    return np.abs(rates).reshape(convs, d)


def _time(config: ModelConfig, length: int, dtype: Any) -> Any:
    """(length,) of 0 to 1 at the end of filter_length: the window of the whole is cut, not squeezed."""
    return jnp.linspace(0.0, 1.0, config.hyena.filter_length, dtype=dtype)[:length]


def _window(config: ModelConfig, rates: Any, time: Any) -> Any:
    """(..., times) for rates of any shape."""
    time = jax.lax.stop_gradient(time)
    return jnp.exp(-rates.astype(time.dtype)[..., None] * time) + config.hyena.decay_shift


def implicit_taps(config: ModelConfig, params: Mapping[str, Any], length: int) -> Any:
    """The first `length` taps of each long convolution: (convolutions, d_model, length), at least float32.

    A network with sine activations of the positional features, times a window that decays at a rate fixed by the
    channel (rates are spread over all channels of all convolutions, in the order of the standalone code: convolution
    first). Channels of one convolution differ.
    """
    hidden = _hidden(config, params["filter"], params["features"][:length])
    taps = jnp.einsum("lw,wcd->cdl", hidden, params["filter"]["out"].astype(hidden.dtype))
    return taps * _window(config, _rates(config, taps.shape[0]), _time(config, length, hidden.dtype))


def implicit_blocks(config: ModelConfig, params: Mapping[str, Any], length: int, blocks: int) -> tuple:
    """The hidden layer (filter_width, length), what a block reads, and the function that makes its taps."""
    from hybrid.ops.tiles import by_tiles
    from hybrid.sublayers.hyena_blocks import TILE, by_channels

    network = {name: value for name, value in params["filter"].items() if name != "out"}
    hidden = by_tiles(functools.partial(_hidden_tile, config), (params["features"][:length].T,), network, TILE)
    out = by_channels(params["filter"]["out"], 2, blocks).transpose(0, 2, 3, 1)  # (blocks, convs, n, width)
    rates = by_channels(_rates(config, params["filter"]["out"].shape[1]), 1, blocks)

    def tile(long: tuple[Any, Any], own: Mapping[str, Any]) -> Any:
        hidden, time = long
        kernels = jnp.einsum("cnw,wl->cnl", own["out"].astype(hidden.dtype), hidden)
        return kernels * _window(config, jax.lax.stop_gradient(own["rates"]), time)

    def taps(hidden: Any, own: Mapping[str, Any]) -> Any:
        time = _time(config, length, hidden.dtype)
        return by_tiles(tile, (hidden, time), own, TILE)

    return hidden, {"out": out, "rates": jnp.asarray(rates, hidden.dtype)}, taps


def implicit_taps_reference(config: ModelConfig, params: Mapping[str, Any], length: int) -> Any:
    """(length, convolutions * d_model), the window from the formula of each channel."""
    group, d, network = config.hyena, config.d_model, params["filter"]
    convs = network["out"].shape[1]
    hidden = params["features"][:length] @ network["in"] + network["in_bias"]
    for i in range(group.filter_layers):
        hidden = jnp.sin(network["frequency"] * hidden)
        hidden = hidden @ network[f"hidden_{i}"] + network[f"hidden_{i}_bias"]
    taps = jnp.sin(network["frequency"] * hidden) @ network["out"].reshape(-1, convs * d)
    slowest, fastest = (math.log(group.decay_target) / pace for pace in (group.slow_decay, group.fast_decay))
    rates = [slowest + (fastest - slowest) * c / max(convs * d - 1, 1) for c in range(convs * d)]
    times = [t / max(group.filter_length - 1, 1) for t in range(length)]
    window = [[math.exp(time * rate) + group.decay_shift for rate in rates] for time in times]
    return taps * jnp.array(window)
