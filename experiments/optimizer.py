"""AdamW with warm-up, from an OptimizerConfig and the declarations of a model.

    optimizer = adamw(config.optimizer, declarations(model))
    updates, state = optimizer.update(gradients, state, params, values=values, step=step, norm=norm)

What trials of one group differ in (`Values`) is traced: one compiled program serves every learning rate, weight decay,
warm-up, number of steps, dropout rate and seed. Of an OptimizerConfig a program has the form alone: the schedule, and
whether gradients are clipped. Decay, rate and trainability of a leaf come from its Param.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from experiments.config import OptimizerConfig, Trial
from experiments.data.synthetic.rows import epoch_steps
from experiments.identity import TRACED
from hybrid.params import Param, map_leaves
from hybrid.sharding import active_mesh

Tree = Any
Scalar = Float[Array, ""]


@struct.dataclass
class Values:
    """What a compiled program takes as numbers: all that may differ between the trials of a group."""

    learning_rate: Any
    """() the highest rate of the schedule"""
    weight_decay: Any
    warmup_steps: Any
    decay_fraction: Any
    final_fraction: Any
    b1: Any
    b2: Any
    eps: Any
    clip_norm: Any
    """() not read where the config has none"""
    steps: Any
    """() of the whole training"""
    epoch: Any
    """() steps of an epoch of a fixed training set, not read by most schedules"""
    dropout: Any
    """() not read where the config's rate is 0"""
    key: Any
    """The random key that initial values and dropout are drawn from."""


def values_of(trial: Trial) -> Values:
    """The traced values of a trial, on the default device."""
    wanted = {name: getattr(trial.optimizer, name) for name in TRACED}
    wanted |= {"clip_norm": wanted["clip_norm"] or np.inf, "steps": trial.train.steps, "dropout": trial.model.dropout}
    wanted |= {"epoch": max(epoch_steps(trial.data), 1)}
    dtype = jnp.result_type(float)
    numbers = {name: np.asarray(value, dtype) for name, value in wanted.items()}
    numbers, seed = jax.device_put((numbers, np.uint32(trial.seed)))
    return Values(**numbers, key=jax.random.key(seed))


# --- schedules --------------------------------------------------------------------------------------------------------
# Each gives the share of the highest rate after warm-up; `done` counts the steps so far, this one included.


def constant(values: Values, done: Scalar) -> Scalar:
    return jnp.ones_like(done)


