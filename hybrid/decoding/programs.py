"""The compiled pieces that `generate` and `stream` share: one program reads prompts, one appends a token.

Prompts are padded in front to powers of two and states have room for powers of two (`limits.rooms`), so prompts of many
lengths share them; the persistent cache of compiled programs has them by the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid.config import ModelConfig
from hybrid.layout import per_layer
from hybrid.model import extend_hidden, init_state, logits
from hybrid.sublayers import ON_REPLACE


def unstacked(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that decoding reads, one entry a layer. Outside the programs: a loop must not cut stacks."""
    return {name: tree for name, tree in per_layer(params).items() if name != "encoder"}


def padded(tokens: Any, size: int) -> tuple[Any, Any]:
    """tokens (batch, length) with zeros in front up to `size`, and how many of them. On the host where that can be, for
    each length would be a small program of its own."""
    blank = size - tokens.shape[1]
    place = jnp if isinstance(tokens, jax.core.Tracer) else np
    return place.pad(place.asarray(tokens, "int32"), ((0, 0), (blank, 0))), np.int32(blank)


@partial(jax.jit, static_argnames=("config", "capacity"))
def read(config: ModelConfig, params: Any, tokens: Any, blank: Any, capacity: int) -> tuple[Any, Any]:
    """Logits after the prompt (batch, vocab), and the state. blank: () how many tokens in front are padding."""
    real = jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= blank, tokens.shape)
    hidden, state = extend_hidden(config, params, tokens, init_state(config, tokens.shape[0], capacity), real)
    return logits(config, params, hidden[:, -1]), state


def step(config: ModelConfig, params: Any, token: Any, state: Any) -> tuple[Any, Any]:
    """Logits (batch, vocab) after one more token (batch,), and the state."""
    hidden, state = extend_hidden(config, params, token[:, None], state)
    return logits(config, params, hidden[:, -1]), state


append = partial(jax.jit, static_argnames="config", donate_argnames="state")(step)
"""`step`, compiled; the state is updated in place."""

ON_REPLACE.append(jax.clear_caches)
