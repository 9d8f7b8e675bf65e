"""The table of published families. A file in this package that defines `FAMILY` is one."""

from __future__ import annotations

import importlib
import pkgutil

from hybrid.interop.family import Family
from hybrid.validation import ConfigError, nearest

__all__ = ["FAMILIES", "family_of"]

FAMILIES: dict[str, Family] = {}
"""`model_type` of config.json -> its family."""

for _module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    _family = getattr(importlib.import_module(f"{__name__}.{_module.name}"), "FAMILY", None)
    if _family is not None:
        FAMILIES.update(dict.fromkeys(_family.model_types, _family))


def family_of(model_type: object, field: str) -> Family:
    """The family of a `model_type`; `field` is what an error names."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    hint = nearest(model_type, FAMILIES) if isinstance(model_type, str) else ""
    raise ConfigError(field, f"{model_type!r} is not read{hint} (read: {', '.join(sorted(FAMILIES))})")
