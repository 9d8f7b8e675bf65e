"""The record of a published family of models, and the small readers of config.json that families share. No jax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid.config import ModelConfig
from hybrid.interop.rules import Entry
from hybrid.validation import ConfigError, nearest

Json = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Family:
    """How one kind of published model is said in ours. A file of `families/` defines one as `FAMILY`."""

    model_types: tuple[str, ...]
    """The `model_type` of config.json; the first one is written."""
    read: Callable[[Json], ModelConfig]
    """config.json -> our config; ConfigError, naming the field, for what ours cannot do."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """Our config -> config.json; ConfigError for what the family cannot say. What it drops is found by reading back."""
    rules: Callable[[ModelConfig, Json], Sequence[Entry]]
    """The table of tensors; the second argument is the config.json that is read, or that `write` made."""
    renames: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement) for older names in files, tried in order on every name."""


# --- fields of config.json --------------------------------------------------------------------------------------------


def pick(json: Json, name: str, default: Any = ...) -> Any:
    """A field; `default` where it is absent or null (the published class's own default: files may leave it out).

    The value must be of the default's type.
    """
    value = json.get(name)
    if value is None:
        if default is ...:
            raise ConfigError(f"config.json: {name}", "must be given")
        return default
    wanted = (int, float) if type(default) is float else (type(default),)
    if default is not ... and type(value) not in wanted:
        raise ConfigError(f"config.json: {name}", f"{value!r} is not allowed; must be a value such as {default!r}")
    return value


def choose(json: Json, name: str, table: Mapping[Any, Any], default: Any = ...) -> Any:
    """table[field], or ConfigError with what is allowed. `default` is a key of the table."""
    value = pick(json, name, default)
    if not isinstance(value, str | int | float | bool) or value not in table:
        hint = nearest(value, map(str, table)) if isinstance(value, str) else ""
        allowed = ", ".join(map(str, table))
        raise ConfigError(f"config.json: {name}", f"{value!r} is not read{hint} (read: {allowed})")
    return table[value]


def require(json: Json, **wanted: Any) -> None:
    """ConfigError where a field is there and is not what the family's reader takes for granted."""
    for name, value in wanted.items():
        found = json.get(name, value)
        if found is not None and found != value:
            raise ConfigError(f"config.json: {name}", f"{found!r} is not read (read: {value!r})")


def say(field: str, value: Any, table: Mapping[Any, Any], family: str) -> Any:
    """The key of `table` whose entry is `value`, or ConfigError: the family has no word for it."""
    for theirs, ours in table.items():
        if ours == value:
            return theirs
    allowed = ", ".join(str(ours) for ours in dict.fromkeys(table.values()))
    raise ConfigError(field, f"{value!r} cannot be said in a {family} model (can: {allowed})")


def must(config: ModelConfig, family: str, **wanted: Any) -> None:
    """ConfigError where a field of the config is not what every model of the family has."""
    for name, value in wanted.items():
        found = getattr(config, name)
        if found != value:
            raise ConfigError(name, f"{found!r} cannot be said in a {family} model (can: {value!r})")


def repeats(config: ModelConfig, unit: str, family: str) -> int:
    """How often the pattern repeats `unit` (one letter a sublayer), or ConfigError."""
    n, rest = divmod(config.n_layers, len(unit))
    if rest or "".join(config.sequence) != unit * n:
        raise ConfigError("pattern", f"{config.pattern!r} cannot be said in a {family} model (can: ({unit})n)")
    return n


# --- words of several families ----------------------------------------------------------------------------------------

ACTIVATIONS = {
    "relu": "relu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
}
"""transformers' name of an activation -> ours, for an MLP without a gate."""

GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
}
"""The same for an MLP whose gate goes through it."""


def read_rope(json: Json, theta: float = 10000.0, fraction: float = 1.0) -> dict[str, Any]:
    """Our fields of rotary positions from `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`.

    `theta` and `fraction`, the part of a head that is turned, are the family's defaults.
    """
    said = {**pick(json, "rope_scaling", {}), **pick(json, "rope_parameters", {})}
    fields: dict[str, Any] = {"rope_theta": pick(said, "rope_theta", pick(json, "rope_theta", theta))}
    kind = said.get("rope_type", said.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_FIELDS:
        allowed = ", ".join(ROPE_FIELDS)
        raise ConfigError("config.json: rope_parameters", f"type {kind!r} is not read (read: {allowed})")
    if kind != "default":
        fields["rope_scaling"] = kind
    for theirs, ours in ROPE_FIELDS[kind].items():
        if theirs not in said:
            raise ConfigError(f"config.json: rope_parameters.{theirs}", f"must be given for type {kind!r}")
        fields[ours] = said[theirs]
    fraction = pick(said, "partial_rotary_factor", pick(json, "partial_rotary_factor", fraction))
    return fields if fraction == 1.0 else {**fields, "rope_fraction": fraction}


ROPE_FIELDS = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "low_freq_factor": "rope_low",
        "high_freq_factor": "rope_high",
        "original_max_position_embeddings": "rope_original_length",
    },
}
"""Type of scaling -> its fields there and here."""


def write_rope(group: Any) -> dict[str, Any]:
    """`rope_parameters` from the fields of an attention group."""
    scaling = getattr(group, "rope_scaling", "none")
    kind = "default" if scaling == "none" else scaling
    said: dict[str, Any] = {"rope_type": kind, "rope_theta": group.rope_theta}
    said |= {theirs: getattr(group, ours) for theirs, ours in ROPE_FIELDS[kind].items()}
    if getattr(group, "rope_fraction", 1.0) != 1.0:
        said["partial_rotary_factor"] = group.rope_fraction
    return said
