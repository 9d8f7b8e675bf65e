"""Hybrid: sequence models as pure functions, written as pattern strings of residual sublayers.

    config = hybrid.ModelConfig(pattern="(M-)3A-", vocab_size=257, d_model=64, n_heads=4)
    params = hybrid.init(config, jax.random.key(0))
    logits = hybrid.apply(config, params, tokens)

The public names are imported when they are first used: configs can be read and checked without loading jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid.accounting import count as count
    from hybrid.config import ModelConfig as ModelConfig
    from hybrid.decoding.generate import generate as generate
    from hybrid.interop.gguf import from_gguf as from_gguf
    from hybrid.interop.huggingface import from_huggingface as from_huggingface
    from hybrid.interop.huggingface import to_huggingface as to_huggingface
    from hybrid.model import apply as apply
    from hybrid.model import extend as extend
    from hybrid.model import forward as forward
    from hybrid.model import init_state as init_state
    from hybrid.params import init as init
    from hybrid.pattern import expand as expand
    from hybrid.placement import place as place
    from hybrid.presets import preset as preset
    from hybrid.presets import preset_names as preset_names
    from hybrid.sublayers import Aux as Aux
    from hybrid.sublayers import Context as Context
    from hybrid.sublayers import Kind as Kind
    from hybrid.sublayers import Traits as Traits
    from hybrid.sublayers import register as register
    from hybrid.validation import ConfigError as ConfigError

_HOMES = {
    "hybrid.accounting": ("count",),
    "hybrid.config": ("ModelConfig",),
    "hybrid.decoding.generate": ("generate",),
    "hybrid.interop.gguf": ("from_gguf",),
    "hybrid.interop.huggingface": ("from_huggingface", "to_huggingface"),
    "hybrid.model": ("apply", "encode", "extend", "forward", "init_state"),
    "hybrid.params": ("init",),
    "hybrid.pattern": ("expand",),
    "hybrid.placement": ("place",),
    "hybrid.presets": ("preset", "preset_names"),
    "hybrid.sublayers": ("Aux", "Context", "Kind", "Traits", "register"),
    "hybrid.validation": ("ConfigError",),
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'hybrid' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return __all__
