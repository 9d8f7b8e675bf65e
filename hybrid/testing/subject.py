"""What the checks look at: one kind under one config, with parameters, inputs and compiled functions made once."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from hybrid.config import ModelConfig
from hybrid.model import encode, forward, init_state
from hybrid.params import declarations, init, map_leaves
from hybrid.sublayers import KINDS, Aux, Context, Kind, kind_of
from hybrid.sublayers.branches import combine

BATCH, LENGTH = 2, 13
"""Of the inputs. The length is odd, prime, and longer than any short convolution."""

# Compiling is nearly all that a check costs; programs this small need no optimisation by LLVM.
compiled = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)

F = TypeVar("F", bound=Callable[..., None])


def in_float64(check: F) -> F:
    """Runs a check with float64 arrays switched on."""

    @functools.wraps(check)
    def run(*args: Any, **options: Any) -> None:
        with jax.enable_x64(True):
            check(*args, **options)

    return run  # type: ignore[return-value]


def example(symbol: str, **fields: Any) -> ModelConfig:
    """A very small config of one sublayer; `fields` are those of ModelConfig."""
    encoder = {"encoder": "-"} if symbol in KINDS and KINDS[symbol].prepare else {}
    return ModelConfig(**{"pattern": symbol, "vocab_size": 19, "d_model": 8, "n_heads": 2, **encoder, **fields})


def model_forward(config: ModelConfig, params: Any, tokens: Any, **options: Any) -> tuple[Any, Aux]:
    """hybrid.forward; where there is an encoder it reads the same tokens backwards."""
    if config.encoder is None:
        return forward(config, params, tokens, **options)
    return forward(config, params, tokens[:, ::-1], decoder_tokens=tokens, **options)


def model_state(config: ModelConfig, params: Any, tokens: Any, capacity: int) -> Any:
    """hybrid.init_state for `capacity` tokens, with the memory that model_forward's encoder makes."""
    if config.encoder is None:
        return init_state(config, tokens.shape[0], capacity)
    memory = encode(config, params, tokens[:, ::-1])
    return init_state(config, tokens.shape[0], capacity, params=params, memory=memory)


