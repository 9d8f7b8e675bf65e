"""Sampling: read the prompt in one piece, then one token at a time in one compiled loop.

Two programs: one reads a prompt, one is the loop. Prompts of many lengths and any number of steps share them. The loop
updates the state in place, draws in the loop, and ends when all rows have ended: the host waits once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from hybrid.config import ModelConfig
from hybrid.decoding.limits import check_request, power
from hybrid.decoding.programs import padded, read, step, unstacked
from hybrid.decoding.sampling import sample


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
    ends: Sequence[int] = (),
) -> Int[Array, "B steps"]:
    """The `steps` tokens that follow each row of `tokens` (at least one token a row).

    temperature 0 takes the likeliest token; above it `key` must be given, and top_k and top_p keep only the likeliest
    tokens (the k first; the fewest whose probabilities reach p). A row ends with the first of `ends` that it makes and
    repeats it up to `steps`; nothing is computed once all rows have ended. Raises ConfigError for values out of range
    and where the model cannot take so many tokens.
    """
    size, capacity = check_request(
        config, tokens.shape, steps, key=key, temperature=temperature, top_k=top_k, top_p=top_p, ends=ends
    )
    params = unstacked(params)
    last, state = read(config, params, *padded(tokens, size), capacity)
    made, _ = loop(
        config, params, last, state, jax.random.key(0) if key is None else key, np.int32(steps),
        np.asarray(ends, np.int32), power(steps), float(temperature), top_k, top_p,
    )  # fmt: skip
    return made[:, :steps]


@partial(jax.jit, static_argnames=("config", "room", "temperature", "top_k", "top_p"), donate_argnames="state")
def loop(
    config: ModelConfig, params: Any, last: Any, state: Any, key: Any, steps: Any, ends: Any,
    room: int, temperature: float, top_k: int | None, top_p: float | None,
) -> tuple[Any, Any]:  # fmt: skip
    """(batch, room) tokens of which the first `steps` (traced) are made, and the state, in the place of the one given.

    last: (batch, vocab) logits after the prompt. ends: (any number,) tokens.
    """

    def draw(last: Any, index: Any) -> Any:
        return sample(last, jax.random.fold_in(key, index), temperature, top_k, top_p)

    def going(carry: tuple[Any, ...]) -> Any:
        index, _, ended, _, _ = carry
        return (index < steps) & ~ended.all()

    def one(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        index, token, ended, made, state = carry
        last, state = step(config, params, token, state)
        token = jnp.where(ended, token, draw(last, index))
        made = jax.lax.dynamic_update_slice_in_dim(made, token[:, None], index, axis=1)
        return index + 1, token, ended | jnp.isin(token, ends), made, state

    first = draw(last, 0)
    made = jnp.zeros((first.shape[0], room), jnp.int32).at[:, 0].set(first)
    start = (jnp.int32(1), first, jnp.isin(first, ends), made, state)
    count, token, _, made, state = jax.lax.while_loop(going, one, start)
    return jnp.where(jnp.arange(room) < count, made, token[:, None]), state
