"""How the stack lies: segments of repeated units, and trees of parameters cut to them.

Under "layers" of a tree, a key names the layers that a subtree holds: "3" is one layer, "0:28:2" is range(0, 28, 2)
with a leading axis of 14. `arrange` and `per_layer` cut a tree otherwise without asking how it was made. No jax until
values are moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hybrid.lazy import jax, jnp
from hybrid.segments import Segment, segments

if TYPE_CHECKING:
    from hybrid.config import ModelConfig

Tree = dict[str, Any]

UNROLLED_ON_CPU = 32
"""Sublayers up to which an unrolled stack is faster on a CPU than a scanned one (which copies its parameters)."""


def scans(config: ModelConfig) -> bool:
    """Whether repeated units are compiled once: as asked, or by platform and depth."""
    if config.scan_layers == "auto":
        return jax.default_backend() != "cpu" or config.n_layers > UNROLLED_ON_CPU
    return config.scan_layers


def stack_segments(config: ModelConfig) -> tuple[Segment, ...]:
    """The stack as it is compiled; without scanning, one segment that does not repeat."""
    if scans(config):
        return segments(config.sequence)
    return (Segment(config.sequence, 1),)


def layers_of(key: str) -> range:
    """The layers of a key under "layers": "3" -> range(3, 4), "0:28:2" -> range(0, 28, 2)."""
    if ":" not in key:
        return range(int(key), int(key) + 1)
    start, stop, step = map(int, key.split(":"))
    return range(start, stop, step)


def layout(config: ModelConfig) -> list[str]:
    """The keys under "layers" that `config` trains in, in the order of their first layer."""
    keys, first = [], 0
    for segment in stack_segments(config):
        size = len(segment.unit)
        for offset in range(size):
            one = segment.repeats == 1
            start = first + offset
            keys.append(str(start) if one else f"{start}:{first + segment.repeats * size}:{size}")
        first += segment.repeats * size
    return keys


def per_layer(params: Mapping[str, Any]) -> Tree:
    """The same parameters with one entry a layer index (the form of checkpoints)."""
    layers: Tree = {}
    for key, value in params["layers"].items():
        if ":" not in key:
            layers[key] = value
        else:
            for i, layer in enumerate(layers_of(key)):
                layers[str(layer)] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
    tree = {**params, "layers": dict(sorted(layers.items(), key=lambda item: int(item[0])))}
    return {**tree, "encoder": per_layer(tree["encoder"])} if "encoder" in tree else tree


def arrange(config: ModelConfig, params: Mapping[str, Any]) -> Tree:
    """The parameters in the form that `config` trains in; does nothing to those that have it already."""
    tree = {**params, "layers": _arranged(config, params["layers"])}
    if config.encoder_config is not None and "encoder" in params:
        tree["encoder"] = arrange(config.encoder_config, params["encoder"])
    return tree


def _arranged(config: ModelConfig, layers: Mapping[str, Any]) -> Tree:
    keys = layout(config)
    if set(layers) == set(keys):
        return dict(layers)
    single = per_layer({"layers": layers})["layers"]
    expected = {str(i) for i in range(config.n_layers)}
    if set(single) != expected:
        raise ValueError(f"parameters hold {len(single)} layers, the pattern {config.pattern!r} has {config.n_layers}")
    cut = {}
    for key in keys:
        parts = [single[str(layer)] for layer in layers_of(key)]
        cut[key] = parts[0] if ":" not in key else jax.tree.map(lambda *xs: jnp.stack(xs), *parts)
    return cut
