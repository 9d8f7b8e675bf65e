"""What the modules of both Flax APIs wrap: a sublayer and a model as functions of their parameters. No Flax here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import hybrid
from hybrid.config import ModelConfig
from hybrid.layout import Tree
from hybrid.lazy import struct
from hybrid.model import forward, logits
from hybrid.params import Param, declarations, init, leaf_dtype, leaf_key, leaves, map_leaves
from hybrid.positions import documents, in_document
from hybrid.sublayers import KINDS, Aux, Context, Kind
from hybrid.updates import replaced, updated
from hybrid.validation import ConfigError

PREFIX = ("layers", "0", "sublayer")
"""Where a sublayer's parameters lie in a model of it alone; their random keys are those of that model."""


def sublayer_config(symbol: str, config: ModelConfig | None = None, **fields: Any) -> ModelConfig:
    """The config of a model of this sublayer alone.

    symbol: as in a pattern: "M", a letter that `config` defines, or branches such as "[A|M]". fields: of ModelConfig,
    with d_model among them where no config is given. Raises ConfigError.
    """
    if config is not None:
        made = dataclasses.replace(config, pattern=symbol, encoder=_encoder(symbol, config), **fields)
    else:
        made = ModelConfig(**{"pattern": symbol, "vocab_size": 1, "encoder": _encoder(symbol), **fields})
    if made.n_layers != 1:
        raise ConfigError("symbol", f"{symbol!r} is not allowed; must be one sublayer, such as 'M' or '[A|M]'")
    return made


def _encoder(symbol: str, config: ModelConfig | None = None) -> str | None:
    """A pattern has an encoder where, and only where, something of it reads one."""
    letters = {letter: kind for letter, kind, _ in config.symbols} if config is not None else {}
    base = letters.get(symbol, symbol)
    return "-" if base in KINDS and KINDS[base].prepare is not None else None


@struct
class StreamState:
    """What a sublayer carries in decoding, and how many tokens each row has read."""

    inner: Any
    length: Any
    """(batch,) int32"""


@dataclass(frozen=True)
class Sublayer:
    """y = f(x) of one kind, without norm and residual; `dropout` of the config falls on y."""

    config: ModelConfig

    @functools.cached_property
    def kind(self) -> Kind:
        return self.config.kinds()[0][0]

    @functools.cached_property
    def view(self) -> ModelConfig:
        return self.config.kinds()[0][1]

    def spec(self) -> Tree:
        return self.kind.spec(self.view)

    def init(self, key: Any) -> Tree:
        """The initial values that `hybrid.init(config, key)` has for this sublayer."""

        def make(path: tuple[str, ...], param: Param) -> Any:
            return param.init(leaf_key(key, (*PREFIX, *path)), param.shape, leaf_dtype(self.config, param))

        return map_leaves(make, self.spec())

    def forward(self, params: Tree, x: Any, dropout_key: Any = None, **given: Any) -> tuple[Any, Aux]:
        """y (batch, length, d_model) and what the kind reports. given: fields of Context."""
        context = self._context(x, given)
        if dropout_key is not None:
            dropout_key = jax.random.fold_in(dropout_key, 0)
            context = dataclasses.replace(context, dropout_key=dropout_key)
        y, aux = self.kind.apply(self.view, params, x, context)
        return dropped(y, self.config.dropout, dropout_key), aux

    def _context(self, x: Any, given: Mapping[str, Any]) -> Context:
        traits = self.kind.traits(self.view)
        given = {name: value for name, value in given.items() if value is not None}
        if traits.max_length is not None and x.shape[1] > traits.max_length:
            raise ConfigError(self.kind.group, f"takes at most {traits.max_length} tokens; {x.shape[1]} were given")
        if "segment_ids" in given:
            if traits.packing == "refused":
                raise ConfigError(self.kind.group, "mixes packed documents; segment_ids are not allowed")
            given["segment_ids"] = documents(given["segment_ids"])
        given.setdefault("positions", positions(x, given.get("segment_ids"), given.get("padding")))
        return Context(**given)

    def init_state(
        self, params: Tree, batch: int, capacity: int, memory: Any = None, memory_padding: Any = None
    ) -> StreamState:
        """A fresh state for `capacity` tokens a row."""
        traits = self.kind.traits(self.view)
        if self.kind.state is None or not traits.decodable:
            raise ConfigError("symbol", f"{self.kind.symbol} ({self.kind.group}) cannot decode step by step")
        if traits.max_length is not None and capacity > traits.max_length:
            problem = f"{capacity} is not allowed; {self.kind.group} takes at most {traits.max_length}"
            raise ConfigError("capacity", problem)
        if self.kind.prepare is None:
            inner = self.kind.state(self.view, batch, capacity)
        elif memory is None:
            raise ConfigError("memory", f"must be given: {self.kind.symbol} ({self.kind.group}) reads one")
        else:
            inner = self.kind.prepare(self.view, params, memory, memory_padding)
        return StreamState(inner=inner, length=jnp.zeros((batch,), jnp.int32))

    def extend(
        self, params: Tree, x: Any, state: StreamState, padding: Any = None, shared: Any = None
    ) -> tuple[Any, StreamState]:
        """y of the new positions, and the state after them; padding stands in front of a row (True at real ones)."""
        count = jnp.broadcast_to(jnp.arange(1, x.shape[1] + 1, dtype=jnp.int32), x.shape[:2])
        if padding is not None:
            count = jnp.cumsum(padding, axis=1, dtype=jnp.int32)
        at = jnp.maximum(state.length[:, None] + count - 1, 0)
        context = Context(positions=at, padding=padding, shared=shared or {})
        assert self.kind.extend is not None
        y, inner, _ = self.kind.extend(self.view, params, x, state.inner, context)
        return y, StreamState(inner=inner, length=state.length + count[:, -1])

    def updated(self, params: Tree, aux: Aux) -> Tree:
        """The parameters after what the kind changes itself."""
        for name, value in aux.updates.items():
            params = replaced(params, name.split("/"), value)
        return params