class Subject:
    """A kind as a config has it: the first symbol of the pattern that stands for the kind is looked at alone."""

    def __init__(self, kind: Kind | str, config: ModelConfig | None = None):
        if isinstance(kind, str):
            kind = combine(kind) if kind.startswith("[") else kind_of(kind)
        self.kind = kind
        config = example(self.kind.symbol) if config is None else config
        standing = [s for s in config.sequence if config.sublayer(s)[0].group == self.kind.group]
        if not standing:
            raise ValueError(f"the pattern {config.pattern!r} has no {self.kind.symbol} ({self.kind.group})")
        self.symbol = standing[0]
        self.given = dataclasses.replace(config, pattern=self.symbol, dropout=0.0, remat="none")
        self.config = dataclasses.replace(self.given, param_dtype="float64", compute_dtype="float64")
        self.view = self.config.sublayer(self.symbol)[1]
        self.traits = self.kind.traits(self.view)
        self._rounding: dict[bool, float] = {}

    def __str__(self) -> str:
        return f"{self.symbol} ({self.kind.group})"

    def stack(self, repeats: int = 1, **fields: Any) -> ModelConfig:
        """A float64 model of this sublayer, repeated."""
        return dataclasses.replace(self.config, pattern=f"{self.symbol}{repeats}", **fields)

    @property
    def limit(self) -> int:
        """The longest sequence that may be asked for."""
        own, model = self.traits.max_length, self.config.max_length
        return min(own or 1 << 30, (model or 1 << 30) if self.config.positions == "learned" else 1 << 30)

    def tokens(self, batch: int = BATCH, length: int = LENGTH) -> Any:
        draw = np.random.default_rng(0)
        return jnp.asarray(draw.integers(0, self.config.vocab_size, (batch, min(length, self.limit))), jnp.int32)

    def inputs(self, batch: int = BATCH, length: int = LENGTH, seed: int = 0) -> Any:
        """(batch, length, d_model) float64, as a norm gives them."""
        draw = np.random.default_rng(seed)
        return jnp.asarray(draw.standard_normal((batch, min(length, self.limit), self.config.d_model)))

    @functools.cached_property
    def initial(self) -> Any:
        """Initial parameters of the sublayer, float64."""
        return self.init(self.config)["layers"]["0"]["sublayer"]

    @staticmethod
    def init(config: ModelConfig, seed: int = 0) -> Any:
        """hybrid.init in one program."""
        return compiled(functools.partial(init, config))(jax.random.key(seed))

    @functools.cached_property
    def params(self) -> Any:
        """Parameters away from their initial values, so that no bias is zero and no scale is one."""
        leaves, structure = jax.tree.flatten(self.initial)
        draw = np.random.default_rng(1)
        moved = [leaf + 0.1 * jnp.asarray(draw.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves]
        return jax.tree.unflatten(structure, moved)

    @functools.cached_property
    def apply(self) -> Callable[..., Any]:
        """(params, x, segment_ids, padding) -> y, compiled."""
        return compiled(self._apply)

    def _apply(self, params: Any, x: Any, segment_ids: Any = None, padding: Any = None) -> Any:
        return self.kind.apply(self.view, params, x, self.context(x, segment_ids, padding))[0]

    def context(self, x: Any, segment_ids: Any = None, padding: Any = None) -> Context:
        """For inputs x: with a memory if the kind reads one, and with what the layers of a model share."""
        made = context(x, segment_ids, padding)
        if self.kind.prepare is not None:
            memory, valid = self.memory(x.shape[0])
            made = dataclasses.replace(made, memory=memory.astype(x.dtype), memory_padding=valid)
        return dataclasses.replace(made, shared=jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), self.shared))

    def memory(self, batch: int) -> tuple[Any, Any]:
        """A random memory for each row, and which of it is real: one position less in each row."""
        length = min(LENGTH, self.limit)
        draw = np.random.default_rng(4)
        memory = jnp.asarray(draw.standard_normal((batch, length, self.config.d_model)))
        return memory, jnp.arange(length)[None] < length - jnp.arange(batch)[:, None]

    @functools.cached_property
    def shared(self) -> Any:
        """Random values (on the host) of what the layers of a model share."""
        draw = np.random.default_rng(5)
        declared = declarations(self.config).get("shared", {})
        return map_leaves(lambda _, param: draw.standard_normal(param.shape), declared)

    def fresh(self, batch: int, capacity: int) -> Any:
        """A state before the first token; of a kind that reads a memory, the one that it prepares."""
        if self.kind.prepare is not None:
            return self.kind.prepare(self.view, self.params, *self.memory(batch))
        assert self.kind.state is not None
        return self.kind.state(self.view, batch, capacity)

    def _reference(self, params: Any, x: Any, segment_ids: Any = None, padding: Any = None) -> Any:
        assert self.kind.reference is not None, f"{self} has no naive reference"
        return self.kind.reference(self.view, params, x, self.context(x, segment_ids, padding))

    @functools.cached_property
    def reference(self) -> Callable[..., Any]:
        return compiled(self._reference)

    @functools.cached_property
    def gradients(self) -> Callable[..., Any]:
        """(params, x, weights, segment_ids, padding) -> y, gradients of sum(weights y) to params and x."""
        return self._gradients(self._apply)

    @functools.cached_property
    def reference_gradients(self) -> Callable[..., Any]:
        return self._gradients(self._reference)

    def _gradients(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def loss(params: Any, x: Any, weights: Any, segment_ids: Any, padding: Any) -> Any:
            y = function(params, x, segment_ids, padding)
            return (weights * y).sum(), y

        def run(*args: Any) -> Any:
            (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*args)
            return y, gradients

        return compiled(run)

    @functools.cached_property
    def extend(self) -> Callable[..., Any]:
        """(params, x, state, start, padding=None) -> y, state; compiled once for each number of tokens."""
        kind_extend = self.kind.extend
        assert kind_extend is not None, f"{self} says that it is decodable and has no extend"

        def run(params: Any, x: Any, state: Any, start: Any, padding: Any = None) -> Any:
            count = jnp.broadcast_to(jnp.arange(1, x.shape[1] + 1, dtype=jnp.int32), x.shape[:2])
            if padding is not None:
                count = jnp.cumsum(padding, axis=1, dtype=jnp.int32)
            positions = jnp.maximum(start + count - 1, 0)
            about = Context(positions=positions, padding=padding, shared=jax.tree.map(jnp.asarray, self.shared))
            y, state, _ = kind_extend(self.view, params, x, state, about)
            return y, state

        return compiled(run)

    @functools.cached_property
    def influence(self) -> np.ndarray:
        """[t, s]: the greatest |d(y[t] w) / dx[s]| over the channels of x, for random w; one row, one document."""
        return self.influence_of(self.inputs(1))

    def influence_of(self, x: Any, segment_ids: Any = None) -> np.ndarray:
        """The same for a given row."""
        weights = jnp.asarray(np.random.default_rng(2).standard_normal(x.shape[1:]))

        params = self.params

        def run(x: Any, segment_ids: Any) -> Any:
            return (self._apply(params, x, segment_ids)[0] * weights).sum(-1)

        return np.asarray(jnp.abs(compiled(jax.jacrev(run))(x, segment_ids)).max(-1)[:, 0])

    def rounding(self, segment_ids: Any = None) -> float:
        """What counts as zero beside one: exactly 0, and float64 noise where a Fourier transform mixes positions."""
        packed = segment_ids is not None
        if packed not in self._rounding:
            program = str(jax.make_jaxpr(self._apply)(self.params, self.inputs(1), segment_ids))
            self._rounding[packed] = 1e-12 if "fft" in program else 0.0
        return self._rounding[packed]


def context(x: Any, segment_ids: Any = None, padding: Any = None) -> Context:
    from hybrid.positions import in_document

    index = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    positions = index if segment_ids is None else in_document(segment_ids)
    return Context(positions=positions, segment_ids=segment_ids, padding=padding)


def same(subject: Subject, what: str, one: Any, other: Any, tolerance: float = 1e-9) -> None:
    """AssertionError that names the leaf unless both trees are equal to `tolerance` of their greatest value."""
    first = jax.tree_util.tree_leaves_with_path(one)
    second = jax.tree_util.tree_leaves_with_path(other)
    assert [path for path, _ in first] == [path for path, _ in second], f"{subject}: {what}: the trees differ"
    for (path, a), (_, b) in zip(first, second, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, f"{subject}: {what}: {jax.tree_util.keystr(path)} is {a.shape}, not {b.shape}"
        error = float(np.abs(a - b).max(initial=0.0))
        scale = 1.0 + float(np.abs(b).max(initial=0.0))
        fine = math.isfinite(error) and error <= tolerance * scale
        assert fine, f"{subject}: {what}: differs by {error:.2g} at {jax.tree_util.keystr(path) or 'y'}"
