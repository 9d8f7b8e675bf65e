"""`S`: causal self-attention that sees the last `window` keys alone (Beltagy et al. 2020; Jiang et al. 2023: Mistral).

A token sees itself and the window - 1 tokens before it. Time and memory are linear in the length, and decoding carries
`window` slots whatever the capacity: the slot of a token is its number modulo the slots, so each new token takes the
place of the one that has just left the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.sublayers.heads import HeadsConfig, check_heads, finish, heads, heads_spec, project, reference, score_bias
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import PositiveInt

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class SlidingWindowConfig(HeadsConfig):
    """The fields that all kinds of attention share, and the window."""

    window: PositiveInt = 128
    """Keys that a token sees, its own included."""
    form: Literal["auto", "reference", "plain", "chunked", "blocks", "fused"] = "auto"  # type: ignore[assignment]
    """The form of hybrid.ops.attention; `blocks` is for windows alone."""


@struct
class SlidingWindowState:
    """The last keys and values of each row in a ring. Constant in length."""

    keys: Any
    """(batch, min(window, capacity), n_kv_heads, head_dim)"""
    values: Any
    positions: Any
    """(batch, slots) int32"""
    valid: Any
    """(batch, slots) bool"""
    filled: Any
    """(batch,) int32: real tokens so far; the next one takes slot filled % slots"""


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    from hybrid.ops.attention import attention

    group = config.sliding_window
    q, k, v = project(config, group, params, x, context.positions)
    # Without positions, the window goes by the place in the row; segments part documents.
    mixed = attention(
        q, k, v, q_segments=context.segment_ids, k_segments=context.segment_ids, k_valid=context.padding,
        window=group.window, scale=group.scale, softcap=group.softcap, bias=score_bias(config, context, causal=True),
        form=group.form,
    )  # fmt: skip
    return finish(params, x, mixed), Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> SlidingWindowState:
    """Two rings of (batch, min(window, capacity), n_kv_heads, head_dim) in the compute dtype, and 5 bytes a slot."""
    _, n_kv_heads, head_dim = heads(config)
    slots = min(config.sliding_window.window, capacity)
    ring = jnp.zeros((batch, slots, n_kv_heads, head_dim), config.compute_dtype)
    return SlidingWindowState(
        keys=ring,
        values=ring,
        positions=jnp.zeros((batch, slots), jnp.int32),
        valid=jnp.zeros((batch, slots), bool),
        filled=jnp.zeros((batch,), jnp.int32),
    )


def extend(
    config: ModelConfig, params: Mapping[str, Any], x: Any, state: SlidingWindowState, context: Context
) -> tuple:
    """x, y: (batch, new tokens, d_model), any number of new tokens; padding takes no slot."""
    from hybrid.ops.attention import attention

    group = config.sliding_window
    q, k, v = project(config, group, params, x, context.positions)
    real = jnp.ones(x.shape[:2], bool) if context.padding is None else context.padding
    before = (state.keys, state.values, state.positions, state.valid)
    new = tuple(array.astype(ring.dtype) for array, ring in zip((k, v, context.positions, real), before, strict=True))
    after = tuple(_write(ring, array, real, state.filled) for ring, array in zip(before, new, strict=True))
    # Of several new tokens the first need keys that the last have overwritten.
    joined = (jnp.concatenate(both, axis=1) for both in zip(before, new, strict=True))
    keys, values, positions, valid = after if x.shape[1] == 1 else joined
    mixed = attention(
        q, keys.astype(q.dtype), values.astype(q.dtype), q_positions=context.positions, k_positions=positions,
        k_valid=valid, window=group.window, scale=group.scale, softcap=group.softcap,
        bias=score_bias(config, context, causal=True),
    )  # fmt: skip
    filled = state.filled + real.sum(1, dtype=jnp.int32)
    keys, values, positions, valid = after
    state = SlidingWindowState(keys=keys, values=values, positions=positions, valid=valid, filled=filled)
    return finish(params, x, mixed), state, Aux()


def _write(ring: Any, new: Any, real: Any, filled: Any) -> Any:
    """The last real ones of new (batch, tokens, ...) in their slots of ring (batch, slots, ...)."""
    slots = ring.shape[1]
    number = jnp.cumsum(real, axis=1) - 1
    kept = real & (number >= real.sum(1, keepdims=True) - slots)
    slot = jnp.where(kept, (filled[:, None] + number) % slots, slots)
    return jax.vmap(lambda ring, slot, new: ring.at[slot].set(new, mode="drop"))(ring, slot, new)


KIND = Kind(
    symbol="S",
    group="sliding_window",
    config=SlidingWindowConfig,
    traits=lambda config: Traits(reach="window"),
    spec=lambda config: heads_spec(config, config.sliding_window),
    apply=apply,
    reference=lambda config, params, x, context: reference(
        config, config.sliding_window, params, x, context, window=config.sliding_window.window
    ),
    state=state,
    extend=extend,
    check=lambda config: check_heads(config, config.sliding_window),
    counted={"form": "blocks"},
)
