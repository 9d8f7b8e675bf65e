"""What all operators share: forms by name and platform, the types that they calculate in, borders of documents.

Which form an operator took is known when it is traced. A caller who wants to know asks around the tracing:

    with noted() as chosen:
        compiled = jax.jit(step).lower(*shapes).compile()
    chosen                                                  # {"selective_scan": "chunked 32", "attention": "flash 512"}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import jax
import jax.numpy as jnp

from hybrid.validation import unknown

T = TypeVar("T")

_listening: ContextVar[tuple[dict[str, str], ...]] = ContextVar("_listening", default=())


@contextmanager
def noted() -> Iterator[dict[str, str]]:
    """A dictionary that fills with operator -> the form that it took, while functions are traced inside of the block.

    An operator that took several forms has them all, in the order in which they came: "chunked 32, sequential". What
    jax finds in a cache of its own is not traced again and says nothing: ask around the first `lower` or call.
    """
    chosen: dict[str, str] = {}
    token = _listening.set((*_listening.get(), chosen))
    try:
        yield chosen
    finally:
        _listening.reset(token)


def note(operator: str, form: str) -> None:
    """Tells whoever listens (`noted`) that `operator` took `form`: a name, and sizes where they were chosen too.

    For operators, at each call, with the public name of the function.
    """
    for chosen in _listening.get():
        forms = chosen[operator].split(", ") if operator in chosen else []
        if form not in forms:
            chosen[operator] = ", ".join([*forms, form])


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
