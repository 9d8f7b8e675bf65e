"""Param: one declaration of a leaf gives its initial value, shardings, decay mask and counts.

A model's parameters are nested dicts; how those of the stack lie is said in hybrid/layout.py. No jax until values are
made.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hybrid.layout import Tree, layers_of, layout
from hybrid.lazy import jax, jnp, np

if TYPE_CHECKING:
    from hybrid.config import ModelConfig

Init = Callable[[Any, tuple[int, ...], Any], Any]
"""(key, shape, dtype) -> array."""


@dataclass(frozen=True)
class Param:
    """The declaration of one array of parameters."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """A logical axis for each dimension (hybrid/sharding.py), None: never sharded."""
    init: Init
    decay: bool = True
    """Whether weight decay applies."""
    dtype: str | None = None
    """The least precision it is kept in; None: the model's param_dtype."""
    rate: float = 1.0
    """Multiplies the learning rate."""
    trainable: bool = True
    """False: changed by Aux.updates only, or frozen."""
    used: float = 1.0
    """The share of it that one token uses: k / n of the experts."""

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"{self.shape} has {len(self.shape)} dimensions and axes are {self.axes}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)


# --- initial values ---------------------------------------------------------------------------------------------------


def zeros(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return jnp.zeros(shape, dtype)


def ones(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return jnp.ones(shape, dtype)


def normal(std: float) -> Init:
    return lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype)


def uniform(bound: float) -> Init:
    """U(-bound, bound)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def fan_in_uniform(fan_in: int) -> Init:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what torch's Linear and Conv1d start from."""
    return uniform(fan_in**-0.5)


# --- trees of declarations --------------------------------------------------------------------------------------------


def is_param(value: Any) -> bool:
    return isinstance(value, Param)


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, leaf) of a nested dict, in sorted order, as jax has them."""
    for name in sorted(tree):
        if isinstance(tree[name], Mapping):
            yield from leaves(tree[name], (*path, name))
        else:
            yield (*path, name), tree[name]


def map_leaves(function: Callable[..., Any], tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Tree:
    """function(path, leaf) at every leaf of a nested dict."""
    return {
        name: map_leaves(function, value, (*path, name))
        if isinstance(value, Mapping)
        else function((*path, name), value)
        for name, value in tree.items()
    }


def norm_spec(config: ModelConfig) -> Tree:
    scale = Param((config.d_model,), ("embed",), ones, decay=False)
    if config.norm == "rmsnorm":
        return {"scale": scale}
    return {"scale": scale, "bias": Param((config.d_model,), ("embed",), zeros, decay=False)}


def layer_spec(config: ModelConfig, symbol: str) -> Tree:
    """The declarations of one residual sublayer: the kind's own, and its norms'."""
    kind, view = config.sublayer(symbol)
    norms = {"before": ("norm",), "after": ("norm",), "both": ("norm", "norm_after")}[config.norm_position]
    return {"sublayer": kind.spec(view), **{name: norm_spec(config) for name in norms}}


def declarations_per_layer(config: ModelConfig) -> Tree:
    """The tree of Param with one entry a layer, as checkpoints have it."""
    tree: Tree = {"embedding": _embedding_spec(config), **_stack_spec(config)}
    if config.encoder_config is not None:
        tree["encoder"] = _stack_spec(config.encoder_config)
    head = _head_spec(config)
    return {**tree, "head": head} if head else tree


def _embedding_spec(config: ModelConfig) -> Tree:
    def table(rows: int, axis: str | None) -> Param:
        return Param((rows, config.d_model), (axis, "embed"), normal(config.init_std))

    tree: Tree = {"tokens": table(config.vocab_size, "vocab")}
    if config.positions == "learned":
        assert config.max_length is not None
        tree["positions"] = table(config.max_length, None)
    if config.token_types:
        tree["types"] = table(config.token_types, None)
    if config.embedding_norm:
        tree["norm"] = norm_spec(config)
    return tree


def _stack_spec(config: ModelConfig) -> Tree:
    """One stack of sublayers: its layers, the norm after the last (post-norm stacks end with one already), and what the
    layers share."""
    kinds = {symbol: layer_spec(config, symbol) for symbol in dict.fromkeys(config.sequence)}
    tree: Tree = {"layers": {str(i): kinds[symbol] for i, symbol in enumerate(config.sequence)}}
    if config.norm_position != "after":
        tree["final_norm"] = norm_spec(config)
    if config.positions == "t5":
        assert config.n_heads is not None
        shape = (config.relative_buckets, config.n_heads)
        tree["shared"] = {"relative_bias": Param(shape, (None, "heads"), normal(config.init_std), decay=False)}
    return tree


def _head_spec(config: ModelConfig) -> Tree:
    width, vocabulary = config.d_model, config.vocab_size
    tree: Tree = {}
    if config.head == "transform":
        tree["transform"] = Param((width, width), ("embed", None), normal(config.init_std))
        tree["transform_bias"] = Param((width,), (None,), zeros, decay=False)
        tree["norm"] = norm_spec(config)
    if not config.tie_embeddings:
        tree["kernel"] = Param((width, vocabulary), ("embed", "vocab"), normal(config.init_std))
    if config.head_bias:
        tree["bias"] = Param((vocabulary,), ("vocab",), zeros, decay=False)
    return tree


def declarations(config: ModelConfig) -> Tree:
    """The tree of Param in the form that `config` trains in (stacked where its segments repeat)."""

    def arranged(config: ModelConfig, tree: Tree) -> Tree:
        stacked = {}
        for key in layout(config):
            layers = layers_of(key)
            spec = tree["layers"][str(layers[0])]
            stacked[key] = spec if ":" not in key else _stacked(spec, len(layers))
        return {**tree, "layers": stacked}

    whole = arranged(config, declarations_per_layer(config))
    if config.encoder_config is not None:
        whole["encoder"] = arranged(config.encoder_config, whole["encoder"])
    return whole


def _stacked(spec: Tree, n: int) -> Tree:
    return map_leaves(lambda _, param: replace(param, shape=(n, *param.shape), axes=(None, *param.axes)), spec)


# --- making values ----------------------------------------------------------------------------------------------------


def leaf_key(key: Any, path: tuple[str, ...]) -> Any:
    """The random key of a leaf: the root key folded with a digest of its path, so that leaves do not shift others."""
    return jax.random.fold_in(key, path_digest(path))


def leaf_dtype(config: ModelConfig, param: Param) -> Any:
    """param_dtype, or more where the declaration asks for it."""
    return jnp.promote_types(config.param_dtype, param.dtype or config.param_dtype)


def path_digest(path: tuple[str, ...]) -> int:
    """32 stable bits of a path (Python's hash is salted)."""
    return int.from_bytes(hashlib.sha256("/".join(path).encode()).digest()[:4], "big")


def init(config: ModelConfig, key: Any) -> Tree:
    """Initial parameters in the form that `config` trains in. key: a random key of jax.

    Leaves that are declared alike (those of the layers of one kind) are drawn by one operation, each from its own key,
    and the keys are made by one: random numbers take long to compile, and these are the same in half the time.
    """
    tree = declarations(config)
    groups: dict[Any, list[tuple[str, ...]]] = {}
    for path, param in leaves(tree):
        groups.setdefault(_alike(config, path, param), []).append(path)
    drawn = [layer for paths in groups.values() for path in paths for layer in _of_layers(path)]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.array([path_digest(path) for path in drawn], np.uint32))
    made: dict[tuple[str, ...], Any] = {}
    for (draw, shape, dtype, _), paths in groups.items():
        counts = [len(_of_layers(path)) for path in paths]
        mine, keys = keys[: sum(counts)], keys[sum(counts) :]
        values = jax.vmap(lambda k, draw=draw, shape=shape, dtype=dtype: draw(k, shape, dtype))(mine)
        for path, count in zip(paths, counts, strict=True):
            made[path] = values[0] if _of_layers(path) == [path] else values[:count]
            values = values[count:]
    return map_leaves(lambda path, _: made[path], tree)


DRAWN_TOGETHER = 2**20
"""Values of a leaf up to which it is drawn with others: the copies of large ones would cost memory."""


def _alike(config: ModelConfig, path: tuple[str, ...], param: Param) -> tuple[Any, ...]:
    """(init, shape of one layer's leaf, type, what keeps it apart): the same for leaves that are drawn together."""
    shape = param.shape if _of_layers(path)[0] == path else param.shape[1:]
    apart = path if math.prod(param.shape) > DRAWN_TOGETHER else ()
    return param.init, shape, leaf_dtype(config, param), apart


def _of_layers(path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The paths of the leaves, one a layer, that a leaf of layers "0:28:2" is the stack of; else the path itself."""
    at = path.index("layers") + 1 if "layers" in path else 0
    if not at or ":" not in path[at]:
        return [path]
    return [(*path[:at], str(layer), *path[at + 1 :]) for layer in layers_of(path[at])]


def abstract(config: ModelConfig) -> Tree:
    """Shapes and types of the parameters in the form that `config` trains in, without making them."""

    def one(_: tuple[str, ...], param: Param) -> Any:
        return jax.ShapeDtypeStruct(param.shape, leaf_dtype(config, param))

    return map_leaves(one, declarations(config))
