"""What a generation may ask for, and how much room it needs. No jax, so that commands can refuse at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hybrid.config import ModelConfig
from hybrid.validation import ConfigError

SHORTEST = 16
"""Shorter prompts are padded to this many tokens."""

SMALLEST = 256
"""Tokens that a state has room for at least."""


def check_request(
    config: ModelConfig,
    shape: tuple[int, ...],
    steps: int,
    *,
    key: Any,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    ends: Sequence[int] = (),
) -> tuple[int, int]:
    """The `rooms` of `steps` tokens after tokens of this shape; ConfigError for anything that is out of range."""
    if steps < 1:
        raise ConfigError("steps", f"{steps} is not allowed; must be at least 1")
    if len(shape) != 2 or shape[1] < 1:
        raise ConfigError("tokens", f"shape {shape} is not allowed; must be (batch, at least 1)")
    check_sampling(temperature, top_k, top_p)
    if temperature > 0 and key is None:
        raise ConfigError("key", "must be given when temperature is above 0")
    for token in ends:
        if not 0 <= token < config.vocab_size:
            raise ConfigError("ends", f"{token} is not allowed; tokens are from 0 to {config.vocab_size - 1}")
    return rooms(shape[1], steps, longest(config))


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """ConfigError for values out of range."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError("temperature", f"{temperature} is not allowed; must be a finite number at least 0")
    if top_k is not None and top_k < 1:
        raise ConfigError("top_k", f"{top_k} is not allowed; must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError("top_p", f"{top_p} is not allowed; must be above 0 and at most 1")


def longest(config: ModelConfig) -> int | None:
    """The most tokens that the model can read and write together; None: any number. ConfigError: it cannot decode."""
    if config.encoder is not None:
        raise ConfigError("encoder", "a model with an encoder does not continue a prompt")
    limits = [config.max_length] if config.positions == "learned" else []
    for kind, view in config.kinds():
        traits = kind.traits(view)
        if kind.state is None or not traits.decodable:
            raise ConfigError("pattern", f"{kind.symbol} ({kind.group}) cannot decode step by step")
        limits.append(traits.max_length)
    return min((limit for limit in limits if limit is not None), default=None)


def rooms(length: int, steps: int, limit: int | None) -> tuple[int, int]:
    """(tokens that a prompt is padded to, capacity of the state): powers of two where the limit leaves room."""
    if limit is not None and length + steps > limit:
        raise ConfigError(
            "steps", f"{steps} is not allowed; the model takes {limit} tokens and the prompt has {length}"
        )
    size = max(SHORTEST, power(length))
    if limit is not None and size + steps > limit:
        size = length
    capacity = max(SMALLEST, power(size + steps))
    return size, capacity if limit is None else min(capacity, limit)


def power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()
