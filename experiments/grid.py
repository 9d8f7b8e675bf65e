"""The algebra of a sweep. A sweep is a list of overrides, each a dict of dotted fields: one entry is one trial.

    def sweep():
        placements = chain(
            point({"model.ratio": 0}),
            product(axis("model.ratio", ["1:7", "1:3"]), axis("model.placement", ["even", "first"])),
        )
        return product(placements, axis("optimizer.learning_rate", [1e-3, 3e-3]))     # 5 placements x 2 rates

Orders are kept: in a product the last factor varies fastest. Errors are ConfigErrors of the field `sweep`, or of the
field that is in trouble. No jax here.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hybrid.validation import ConfigError

Sweep = list[dict[str, Any]]
Distribution = Callable[[random.Random], Any]
"""Draws one value from a source of random numbers."""

MAX_TRIALS = 100_000  # a slip in a product should not fill the memory

_FIELD = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)


def point(fields: Mapping[str, Any] | None = None, **more: Any) -> Sweep:
    """One trial: `point({"model.d_model": 64}, seed=1)`; `point()` changes nothing."""
    override = {**(fields or {}), **more}
    if len(override) < len(fields or {}) + len(more):
        raise ConfigError(next(name for name in more if name in (fields or {})), "set twice in one point")
    for name in override:
        _check_field(name)
    return [_merged([{name: value} for name, value in override.items()])]


def axis(field: str, values: Iterable[Any]) -> Sweep:
    """One trial per value of a field."""
    _check_field(field)
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ConfigError(field, f"{values!r} is not allowed; an axis needs a list of values, such as [1e-3, 3e-3]")
    values = list(values)
    if not values:
        raise ConfigError(field, "an axis needs at least one value")
    return [{field: value} for value in values]


def product(*sweeps: Sweep) -> Sweep:
    """Every combination of one entry of each; factors that set the same field are refused."""
    size = math.prod(len(_checked(sweep)) for sweep in sweeps)
    if size > MAX_TRIALS:
        raise ConfigError("sweep", f"a product of {size} trials is not allowed; must be at most {MAX_TRIALS}")
    return [_merged(entries) for entries in itertools.product(*sweeps)]


def chain(*sweeps: Sweep) -> Sweep:
    """One sweep after another."""
    return [entry for sweep in sweeps for entry in _checked(sweep)]


def zipped(*sweeps: Sweep) -> Sweep:
    """The first entries together, the second entries together, ...: all must be of one length."""
    lengths = [len(_checked(sweep)) for sweep in sweeps]
    if len(set(lengths)) > 1:
        raise ConfigError(
            "sweep", f"zipped sweeps have {' and '.join(map(str, lengths))} entries; must be equally many"
        )
    return [_merged(entries) for entries in zip(*sweeps, strict=True)]


def prefix(group: str, sweep: Sweep) -> Sweep:
    """The sweep with every field inside a group: `prefix("optimizer", axis("learning_rate", rates))`."""
    _check_field(group)
    return [{f"{group}.{name}": value for name, value in entry.items()} for entry in _checked(sweep)]


def sample(distributions: Mapping[str, Distribution], n: int, seed: int) -> Sweep:
    """`n` random trials, the same for the same seed.

    Each field has its own stream, so that adding a field, or more trials, leaves the values drawn before as they were:
    `sample({"optimizer.learning_rate": log_uniform(1e-4, 1e-2)}, n=20, seed=0)`.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ConfigError("sweep", f"{n!r} samples are not allowed; must be an integer at least 1")
    columns = []
    for field, draw in distributions.items():
        if not callable(draw):
            raise ConfigError(field, f"{draw!r} is not a distribution; must be like log_uniform(1e-4, 1e-2)")
        stream = random.Random(f"{seed}/{field}")
        columns.append(axis(field, [draw(stream) for _ in range(n)]))
    return zipped(*columns) if columns else [{} for _ in range(n)]


def uniform(low: float, high: float) -> Distribution:
    """Between two numbers, evenly."""
    _check_bounds(low, high, "uniform")
    return lambda stream: low + (high - low) * stream.random()


def log_uniform(low: float, high: float) -> Distribution:
    """Between two positive numbers, evenly in the logarithm: for rates and widths."""
    _check_bounds(low, high, "log_uniform", above=0)
    return lambda stream: min(high, max(low, low * math.exp(math.log(high / low) * stream.random())))


def integers(low: int, high: int, step: int = 1) -> Distribution:
    """low, low + step, ... up to `high` (included where it is met), evenly."""
    _check_bounds(low, high, "integers")
    if not all(isinstance(value, int) for value in (low, high, step)) or step < 1:
        raise ConfigError(
            "sweep", f"integers({low!r}, {high!r}, {step!r}) is not allowed; must be integers, step above 0"
        )
    return choice(range(low, high + 1, step))


def choice(values: Iterable[Any]) -> Distribution:
    """One of a few values, evenly."""
    options = list(values)
    if not options:
        raise ConfigError("sweep", "choice needs at least one value")
    return lambda stream: options[int(stream.random() * len(options))]


def _merged(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All the assignments; no field may be set twice, as itself or as a part of a group that is set whole."""
    merged: dict[str, Any] = {}
    for entry in entries:
        for name, value in entry.items():
            for other in merged:
                if name == other:
                    raise ConfigError(name, "set by two parts of one product")
                if name.startswith(f"{other}.") or other.startswith(f"{name}."):
                    raise ConfigError(name, f"set beside {other!r}, where one holds the other")
            merged[name] = value
    return merged


def _checked(sweep: Any) -> Sweep:
    if not isinstance(sweep, list) or not all(isinstance(entry, Mapping) for entry in sweep):
        raise ConfigError("sweep", f"{sweep!r} is not a sweep; must be a list of dicts, as axis(field, values) gives")
    return sweep


def _check_field(name: Any) -> None:
    if not isinstance(name, str) or not _FIELD.fullmatch(name):
        raise ConfigError("sweep", f"{name!r} is not a field; must be a dotted name, such as 'model.d_model'")


def _check_bounds(low: float, high: float, what: str, above: float = -math.inf) -> None:
    numbers = all(isinstance(value, int | float) for value in (low, high))
    if not numbers or not above < low <= high < math.inf:  # also refuses nan
        floor = f"{above:g} < " if above > -math.inf else ""
        raise ConfigError("sweep", f"{what}({low!r}, {high!r}) is not allowed; must have {floor}low <= high")
