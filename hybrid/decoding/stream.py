"""Generation token by token, for text that is shown as it is made.

    for token in stream(config, params, prompt, steps=100, key=key, temperature=0.8):
        print(token)    # (batch,) int32, on the host

Two programs are compiled: one reads a prompt and one a token. Prompts are padded in front to powers of two, and room is
given in powers of two, so prompts of many lengths share them (and the cache of compiled programs on disk has them).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from hybrid.config import ModelConfig
from hybrid.decoding.limits import check_sampling, longest, rooms
from hybrid.decoding.sampling import sample
from hybrid.layout import per_layer
from hybrid.model import extend_hidden, init_state, logits
from hybrid.validation import ConfigError


def stream(
    config: ModelConfig,
    params: Mapping[str, Any],
    tokens: Int[np.ndarray, "B L"],
    steps: int,
    *,
    key: Any = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Iterator[Int[np.ndarray, " B"]]:
    """The tokens that follow each row of `tokens` (at least one a row), one after the other, `steps` at most.

    Greedy, it gives what `hybrid.generate` gives, and with a key the same draws. Raises ConfigError, before anything is
    compiled, for values out of range and where the model cannot take so many tokens.
    """
    if steps < 1:
        raise ConfigError("steps", f"{steps} is not allowed; must be at least 1")
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ConfigError("tokens", f"shape {tokens.shape} is not allowed; must be (batch, at least 1)")
    check_sampling(temperature, top_k, top_p)
    if temperature > 0 and key is None:
        raise ConfigError("key", "must be given when temperature is above 0")
    size, capacity = rooms(tokens.shape[1], steps, longest(config))
    params = {name: tree for name, tree in per_layer(params).items() if name != "encoder"}
    key = jax.random.key(0) if key is None else key
    draw = partial(_draw, temperature=float(temperature), top_k=top_k, top_p=top_p)
    return _stream(config, params, np.asarray(tokens, np.int32), steps, size, capacity, key, draw)


def _stream(
    config: ModelConfig, params: Any, tokens: Any, steps: int, size: int, capacity: int, key: Any, draw: Any
) -> Iterator[Any]:
    blank = size - tokens.shape[1]
    padded = np.pad(tokens, ((0, 0), (blank, 0)))
    real = np.broadcast_to(np.arange(size) >= blank, padded.shape)
    last, state = _read(config, params, padded, real, capacity)
    for step in range(steps):
        token = draw(last, jax.random.fold_in(key, step))
        yield np.asarray(token)
        if step + 1 < steps:
            last, state = _append(config, params, token, state)


@partial(jax.jit, static_argnames=("config", "capacity"))
def _read(config: ModelConfig, params: Any, tokens: Any, padding: Any, capacity: int) -> tuple[Any, Any]:
    """Logits after the prompt (batch, vocab), and the state."""
    state = init_state(config, tokens.shape[0], capacity)
    hidden, state = extend_hidden(config, params, tokens, state, padding)
    return logits(config, params, hidden[:, -1]), state


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def _append(config: ModelConfig, params: Any, token: Any, state: Any) -> tuple[Any, Any]:
    hidden, state = extend_hidden(config, params, token[:, None], state)
    return logits(config, params, hidden[:, -1]), state


@partial(jax.jit, static_argnames=("temperature", "top_k", "top_p"))
def _draw(last: Any, key: Any, temperature: float, top_k: int | None, top_p: float | None) -> Any:
    return sample(last, key, temperature, top_k, top_p)
