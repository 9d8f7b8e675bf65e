"""Parameters with what sublayers change themselves, without a gradient (Aux.updates)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hybrid.config import ModelConfig
from hybrid.layout import Tree, layout


def updated(config: ModelConfig, params: Tree, updates: Mapping[str, Any]) -> Tree:
    """The parameters of a model after the `updates` of `hybrid.forward`: the values of a name, in the order of layers.

    The name is that of the leaf in its sublayer; "1/bias" is of a branch, "encoder/bias" of the encoder's stack.
    """
    if not updates:
        return params
    own = {name: values for name, values in updates.items() if not name.startswith("encoder/")}
    layers = dict(params["layers"])
    for name, values in own.items():
        path = name.split("/")
        keys = [key for key in layout(config) if _holds(layers[key]["sublayer"], path)]
        for key, value in zip(keys, values, strict=True):
            layers[key] = replaced(layers[key], ["sublayer", *path], value)
    after = {**params, "layers": layers}
    if len(own) < len(updates):
        assert config.encoder_config is not None
        inner = {name.removeprefix("encoder/"): values for name, values in updates.items() if name not in own}
        after["encoder"] = updated(config.encoder_config, params["encoder"], inner)
    return after


def _holds(tree: Tree, path: Sequence[str]) -> bool:
    return not path or (isinstance(tree, Mapping) and path[0] in tree and _holds(tree[path[0]], path[1:]))


def replaced(tree: Tree, path: Sequence[str], value: Any) -> Tree:
    """A copy of nested dicts with another value at `path`, in the type that the leaf has."""
    if not path:
        return value.astype(tree.dtype)  # type: ignore[attr-defined]
    return {**tree, path[0]: replaced(tree[path[0]], path[1:], value)}
