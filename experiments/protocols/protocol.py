"""What a protocol is, and what its rows share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """A row of the table."""

    about: str
    source: str
    tasks: tuple[str, ...]
    """`data.source`: the first where a config names none; empty: all."""
    values: Callable[[Mapping[str, Any]], dict[str, Any]]
    """Dotted name -> value, of the fields that the config (dotted names too) leaves unset."""
    rates: tuple[float, ...]
    """The learning rates that were tried, of which the best was reported."""
    quirks: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


def number(given: Mapping[str, Any], field: str, default: int) -> int:
    """A field that other values follow from; what is no positive number is for the reader of the config to refuse."""
    value = given.get(field, default)
    return value if isinstance(value, int) and value > 0 else default


def positions(given: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Learned positions for a stack whose only mixers are attention, none for any other."""
    if set(str(given.get("model.pattern", "A"))) <= {"A", "-"}:
        return {"model.positions": "learned", "model.max_length": length}
    return {"model.positions": "none"}
