"""Sampling: read the prompt in one piece, then one token at a time in one compiled loop."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from hybrid.config import ModelConfig
from hybrid.decoding.limits import check_sampling
from hybrid.decoding.sampling import sample
from hybrid.layout import per_layer
from hybrid.model import extend, init_state
from hybrid.sublayers import ON_REPLACE
from hybrid.validation import ConfigError


def generate(
    config: ModelConfig,
    params: Mapping[str, Any],
    tokens: Int[Array, "B L"],
    steps: int,
    *,
    key: Any = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Array, "B steps"]:
    """The `steps` tokens that follow each row of `tokens` (at least one token a row).

    temperature 0 takes the likeliest token; above it `key` must be given, and top_k and top_p keep only the likeliest
    tokens (the k first; the fewest whose probabilities reach p). Raises ConfigError for values out of range.
    """
    if steps < 1:
        raise ConfigError("steps", f"{steps} is not allowed; must be at least 1")
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ConfigError("tokens", f"shape {tokens.shape} is not allowed; must be (batch, at least 1)")
    check_sampling(temperature, top_k, top_p)
    if temperature > 0 and key is None:
        raise ConfigError("key", "must be given when temperature is above 0")
    key = jax.random.key(0) if key is None else key
    top_k = None if top_k is None else min(top_k, config.vocab_size)
    return _generate(config, per_layer(params), tokens, steps, key, float(temperature), top_k, top_p)


@partial(jax.jit, static_argnames=("config", "steps", "temperature", "top_k", "top_p"))
def _generate(
    config: ModelConfig, params: Any, tokens: Any, steps: int, key: Any, temperature: float, top_k: Any, top_p: Any
) -> Any:
    batch, length = tokens.shape
    state = init_state(config, batch, length + steps)
    logits, state = extend(config, params, tokens, state)
    first = sample(logits[:, -1], jax.random.fold_in(key, 0), temperature, top_k, top_p)

    def step(carry: tuple[Any, Any], index: Any) -> tuple[tuple[Any, Any], Any]:
        token, state = carry
        logits, state = extend(config, params, token[:, None], state)
        token = sample(logits[:, -1], jax.random.fold_in(key, index), temperature, top_k, top_p)
        return (token, state), token

    _, rest = jax.lax.scan(step, (first, state), jnp.arange(1, steps))
    return jnp.concatenate([first[:, None], rest.T], axis=1)


ON_REPLACE.append(jax.clear_caches)
