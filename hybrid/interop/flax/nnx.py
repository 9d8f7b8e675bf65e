"""Sublayers and models as modules of flax.nnx.

Trained leaves are `nnx.Param` under the names of our tree, the others `Untrained`, which a call in training changes.
`module.train()` and `module.eval()` switch dropout and those changes on and off, as they do for nnx's own modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from hybrid.config import ModelConfig
from hybrid.interop.flax.common import Model, StreamState, Sublayer, joined, parted, sublayer_config
from hybrid.layout import Tree, arrange
from hybrid.sublayers import Aux
from hybrid.validation import ConfigError


class Untrained(nnx.Variable):
    """A leaf that changes without a gradient, such as the bias of loss-free balancing."""


def nnx_sublayer(symbol: str, config: ModelConfig | None = None, *, rngs: nnx.Rngs, **fields: Any) -> NnxSublayer:
    """One sublayer as an nnx module: y = module(x), (batch, length, d_model), without norm and residual.

    symbol: as in a pattern, such as "M" or "[A|M]". fields: of ModelConfig: d_model, n_heads, mamba={...}. config: a
    model's config, whose fields are taken where they are not given. Raises ConfigError.
    """
    return NnxSublayer(sublayer_config(symbol, config, **fields), rngs=rngs)


def nnx_model(
    config: ModelConfig, *, rngs: nnx.Rngs | None = None, params: Mapping[str, Any] | None = None
) -> NnxModel:
    """A whole model as an nnx module: logits = module(tokens).

    params: of ours (trained, or from published weights) in the place of initial values, for which `rngs` is needed.
    """
    return NnxModel(config, rngs=rngs, params=params)


class _Declared(nnx.Module):
    """Parameters by declarations; how they are used is in the modules below."""

    function: Any

    def _hold(self, params: Tree, rngs: nnx.Rngs | None) -> None:
        trained, untrained = parted(self.function.spec(), params)
        self.deterministic, self.names = False, tuple(params)
        has_dropout = self.function.config.dropout > 0 and rngs is not None
        self.rngs = rngs["dropout"].fork() if has_dropout and rngs is not None else nnx.data(None)
        for name in self.names:
            if hasattr(self, name):
                raise ConfigError("symbol", f"its parameter {name!r} has a name that nnx modules use otherwise")
            setattr(self, name, _variables(trained.get(name), untrained.get(name)))

    def tree(self) -> Tree:
        """The parameters as `hybrid` takes them."""
        return {name: _values(getattr(self, name)) for name in self.names}

    def _run(self, x: Any, given: Mapping[str, Any]) -> tuple[Any, Aux]:
        tree, key = self.tree(), None
        if self.function.config.dropout > 0 and not self.deterministic:
            if self.rngs is None:
                raise ConfigError("rngs", "must be given when the module is made: dropout is on (or call eval())")
            key = self.rngs()
        y, aux = self.function.forward(tree, x, dropout_key=key, **given)
        if aux.updates and not self.deterministic:
            after = self.function.updated(tree, aux)
            for name in self.names:
                _write(getattr(self, name), after[name])
        return y, aux


class NnxSublayer(_Declared):
    """One kind of sublayer. `config` is of a model of this sublayer alone (see nnx_sublayer)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.function = Sublayer(config)
        self._hold(self.function.init(rngs.params()), rngs)

    def __call__(self, x: Any, **given: Any) -> Any:
        """y. given: fields of hybrid.Context: positions, segment_ids, padding, memory, memory_padding, shared."""
        return self._run(x, given)[0]

    def forward(self, x: Any, **given: Any) -> tuple[Any, Aux]:
        """y, and what the kind reports: losses for the objective, metrics, updates."""
        return self._run(x, given)

    def init_state(self, batch: int, capacity: int, memory: Any = None, memory_padding: Any = None) -> StreamState:
        """A fresh state for decoding."""
        return self.function.init_state(self.tree(), batch, capacity, memory, memory_padding)

    def extend(self, x: Any, state: StreamState, padding: Any = None, shared: Any = None) -> tuple[Any, StreamState]:
        """y of any number of further positions, and the state after them."""
        return self.function.extend(self.tree(), x, state, padding, shared)


class NnxModel(_Declared):
    """A whole model."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs | None = None, params: Mapping[str, Any] | None = None):
        self.function = Model(config)
        if params is None:
            if rngs is None:
                raise ConfigError("rngs", "must be given, or params")
            params = self.function.init(rngs.params())
        self._hold(arrange(config, params), rngs)

    def __call__(self, tokens: Any, **given: Any) -> Any:
        """Logits, at least float32. given: options of hybrid.forward: decoder_tokens, segment_ids, padding, ..."""
        hidden, _ = self._run(tokens, given)
        return self.logits(hidden)

    def forward(self, tokens: Any, **given: Any) -> tuple[Any, Aux]:
        """Hidden states after the final norm, and what the sublayers report."""
        return self._run(tokens, given)

    def logits(self, hidden: Any) -> Any:
        """The head alone."""
        return self.function.logits(self.tree(), hidden)

    def encode(self, tokens: Any, **given: Any) -> Any:
        """The memory that the encoder makes of tokens."""
        return self.function.encode(self.tree(), tokens, **given)

    def init_state(self, batch: int, capacity: int, memory: Any = None, memory_padding: Any = None) -> Any:
        """A fresh state for decoding."""
        return self.function.init_state(self.tree(), batch, capacity, memory, memory_padding)

    def extend(self, tokens: Any, state: Any, padding: Any = None) -> tuple[Any, Any]:
        """Logits of any number of further tokens, and the state after them."""
        return self.function.extend(self.tree(), tokens, state, padding)


def _variables(trained: Any, untrained: Any) -> Any:
    """Nested dicts of arrays as nnx holds them."""
    if isinstance(trained, Mapping) or isinstance(untrained, Mapping):
        one, other = trained or {}, untrained or {}
        return nnx.Dict({name: _variables(one.get(name), other.get(name)) for name in joined(one, other)})
    return nnx.Param(trained) if trained is not None else Untrained(untrained)


def _values(held: Any) -> Any:
    return held[...] if isinstance(held, nnx.Variable) else {name: _values(held[name]) for name in held}


def _write(held: Any, value: Any) -> None:
    """New values of what is not trained."""
    if isinstance(held, Untrained):
        held[...] = value
    elif not isinstance(held, nnx.Variable):
        for name in held:
            _write(held[name], value[name])