def cosine(values: Values, done: Scalar) -> Scalar:
    """Half a cosine from the end of the warm-up to the last step, at final_fraction (Loshchilov & Hutter 2017)."""
    progress = jnp.clip((done - values.warmup_steps) / jnp.maximum(values.steps - values.warmup_steps, 1), 0, 1)
    return values.final_fraction + (1 - values.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def cosine_epochs(values: Values, done: Scalar) -> Scalar:
    """The cosine of whole epochs: within an epoch the rate stands still, and the first has the highest."""
    before = jnp.floor((done - 1) / values.epoch)
    whole = jnp.ceil(values.steps / values.epoch)
    progress = jnp.clip(before / jnp.maximum(whole, 1), 0, 1)
    return values.final_fraction + (1 - values.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def wsd(values: Values, done: Scalar) -> Scalar:
    """Stable, then a straight line to final_fraction in the last decay_fraction of the steps (Hu et al. 2024)."""
    length = values.decay_fraction * values.steps
    begun = done - (values.steps - length)
    progress = jnp.where(length > 0, jnp.clip(begun / jnp.where(length > 0, length, 1), 0, 1), 0)
    return 1 - (1 - values.final_fraction) * progress


SCHEDULES: dict[str, Callable[..., Scalar]] = {
    "constant": constant, "cosine": cosine, "cosine_epochs": cosine_epochs, "wsd": wsd
}  # fmt: skip


def learning_rate(config: OptimizerConfig, values: Values, step: Int[Array, ""]) -> Scalar:
    """The rate of step 0, 1, ..., `steps` - 1: a straight line up to the first full step, then the schedule."""
    done = (step + 1).astype(values.learning_rate.dtype)
    warm = jnp.minimum(done / jnp.maximum(values.warmup_steps, 1), 1)
    return values.learning_rate * warm * SCHEDULES[config.schedule](values, done)


# --- AdamW ------------------------------------------------------------------------------------------------------------


def adamw(config: OptimizerConfig, declarations: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, Adam, decoupled weight decay, learning rate (Loshchilov & Hutter 2019).

    `update` takes values, step () int32, and norm () the global norm of the gradients. Moments are at least float32;
    leaves that are not trainable have none, and no update.
    """
    trained = map_leaves(lambda _, param: param.trainable, declarations)
    clip = optax.identity() if config.clip_norm is None else _clip()
    chain = optax.chain(clip, optax.masked(_adam(), trained), _rated(config, declarations))

    def init(params: Tree) -> Tree:
        return chain.init(precise(params))

    def update(updates: Tree, state: Tree, params: Tree = None, **values: Any) -> tuple[Tree, Tree]:
        return chain.update(precise(updates), state, params, **values)

    return optax.GradientTransformationExtraArgs(init, update)


def precise(tree: Tree) -> Tree:
    """Every leaf in at least float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)


def _adam() -> optax.GradientTransformationExtraArgs:
    """Adam whose constants are traced values; the moments keep their types."""

    def update(updates: Tree, state: Tree, params: Tree = None, *, values: Values, **_: Any) -> tuple[Tree, Tree]:
        adam = optax.scale_by_adam(values.b1, values.b2, values.eps)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), adam.update(updates, state), (updates, state))

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam().init, update)


def _clip() -> optax.GradientTransformationExtraArgs:
    """Scales the gradients down to a global norm of `clip_norm`. The norm is given: it is also a metric."""

    def update(
        updates: Tree, state: Tree, params: Tree = None, *, values: Values, norm: Scalar, **_: Any
    ) -> tuple[Tree, Tree]:
        scale = values.clip_norm / jnp.maximum(norm, values.clip_norm)
        return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _rated(config: OptimizerConfig, declarations: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
    """-rate · learning rate · (update + weight decay · parameter), by the declaration of each leaf."""

    def update(
        updates: Tree, state: Tree, params: Tree = None, *, values: Values, step: Int[Array, ""], **_: Any
    ) -> tuple[Tree, Tree]:
        rate = learning_rate(config, values, step)

        def one(param: Param, change: Array, value: Array) -> Array:
            if not param.trainable:
                return jnp.zeros_like(change)
            if param.decay or config.decay_on == "all":
                change = change + values.weight_decay.astype(change.dtype) * value.astype(change.dtype)
            return -(param.rate * rate).astype(change.dtype) * change

        return jax.tree.map(one, declarations, updates, params, is_leaf=lambda leaf: isinstance(leaf, Param)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


SMALL = 2**16
"""Numbers of a leaf that is put together with others of its size before its squares are summed."""


def global_norm(tree: Tree) -> Scalar:
    """Euclidean norm over all leaves. Squares are summed as dot products: jaxlib 0.10.2 can crash in a plain sum.

    Small leaves are joined first: XLA makes several kernels of each sum, and those of sixty leaves were a third of the
    instructions of a small model. Over a mesh leaves lie in different ways and stay apart.
    """
    leaves = jax.tree.leaves(precise(tree))
    if active_mesh() is None:
        small = [leaf.ravel() for leaf in leaves if leaf.size <= SMALL]
        leaves = [leaf for leaf in leaves if leaf.size > SMALL] + ([jnp.concatenate(small)] if small else [])
    total = jnp.zeros((), jnp.float32)
    for leaf in leaves:
        axes = list(range(leaf.ndim))
        total = total + jnp.einsum(leaf, axes, leaf, axes, [])
    return jnp.sqrt(total)
