"""Cross-entropy at the labelled positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hybrid.config import ModelConfig
from hybrid.model import logits

IGNORED = -1
"""The label of a position that is not scored."""


def token_losses(
    config: ModelConfig,
    params: Mapping[str, Any],
    hidden: Float[Array, "B L D"],
    labels: Int[Array, "B K"],
    label_positions: Int[Array, "B K"] | None = None,
) -> tuple[Float[Array, "B K"], Bool[Array, "B K"]]:
    """(-log p(label) in nats, which are scored), zero where not.

    label_positions: where the labels stand; logits are then made at these positions alone. Without it K = L.
    """
    if label_positions is not None:
        hidden = jnp.take_along_axis(hidden, label_positions[..., None], axis=1)
    out = logits(config, params, hidden)
    scored = labels != IGNORED
    picked = jnp.take_along_axis(out, jnp.where(scored, labels, 0)[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(out, axis=-1) - picked
    return jnp.where(scored, nats, 0.0), scored
