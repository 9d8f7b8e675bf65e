"""Generation token by token, for text that is shown as it is made.

    for token in stream(config, params, prompt, steps=100, key=key, temperature=0.8):
        print(token)    # (batch,) int32, on the host

Three programs are compiled: one reads a prompt, one draws and one appends a token. Prompts of many lengths share them,
and the first is that of `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from hybrid.config import ModelConfig
from hybrid.decoding.limits import check_request
from hybrid.decoding.programs import append, padded, read, unstacked
from hybrid.decoding.sampling import sample


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
    ends: Sequence[int] = (),
) -> Iterator[Int[np.ndarray, " B"]]:
    """The tokens that follow each row of `tokens` (at least one a row), one after the other, `steps` at most.

    Greedy, it gives what `hybrid.generate` gives, and with a key the same draws; it stops when all rows have ended with
    one of `ends`. Raises ConfigError, before anything is compiled, for values out of range and where the model cannot
    take so many tokens.
    """
    size, capacity = check_request(
        config, tokens.shape, steps, key=key, temperature=temperature, top_k=top_k, top_p=top_p, ends=ends
    )
    key = jax.random.key(0) if key is None else key
    draw = partial(_draw, key=key, temperature=float(temperature), top_k=top_k, top_p=top_p)
    return _stream(config, unstacked(params), np.asarray(tokens, np.int32), steps, size, capacity, draw, list(ends))


def _stream(
    config: ModelConfig, params: Any, tokens: Any, steps: int, size: int, capacity: int, draw: Callable[..., Any],
    ends: list[int],
) -> Iterator[Any]:  # fmt: skip
    last, state = read(config, params, *padded(tokens, size), capacity)
    token, ended = np.zeros(len(tokens), np.int32), np.zeros(len(tokens), bool)
    for index in range(steps):
        token = np.where(ended, token, np.asarray(draw(last, index)))
        yield token
        ended |= np.isin(token, ends)
        if ended.all():
            return
        if index + 1 < steps:
            last, state = append(config, params, token, state)


@partial(jax.jit, static_argnames=("temperature", "top_k", "top_p"))
def _draw(last: Any, index: Any, key: Any, temperature: float, top_k: int | None, top_p: float | None) -> Any:
    return sample(last, jax.random.fold_in(key, index), temperature, top_k, top_p)
