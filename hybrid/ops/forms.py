"""What all operators share: looking a form up by its name, and the types that they calculate in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp

from hybrid.validation import unknown

T = TypeVar("T")


def lookup(forms: Mapping[str, T], form: str) -> T:
    """The entry of `forms` called `form`, or a ConfigError that names the nearest."""
    if form not in forms:
        raise unknown("form", form, forms, f"{form!r} is not a form")
    return forms[form]


def accumulator(*arrays: jax.Array) -> jnp.dtype:
    """The type to accumulate in: float32, or float64 where an input is float64."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def by_platform(choices: Mapping[str, T]) -> T:
    """The choice for the platform that jax runs on by default; `choices["other"]` for one that is not named."""
    return choices.get(jax.default_backend(), choices["other"])
