"""The table of kinds. A file in this package that defines `KIND` is a kind; `register` adds one from elsewhere."""

from __future__ import annotations

import importlib
import pkgutil

from hybrid import pattern as language
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import ConfigError, unknown

__all__ = ["KINDS", "Aux", "Context", "Kind", "Traits", "kind_of", "register"]

KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> Kind:
    """Adds a kind; its symbol must be free, or its own of before (so that a notebook cell can be run again)."""
    taken = KINDS.get(kind.symbol)
    if taken is not None and taken.group != kind.group:
        raise ConfigError("symbol", f"{kind.symbol!r} is the symbol of {taken.group}")
    if kind.symbol not in language.SYMBOLS:
        language.SYMBOLS[kind.symbol] = kind.group
    KINDS[kind.symbol] = kind
    return kind


def kind_of(symbol: str) -> Kind:
    """The kind of a symbol; one that the language knows and that is not built is refused by name."""
    if symbol in KINDS:
        return KINDS[symbol]
    built = ", ".join(f"{s} ({kind.group})" for s, kind in sorted(KINDS.items()))
    if symbol in language.SYMBOLS:
        raise ConfigError("pattern", f"{symbol} ({language.SYMBOLS[symbol]}) is not built yet (built: {built})")
    if symbol.startswith("["):
        raise ConfigError("pattern", f"branches such as {symbol} are not built yet (built: {built})")
    raise unknown("pattern", symbol, sorted(KINDS), f"unknown symbol {symbol!r}")


for _module in pkgutil.iter_modules(__path__):
    _kind = getattr(importlib.import_module(f"{__name__}.{_module.name}"), "KIND", None)
    if _kind is not None:
        register(_kind)