@dataclass(frozen=True)
class Model:
    """A whole model: the functions of `hybrid` with its config."""

    config: ModelConfig

    def spec(self) -> Tree:
        return declarations(self.config)

    def init(self, key: Any) -> Tree:
        return init(self.config, key)

    def forward(self, params: Tree, tokens: Any, dropout_key: Any = None, **given: Any) -> tuple[Any, Aux]:
        """Hidden states after the final norm, and what the sublayers report. given: options of `hybrid.forward`."""
        return forward(self.config, params, tokens, dropout_key=dropout_key, **given)

    def logits(self, params: Tree, hidden: Any) -> Any:
        return logits(self.config, params, hidden)

    def init_state(
        self, params: Tree, batch: int, capacity: int, memory: Any = None, memory_padding: Any = None
    ) -> Any:
        return hybrid.init_state(
            self.config, batch, capacity, params=params, memory=memory, memory_padding=memory_padding
        )

    def extend(self, params: Tree, tokens: Any, state: Any, padding: Any = None) -> tuple[Any, Any]:
        return hybrid.extend(self.config, params, tokens, state, padding)

    def encode(self, params: Tree, tokens: Any, **given: Any) -> Any:
        return hybrid.encode(self.config, params, tokens, **given)

    def updated(self, params: Tree, aux: Aux) -> Tree:
        return updated(self.config, params, aux.updates)


def positions(x: Any, segment_ids: Any, padding: Any) -> Any:
    """(batch, length) int32: counted in each document, among real tokens."""
    if segment_ids is not None:
        return in_document(segment_ids)
    if padding is not None:
        return jnp.maximum(jnp.cumsum(padding, axis=1, dtype=jnp.int32) - 1, 0)
    return jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])


def dropped(x: Any, rate: float, key: Any) -> Any:
    """x with dropout, as the model applies it to what a sublayer gives."""
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)


def zeros(config: ModelConfig, spec: Any) -> Any:
    """Zeros in the shape of every declaration: what stands for values where only shapes are asked for."""
    if isinstance(spec, Param):
        return jnp.zeros(spec.shape, leaf_dtype(config, spec))
    return {name: zeros(config, value) for name, value in spec.items()}


def parted(spec: Tree, tree: Tree) -> tuple[Tree, Tree]:
    """(trained, untrained) leaves of a tree, each as nested dicts without empty ones."""
    trainable = {path: param.trainable for path, param in leaves(spec)}
    return _only(tree, lambda path: trainable[path]), _only(tree, lambda path: not trainable[path])


def _only(tree: Tree, keep: Callable[[tuple[str, ...]], bool], path: tuple[str, ...] = ()) -> Tree:
    kept: Tree = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            inner = _only(dict(value), keep, (*path, name))
            if inner:
                kept[name] = inner
        elif keep((*path, name)):
            kept[name] = value
    return kept


def joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> Tree:
    """Nested dicts with the leaves of both."""
    tree = {name: dict(value) if isinstance(value, Mapping) else value for name, value in one.items()}
    for name, value in other.items():
        both = name in tree and isinstance(value, Mapping)
        tree[name] = joined(tree[name], value) if both else value
    return tree
