"""The table of kinds. A file in this package that defines `KIND` is a kind; `register` adds one from elsewhere."""

from __future__ import annotations

import importlib
import pkgutil
import string
from collections.abc import Callable

from hybrid import pattern as language
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import ConfigError, unknown

__all__ = ["KINDS", "Aux", "Context", "Kind", "Traits", "kind_of", "register"]

KINDS: dict[str, Kind] = {}

RESERVED = frozenset(string.ascii_lowercase + string.digits + string.whitespace + "()[]|")
"""No symbols of kinds: letters that configs define, and the signs of the language."""

ON_REPLACE: list[Callable[[], object]] = []
"""Called when a kind is registered again: forgets what was kept about configs of the old one."""


def register(kind: Kind) -> Kind:
    """Adds a kind; its symbol must be free, or its own of before (so that a notebook cell can be run again)."""
    symbol, taken = kind.symbol, KINDS.get(kind.symbol)
    if not (isinstance(symbol, str) and len(symbol) == 1 and symbol.isprintable()) or symbol in RESERVED:
        raise ConfigError("symbol", f"{symbol!r} is not allowed; must be one character, such as a capital letter")
    if language.SYMBOLS.setdefault(symbol, kind.group) != kind.group:
        raise ConfigError("symbol", f"{symbol!r} is the symbol of {language.SYMBOLS[symbol]}")
    KINDS[kind.symbol] = kind
    if taken is not None and taken is not kind:
        for forget in ON_REPLACE:
            forget()
    return kind


def kind_of(symbol: str) -> Kind:
    """The kind of a symbol."""
    if symbol in KINDS:
        return KINDS[symbol]
    raise unknown("pattern", symbol, sorted(KINDS), f"unknown symbol {symbol!r}")


for _module in pkgutil.iter_modules(__path__):
    _kind = getattr(importlib.import_module(f"{__name__}.{_module.name}"), "KIND", None)
    if _kind is not None:
        register(_kind)
