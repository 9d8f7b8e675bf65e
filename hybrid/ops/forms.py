"""What all operators share: forms by name and platform, the types that they calculate in, borders of documents."""

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


def keep_mask(segment_ids: jax.Array, previous_segment: jax.Array | None = None) -> jax.Array:
    """(batch, length) bool: False where the document of a position is not that of the position before it."""
    before = segment_ids[:, 0] if previous_segment is None else previous_segment
    return segment_ids == jnp.concatenate([before[:, None], segment_ids[:, :-1]], axis=1)
