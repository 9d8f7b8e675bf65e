"""ModelConfig: what a model is, as a frozen dataclass that checks itself. No jax.

A kind of sublayer keeps its own fields in a group that it declares itself (`hybrid/sublayers/`), so the groups of a
config are those of the table of kinds:

    ModelConfig(pattern="(M-)3A-", vocab_size=257, d_model=64, n_heads=4, mamba={"d_state": 8})
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hybrid import pattern as language
from hybrid.sublayers import KINDS, ON_REPLACE, Kind, kind_of
from hybrid.sublayers.branches import combine
from hybrid.validation import (
    Checked,
    ConfigError,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    build,
    checked,
    hints,
    plain,
    unknown,
)

Dtype = Literal["float32", "bfloat16", "float64"]


@dataclass(frozen=True, init=False)
class ModelConfig(Checked):
    """Fields by name; `mamba={...}` (or a MambaConfig) sets the group of a kind, groups not given have their defaults.

    Raises ConfigError, naming the field, for whatever cannot be built.
    """

    pattern: str
    """The stack, a symbol a sublayer (hybrid/pattern.py)."""
    vocab_size: PositiveInt
    d_model: PositiveInt
    encoder: str | None = None
    """The stack of an encoder, whose output the `X` of the pattern read; None: a model of one stack."""
    symbols: tuple[tuple[str, str, tuple[tuple[str, Any], ...]], ...] = ()
    """Lower-case letters of the pattern: {"w": {"kind": "A", "n_kv_heads": 1}}."""
    n_heads: PositiveInt | None = None
    """Query heads; must be given where a kind of the pattern has heads."""
    n_kv_heads: PositiveInt | None = None
    """Key and value heads; None: as many as queries have."""
    head_dim: PositiveInt | None = None
    """None: d_model / n_heads."""
    d_ff: PositiveInt | None = None
    """Width of the channel sublayers; None: 4 d_model."""
    dropout: Probability = 0.0
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_position: Literal["before", "after", "both"] = "before"
    norm_eps: PositiveFloat = 1e-5
    positions: Literal["none", "learned", "sinusoidal", "rope", "alibi", "t5"] = "rope"
    """`learned` and `sinusoidal` are added to the embedding; `rope` turns the queries and keys of attention; `alibi`
    and `t5` add a bias of distance to its scores, fixed a head or learned (one table for all layers of a stack)."""
    relative_buckets: PositiveInt = 32
    """t5: learned numbers a head."""
    relative_distance: PositiveInt = 128
    """t5: farther than this, all distances are one."""
    max_length: PositiveInt | None = None
    """The longest sequence; must be given for learned positions."""
    token_types: NaturalInt = 0
    """Kinds of tokens with an embedding of their own that is added (BERT: 2); 0: none."""
    embedding_norm: bool = False
    """Normalises the sum of the embeddings (BERT)."""
    tie_embeddings: bool = True
    embedding_scale: PositiveFloat = 1.0
    """Multiplies the token embedding (Gemma: sqrt(d_model))."""
    head: Literal["linear", "transform"] = "linear"
    """`transform`: a square layer, GELU and a norm stand before the head (BERT's masked language model)."""
    head_bias: bool = False
    logit_scale: PositiveFloat = 1.0
    """Multiplies the logits (T5 with tied embeddings: 1 / sqrt(d_model))."""
    logit_softcap: PositiveFloat | None = None
    """c: logits become c tanh(logits / c)."""
    merge: Literal["sum", "mean"] = "sum"
    """How the branches of `[A|M]` come together: their sum, or the mean of each after a norm of its own."""
    init_std: PositiveFloat = 0.02
    residual_init: Literal["plain", "depth"] = "plain"
    """`depth` divides the initial output projections by sqrt(sublayers), as GPT-2 does."""
    compute_dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: Literal["none", "sublayer", "unit", "chunk"] = "none"
    """What the backward pass computes again instead of keeping. `chunk`, for very long sequences, is `sublayer` with
    the sublayers that allow it cut along the length (hybrid/chunks.py)."""
    scan_layers: Literal["auto", True, False] = "auto"
    """Compile repeated units once, under lax.scan; `auto` chooses by platform and depth."""
    groups: tuple[tuple[str, Any], ...] = ()
    """(group, config of the kind) for every kind; read as `config.mamba.d_state`."""

    def __init__(self, **values: Any) -> None:
        given = dict(values.pop("groups", ()))
        known = {field.name: field for field in dataclasses.fields(self)}
        groups = {kind.group: kind.config for kind in KINDS.values()}
        for name in values:
            if name not in known and name not in groups:
                raise unknown(name, name, [*(n for n in known if n != "groups"), *groups])
        for name in groups:
            given[name] = _group(groups[name], values.pop(name, given.get(name, {})), name)
        values["groups"] = tuple(sorted(given.items()))
        values["symbols"] = _symbols(values.get("symbols", ()))
        for name, field in known.items():
            if name not in values and field.default is dataclasses.MISSING:
                raise ConfigError(name, "must be given")
            object.__setattr__(self, name, values.get(name, field.default))
        self.__post_init__()

    def __getattr__(self, name: str) -> Any:
        if name != "groups" and not name.startswith("_"):
            for group, config in self.groups:
                if group == name:
                    return config
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def check(self) -> None:
        sequence = language.expand(self.pattern)
        for symbol in dict.fromkeys(sequence):
            kind, view = self.sublayer(symbol)
            kind.check(view)
            if kind.prepare is not None and self.encoder is None:
                raise ConfigError("encoder", f"must be given: {symbol} ({kind.group}) reads the output of an encoder")
        if self.encoder is not None:
            self._check_encoder()
        if self.positions == "t5" and self.relative_distance <= self.relative_buckets // 2:
            problem = f"{self.relative_distance} is not allowed; must be above half of relative_buckets"
            raise ConfigError("relative_distance", f"{problem} = {self.relative_buckets}")
        if self.positions in ("alibi", "t5") and self.n_heads is None:
            raise ConfigError("n_heads", f"must be given: {self.positions} positions have a number a head")
        if self.positions == "learned" and self.max_length is None:
            raise ConfigError("max_length", "must be given for learned positions")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ConfigError("d_model", f"{self.d_model} is not allowed; sinusoidal positions need an even number")

    def _check_encoder(self) -> None:
        try:
            encoder = self.encoder_config
        except ConfigError as error:
            raise ConfigError("encoder" if error.field == "pattern" else error.field, error.problem) from None
        if not any(kind.prepare is not None for kind, _ in self.parts()):
            raise ConfigError("encoder", f"{self.encoder!r} is not allowed; no X of {self.pattern!r} reads its output")
        assert encoder is not None

    @functools.cached_property
    def encoder_config(self) -> ModelConfig | None:
        """The encoder as a model of its own, without a head; None where there is none."""
        return None if self.encoder is None else dataclasses.replace(self, pattern=self.encoder, encoder=None)

    @functools.cached_property
    def sequence(self) -> tuple[str, ...]:
        """The expanded pattern: a symbol a sublayer."""
        return tuple(language.expand(self.pattern))

    @property
    def n_layers(self) -> int:
        """Residual sublayers."""
        return len(self.sequence)

    @property
    def width_ff(self) -> int:
        return self.d_ff or 4 * self.d_model

    @property
    def output_std(self) -> float:
        """The initial standard deviation of projections back into the residual stream."""
        return self.init_std * (self.n_layers**-0.5 if self.residual_init == "depth" else 1.0)

    def sublayer(self, symbol: str) -> tuple[Kind, ModelConfig]:
        """The kind that a symbol of the pattern stands for, and this config with the symbol's overrides in place."""
        return _resolve(self, symbol)

    def kinds(self) -> list[tuple[Kind, ModelConfig]]:
        """One entry a sublayer, in order."""
        return [self.sublayer(symbol) for symbol in self.sequence]

    def parts(self) -> list[tuple[Kind, ModelConfig]]:
        """Sublayers as the table of kinds has them: branches one by one, and the encoder's after the pattern's."""
        symbols = [symbol for sublayer in self.sequence for symbol in language.branches(sublayer)]
        encoder = self.encoder_config
        return [self.sublayer(symbol) for symbol in symbols] + ([] if encoder is None else encoder.parts())


@functools.lru_cache(maxsize=1024)
def _resolve(config: ModelConfig, symbol: str) -> tuple[Kind, ModelConfig]:
    letters = {letter: (kind, overrides) for letter, kind, overrides in config.symbols}
    if symbol.startswith("["):
        return combine(symbol), config
    if symbol not in letters:
        if symbol.islower():
            raise unknown("symbols", symbol, letters, f"the pattern's {symbol!r} is not defined")
        return kind_of(symbol), config
    base, overrides = letters[symbol]
    kind, view = kind_of(base), copy.copy(config)
    group = dict(plain(dict(config.groups)[kind.group]))
    own = {name: hint for name, hint in hints(ModelConfig).items() if name not in ("groups", "symbols", "pattern")}
    try:
        for name, value in overrides:
            if name in group:
                group[name] = value
            elif name in own:
                object.__setattr__(view, name, checked(name, value, own[name]))
            else:
                raise unknown(name, name, sorted({*group, *own}))
        groups = {**dict(config.groups), kind.group: build(kind.config, group)}  # fields as the user named them
    except ConfigError as error:
        raise error.within(f"symbols.{symbol}") from None
    object.__setattr__(view, "groups", tuple(sorted(groups.items())))
    return kind, view


ON_REPLACE.append(_resolve.cache_clear)


def _group(cls: type, value: Any, name: str) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(name, f"{value!r} is not allowed; must be a group of fields")
    return build(cls, value, name)


def _symbols(value: Any) -> tuple:
    if not isinstance(value, Mapping):
        if isinstance(value, tuple) and all(isinstance(row, tuple) and len(row) == 3 for row in value):
            return value  # what this function made, on the way through dataclasses.replace
        raise ConfigError("symbols", f"{value!r} is not allowed; must map a letter to its kind and overrides")
    rows = []
    for letter, entry in sorted(value.items()):
        if not (isinstance(letter, str) and len(letter) == 1 and letter.islower()):
            raise ConfigError("symbols", f"{letter!r} is not allowed; a symbol is one lower-case letter")
        if not isinstance(entry, Mapping) or "kind" not in entry:
            raise ConfigError(f"symbols.{letter}", "must be a group with the field kind")
        overrides = tuple(sorted((name, value) for name, value in entry.items() if name != "kind"))
        rows.append((letter, entry["kind"], overrides))
    return tuple(rows)


def as_plain(config: ModelConfig) -> dict[str, Any]:
    """The config as JSON has it; `ModelConfig(**as_plain(config)) == config`."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    groups = dict(values.pop("groups"))
    values["symbols"] = {letter: {"kind": kind, **dict(entry)} for letter, kind, entry in config.symbols}
    return {**plain(values), **plain(groups)}
