"""The state of training, and its form in checkpoints: nested dicts with one entry a layer index.

    {"params": .., "mu": .., "nu": .., "count": .., "step": ..}

The live state is stacked as the segments of the model want it and lies on a mesh; checkpoints know of neither, so that
a run can go on with other segments and on another mesh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import struct

from experiments import hosts
from hybrid.config import ModelConfig
from hybrid.layout import arrange, per_layer
from hybrid.params import declarations_per_layer
from hybrid.sharding import param_shardings, replicated

Tree = Any

MOMENTS = ("mu", "nu")


@struct.dataclass
class TrainState:
    """All that a step changes."""

    params: Tree
    optimizer: Tree
    step: Any
    """() int32: steps done"""
    finite: Any
    """() bool: False from the first step on whose loss or gradient was not finite; nothing changes after it."""


def is_params(tree: Tree) -> bool:
    """Whether a subtree has the structure of the parameters, as the optimizer's moments have."""
    return isinstance(tree, Mapping) and "layers" in tree and "embedding" in tree


def _is_masked(leaf: Any) -> bool:
    """Where a leaf has no moments, because it is not trained."""
    return isinstance(leaf, optax.MaskedNode)


def like_params(state: Tree, params: Tree, other: Any) -> Tree:
    """A tree as `state` with the leaves of `params` in every subtree like the parameters, and `other` elsewhere."""

    def one(subtree: Tree) -> Tree:
        return _masked_like(subtree, params) if is_params(subtree) else other

    return jax.tree.map(one, state, is_leaf=is_params)


def _masked_like(template: Tree, values: Tree) -> Tree:
    if isinstance(template, Mapping):
        return {name: _masked_like(value, values.get(name, {})) for name, value in template.items()}
    return template if _is_masked(template) else values


def _without_masks(tree: Tree) -> Tree:
    """Nested dicts without what is masked."""
    if not isinstance(tree, Mapping):
        return tree
    kept = {name: _without_masks(value) for name, value in tree.items() if not _is_masked(value)}
    return {name: value for name, value in kept.items() if not (isinstance(value, Mapping) and not value)}


def by_layer(state: Tree) -> Tree:
    """The state with one entry a layer index, in parameters and moments."""
    return jax.tree.map(lambda tree: per_layer(tree) if is_params(tree) else tree, state, is_leaf=is_params)


def arranged(config: ModelConfig, state: Tree) -> Tree:
    """The inverse of `by_layer`, for the segments that `config` trains in."""
    return jax.tree.map(lambda tree: arrange(config, tree) if is_params(tree) else tree, state, is_leaf=is_params)


def host(tree: Tree) -> Tree:
    """Copies on the host, which no later step writes over."""
    if hosts.count() == 1:
        tree = jax.device_get(tree)
    return jax.tree.map(hosts.whole, tree)


def saved(state: TrainState) -> Tree:
    """The form of checkpoints."""
    layered = by_layer(state)
    moments = {name: _without_masks(optax.tree.get(layered.optimizer, name)) for name in MOMENTS}
    count = optax.tree.get(layered.optimizer, "count")
    return {"params": layered.params, **moments, "count": count, "step": state.step}


def saved_shapes(config: ModelConfig, shapes: TrainState, mesh: Any) -> Tree:
    """What a checkpoint is restored as: shapes and types, and where each leaf goes on the mesh.

    Where the mesh is one of several processes, each of them reads all on its own, to the memory of its host.
    """
    wanted = jax.eval_shape(saved, shapes)
    if hosts.count() > 1:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), wanted)
    params = param_shardings(mesh, declarations_per_layer(config))

    def placed(shape: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    def one(tree: Tree) -> Tree:
        if not isinstance(tree, Mapping):
            return placed(tree, replicated(mesh))
        return jax.tree.map(placed, tree, _masked_like(tree, params))

    return {name: one(tree) for name, tree in wanted.items()}


def live(config: ModelConfig, shapes: TrainState, shardings: TrainState, tree: Tree) -> TrainState:
    """The state on its mesh, from the form of checkpoints."""
    template = jax.eval_shape(by_layer, shapes)
    moments = {name: _masked_like(optax.tree.get(template.optimizer, name), tree[name]) for name in MOMENTS}
    optimizer = optax.tree.set(template.optimizer, **moments, count=tree["count"])
    state = TrainState(params=tree["params"], optimizer=optimizer, step=tree["step"], finite=np.ones((), bool))
    return hosts.onto(arranged(config, state), shardings)
