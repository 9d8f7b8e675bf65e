"""Frozen dataclasses that check every field when they are made, and errors that name the field. No jax here.

    @dataclass(frozen=True)
    class MambaConfig(Checked):
        d_state: PositiveInt = 16
        scan: Literal["auto", "sequential"] = "auto"

`build(MambaConfig, {"d_stat": 4}, "mamba")` raises
`mamba.d_stat: unknown field; did you mean 'd_state'? (allowed: d_state, scan)`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union

T = TypeVar("T")


class ConfigError(ValueError):
    """A value that a person gave and that cannot be used: one line with field, value, what is allowed, nearest name."""

    def __init__(self, field: str, problem: str):
        self.field, self.problem = field, problem
        super().__init__(f"{field}: {problem}" if field else problem)

    def within(self, group: str) -> ConfigError:
        """The same error seen from one level up: `d_state` within `mamba` is `mamba.d_state`."""
        return ConfigError(f"{group}.{self.field}" if self.field else group, self.problem)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """'; did you mean 'x'?' when something like `name` is allowed, else nothing."""
    allowed = list(allowed)
    folded = {option.casefold(): option for option in allowed}
    match = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[match[0]]!r}?" if match else ""


def unknown(field: str, name: str, allowed: Iterable[str], what: str = "unknown field") -> ConfigError:
    """The error for a name that is none of `allowed`."""
    allowed = list(allowed)
    return ConfigError(field, f"{what}{nearest(name, allowed)} (allowed: {', '.join(allowed)})")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition on a value, and the words that say it."""

    holds: Callable[[Any], bool]
    words: str


def at_least(low: float) -> Rule:
    return Rule(lambda value: value >= low, f"at least {low:g}")


def above(low: float) -> Rule:
    return Rule(lambda value: value > low, f"above {low:g}")


def within(low: float, high: float) -> Rule:
    """low <= value < high."""
    return Rule(lambda value: low <= value < high, f"at least {low:.10g} and below {high:.10g}")


def part() -> Rule:
    """0 < value <= 1."""
    return Rule(lambda value: 0 < value <= 1, "above 0 and at most 1")


PositiveInt = Annotated[int, at_least(1)]
NaturalInt = Annotated[int, at_least(0)]
PositiveFloat = Annotated[float, above(0)]
NaturalFloat = Annotated[float, at_least(0)]
Probability = Annotated[float, within(0, 1)]
Share = Annotated[float, part()]


class Checked:
    """Base of the config dataclasses: types and rules from the annotations, then `check()` for what spans fields."""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():  # type: ignore[arg-type]
            object.__setattr__(self, name, checked(name, getattr(self, name), hint))
        self.check()

    def check(self) -> None:
        """Conditions over several fields; raises ConfigError."""


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Field name -> its annotation with rules, resolved."""
    resolved = typing.get_type_hints(cls, include_extras=True)
    return {field.name: resolved[field.name] for field in dataclasses.fields(cls)}


def checked(field: str, value: Any, hint: Any) -> Any:
    """`value` as `hint` asks for it (int to float, list to tuple), or ConfigError."""
    rules: list[Rule] = []
    if typing.get_origin(hint) is Annotated:
        hint, *extra = typing.get_args(hint)
        rules = [rule for rule in extra if isinstance(rule, Rule)]
    value = _typed(field, value, hint, rules)
    for rule in rules:
        if value is not None and not rule.holds(value):
            raise ConfigError(field, f"{value!r} is not allowed; must be {_words(hint, rules)}")
    return value


def _typed(field: str, value: Any, hint: Any, rules: list[Rule]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_that_fits(field, value, hint)
    if origin is Literal:
        return _literal(field, value, args)
    if origin is tuple:
        return _tuple(field, value, hint, args)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return build(typing.cast(type, hint), value, field)
        if isinstance(value, typing.cast(type, hint)):
            return value
        raise ConfigError(field, f"{value!r} is not allowed; must be a group of fields")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    wanted = typing.get_origin(hint) or hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(field, f"{value!r} is not allowed; must be {_words(hint, rules)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(field, f"{value!r} is not allowed; must be a finite number")
    return value


def _first_that_fits(field: str, value: Any, hint: Any) -> Any:
    options = typing.get_args(hint)
    if value is None and type(None) in options:
        return None
    error: ConfigError | None = None
    for option in options:
        if option is type(None):
            continue
        try:
            return checked(field, value, option)
        except ConfigError as failure:
            error = error or failure
    assert error is not None
    raise error


def _literal(field: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    for option in allowed:  # `is` on types: True is not the literal 1
        if type(option) is type(value) and option == value:
            return value
    names = [str(option) for option in allowed]
    hint = nearest(value, names) if isinstance(value, str) else ""
    raise ConfigError(field, f"{value!r} is not allowed{hint} (allowed: {', '.join(names)})")


def _tuple(field: str, value: Any, hint: Any, args: tuple[Any, ...]) -> tuple:
    if not isinstance(value, tuple | list):
        raise ConfigError(field, f"{value!r} is not allowed; must be {_words(hint, [])}, such as (1, 2)")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(checked(f"{field}[{i}]", item, args[0]) for i, item in enumerate(value))
    if args and len(args) != len(value):
        raise ConfigError(field, f"{value!r} is not allowed; must have {len(args)} entries")
    return tuple(checked(f"{field}[{i}]", item, arg) for i, (item, arg) in enumerate(zip(value, args, strict=False)))


_NAMES = {int: "an integer", float: "a finite number", str: "a string", bool: "True or False"}


def _words(hint: Any, rules: list[Rule]) -> str:
    if typing.get_origin(hint) is tuple:
        return "a tuple"
    name = _NAMES.get(hint, getattr(hint, "__name__", str(hint)))
    return " ".join([name, *(rule.words for rule in rules)])


def build(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """An instance of the dataclass `cls` from plain values; every error names its field from `path` down."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise unknown(f"{path}.{name}" if path else name, name, names)
    try:
        return cls(**values)
    except ConfigError as error:
        raise (error.within(path) if path else error) from None
    except TypeError:
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in values and _required(f)]  # type: ignore[arg-type]
        if missing:
            raise ConfigError(f"{path}.{missing[0]}" if path else missing[0], "must be given") from None
        raise


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as JSON has them (the inverse of `build`)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value
