"""jax and numpy at first use: commands read configs, and the symbols and traits of kinds, before either is loaded.

from hybrid.lazy import jax, jnp, np, struct
"""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import numpy as np
else:

    class _Lazy(ModuleType):
        """Stands for a module until one of its names is asked for."""

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self.__name__), name)

    jax = _Lazy("jax")
    jnp = _Lazy("jax.numpy")
    np = _Lazy("numpy")

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def struct(cls: type[T]) -> type[T]:
    """A frozen dataclass that becomes a `flax.struct` dataclass (a pytree) when the first one is made.

    A field without leaves is declared `static()`: it belongs to the structure and not to the data.
    """

    def new(klass: type, *_args: Any, **_fields: Any) -> Any:
        import flax.struct

        flax.struct.dataclass(klass)  # does nothing the second time
        return object.__new__(klass)

    cls.__new__ = new  # type: ignore[assignment]
    return cls


def static(**options: Any) -> Any:
    """A field of a `struct` that is part of its structure (a Python value, hashable)."""
    return dataclasses.field(metadata={"pytree_node": False}, **options)
