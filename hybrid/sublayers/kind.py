"""The contract of a sublayer: a kind is a record of pure functions and declared traits.

    spec(config)                              -> tree of Param
    apply(config, params, x, context)         -> y, Aux          a whole sequence, for training
    state(config, batch, capacity)            -> State           what decoding carries (a `struct`, batch on axis 0)
    extend(config, params, x, state, context) -> y, State, Aux   append any number of tokens
    prepare(config, params, memory, padding)  -> State           only kinds that read a memory, in the place of `state`

`config` is the ModelConfig as this sublayer sees it: with the overrides of its symbol already in place. x and y are
(batch, length, d_model); the residual and the norm around a sublayer belong to the model, not to the kind.

In `apply`, padding may stand anywhere and is not seen. In `extend`, it stands in front of a row (prompts of several
lengths in one batch), and what comes after is as if it were not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import struct

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class Traits:
    """What a kind declares of itself; the contract test holds it to this, and configs that need more are refused."""

    mixer: bool = True
    """Mixes positions (False: a channel sublayer, such as an MLP)."""
    causal: bool = True
    """No output depends on a later input."""
    reach: Literal["global", "window", "none"] = "global"
    """How far back an output can depend on inputs."""
    packing: Literal["exact", "refused"] = "exact"
    """Whether several documents may stand in one row, kept apart by segment ids."""
    max_length: int | None = None
    """The longest sequence, None for any."""
    decodable: bool = True
    together: int = 1
    """Positions that must stay on one device where rows are cut along their length."""
    whole_rows: bool = False
    """Works on whole rows: devices that share the length take some of its channels each instead."""
    chunk_exact: bool = True
    """Any way of cutting a sequence into chunks for `extend` gives the result of `apply`."""


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of sublayer. `group` names its fields in a config, `config` is the dataclass that checks them."""

    symbol: str
    group: str
    config: type
    traits: Callable[[ModelConfig], Traits]
    spec: Callable[[ModelConfig], dict[str, Any]]
    apply: Callable[..., tuple[Any, Aux]]
    reference: Callable[..., Any] | None = None
    """(config, params, x, context) -> y, as the paper writes it: loops and sums, no shared code with `apply`."""
    state: Callable[[ModelConfig, int, int], Any] | None = None
    extend: Callable[..., tuple[Any, Any, Aux]] | None = None
    prepare: Callable[..., Any] | None = None
    """The state from a memory (batch, memory length, d_model) and its padding: what does not change while decoding."""
    check: Callable[[ModelConfig], None] = field(default=lambda config: None)
    """Conditions that span the kind's fields and the model's; raises ConfigError."""
    counted: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the group under which its operations can be counted (a form of the operator without open loops)."""


@struct
class Context:
    """What a sublayer may know besides its input. Arrays are None where they do not apply."""

    positions: Any
    """(batch, length) int32: the position of each token in its document."""
    segment_ids: Any = None
    """(batch, length) int32: the document of each token in a packed row."""
    padding: Any = None
    """(batch, length) bool: True at real tokens."""
    memory: Any = None
    """(batch, memory length, d_model): what an encoder made."""
    memory_padding: Any = None
    dropout_key: Any = None
    """A random key, already folded with the global layer index; None in evaluation."""
    dropout_rate: Any = None
    """() the share that is dropped, where it is not the config's but traced (hybrid.forward)."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that the layers of a stack share: "relative_bias" (buckets, n_heads) where positions are T5's."""


@struct
class Aux:
    """What a sublayer returns beside its output; never hidden in module state."""

    losses: Mapping[str, Any] = field(default_factory=dict)
    """Scalars that are added to the objective."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Scalars to watch. A log has their mean over the layers, and the greatest of those called worst_..."""
    updates: Mapping[str, Any] = field(default_factory=dict)
    """New values of leaves that change without a gradient."""
