"""What a model answers at labelled positions: nats of the labels, and the token it finds most likely. No gradient.

The logits of many positions are made some rows at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hybrid.config import ModelConfig
from hybrid.losses import IGNORED
from hybrid.model import logits

AT_ONCE = 1 << 24
"""Logits that are made together: 64 MiB in float32."""


def answers(
    config: ModelConfig,
    params: Mapping[str, Any],
    hidden: Float[Array, "B L D"],
    labels: Int[Array, "B K"],
    label_positions: Int[Array, "B K"] | None = None,
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """(nats of the labels, zero where none is scored; the most likely token of each position)."""
    if label_positions is not None:
        hidden = jnp.take_along_axis(hidden, label_positions[..., None], axis=1)

    def row(given: tuple[Any, Any]) -> tuple[Any, Any]:
        states, wanted = given
        out = logits(config, params, states)
        picked = jnp.take_along_axis(out, jnp.maximum(wanted, 0)[..., None], axis=-1)[..., 0]
        nats = jnp.where(wanted == IGNORED, 0.0, jax.nn.logsumexp(out, axis=-1) - picked)
        return nats, out.argmax(-1).astype(jnp.int32)

    if labels.size * config.vocab_size <= AT_ONCE:
        return row((hidden, labels))
    return jax.lax.map(row, (hidden, labels))


def pooled(hidden: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """The last hidden state at every position, with sinusoids that say which one: what an auto-encoder decodes from
    (Poli et al. 2024, MAD's compression). The head, `transform` where it shall be more than one layer, decodes."""
    from hybrid.positions import sinusoids

    length, width = hidden.shape[1], hidden.shape[2]
    return hidden[:, -1:] + sinusoids(jnp.arange(length)[None], width, hidden.dtype)
