"""Sublayers and models as modules of flax.linen.

`params` holds the trained leaves under the names of our tree, `untrained` the others, which
`apply(..., mutable=["untrained"])` gives back changed. Dropout is on with `deterministic=False` and a key `dropout`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen

from hybrid.config import ModelConfig
from hybrid.interop.flax.common import Model, StreamState, Sublayer, joined, parted, sublayer_config, zeros
from hybrid.layout import Tree, arrange
from hybrid.sublayers import Aux

UNTRAINED = "untrained"


def linen_sublayer(symbol: str, config: ModelConfig | None = None, *, name: str | None = None, **fields: Any) -> Any:
    """One sublayer as a linen module: y = module(x), (batch, length, d_model), without norm and residual.

    symbol: as in a pattern, such as "M" or "[A|M]". fields: of ModelConfig: d_model, n_heads, mamba={...}. config: a
    model's config, whose fields are taken where they are not given. Raises ConfigError.
    """
    return LinenSublayer(config=sublayer_config(symbol, config, **fields), name=name)


def linen_model(config: ModelConfig, *, name: str | None = None) -> Any:
    """A whole model as a linen module: logits = module(tokens)."""
    return LinenModel(config=config, name=name)


def linen_variables(config: ModelConfig, params: Mapping[str, Any]) -> dict[str, Tree]:
    """Parameters of ours (initial, trained, or from published weights) as the variables of `linen_model(config)`."""
    trained, untrained = parted(Model(config).spec(), arrange(config, params))
    return {"params": trained, **({UNTRAINED: untrained} if untrained else {})}


class _Declared(linen.Module):
    """Parameters by declarations; how they are used is in the modules below."""

    config: ModelConfig

    def function(self) -> Any:
        raise NotImplementedError

    def setup(self) -> None:
        function = self.function()
        spec = function.spec()
        wanted, other = parted(spec, spec)
        # One key for all leaves: each is folded with its own path, so that a leaf more does not change the others.
        new = parted(spec, function.init(self.make_rng("params"))) if self.is_initializing() else None

        def make(group: int, name: str) -> Callable[..., Tree]:
            return lambda *_: new[group][name] if new else zeros(self.config, (wanted, other)[group][name])

        found = {name: self.param(name, make(0, name)) for name in wanted}
        self.changing = {name: self.variable(UNTRAINED, name, make(1, name)) for name in other}
        # Behind a function, or linen would turn the dicts into other mappings.
        self.trained: Callable[[], Tree] = lambda: found

    def tree(self) -> Tree:
        """The parameters as `hybrid` takes them."""
        return joined(_plain(self.trained()), {name: _plain(held.value) for name, held in self.changing.items()})

    def run(self, x: Any, deterministic: bool, given: Mapping[str, Any]) -> tuple[Any, Aux]:
        key = None if deterministic or not self.config.dropout else self.make_rng("dropout")
        function, tree = self.function(), self.tree()
        y, aux = function.forward(tree, x, dropout_key=key, **given)
        if aux.updates and self.is_mutable_collection(UNTRAINED) and not self.is_initializing():
            _, after = parted(function.spec(), function.updated(tree, aux))
            for name, value in after.items():
                self.changing[name].value = value
        return y, aux


class LinenSublayer(_Declared):
    """One kind of sublayer. `config` is of a model of this sublayer alone (see linen_sublayer)."""

    def function(self) -> Sublayer:
        return Sublayer(self.config)

    def __call__(self, x: Any, *, deterministic: bool = True, **given: Any) -> Any:
        """y. given: fields of hybrid.Context: positions, segment_ids, padding, memory, memory_padding, shared."""
        return self.run(x, deterministic, given)[0]

    def forward(self, x: Any, *, deterministic: bool = True, **given: Any) -> tuple[Any, Aux]:
        """y, and what the kind reports: losses for the objective, metrics, updates."""
        return self.run(x, deterministic, given)

    def init_state(self, batch: int, capacity: int, memory: Any = None, memory_padding: Any = None) -> StreamState:
        """A fresh state for decoding."""
        return self.function().init_state(self.tree(), batch, capacity, memory, memory_padding)

    def extend(self, x: Any, state: StreamState, padding: Any = None, shared: Any = None) -> tuple[Any, StreamState]:
        """y of any number of further positions, and the state after them."""
        return self.function().extend(self.tree(), x, state, padding, shared)


class LinenModel(_Declared):
    """A whole model."""

    def function(self) -> Model:
        return Model(self.config)

    def __call__(self, tokens: Any, *, deterministic: bool = True, **given: Any) -> Any:
        """Logits, at least float32. given: options of hybrid.forward: decoder_tokens, segment_ids, padding, ..."""
        hidden, _ = self.run(tokens, deterministic, given)
        return self.function().logits(self.tree(), hidden)

    def forward(self, tokens: Any, *, deterministic: bool = True, **given: Any) -> tuple[Any, Aux]:
        """Hidden states after the final norm, and what the sublayers report."""
        return self.run(tokens, deterministic, given)

    def logits(self, hidden: Any) -> Any:
        """The head alone."""
        return self.function().logits(self.tree(), hidden)

    def encode(self, tokens: Any, **given: Any) -> Any:
        """The memory that the encoder makes of tokens."""
        return self.function().encode(self.tree(), tokens, **given)

    def init_state(self, batch: int, capacity: int, memory: Any = None, memory_padding: Any = None) -> Any:
        """A fresh state for decoding."""
        return self.function().init_state(self.tree(), batch, capacity, memory, memory_padding)

    def extend(self, tokens: Any, state: Any, padding: Any = None) -> tuple[Any, Any]:
        """Logits of any number of further tokens, and the state after them."""
        return self.function().extend(self.tree(), tokens, state, padding)


def _plain(tree: Any) -> Any:
    """Mappings of linen as plain dicts."""
    return {name: _plain(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree
