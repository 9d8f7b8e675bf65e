"""`R`: block-recurrent attention (Hutchins et al. 2022): a window of tokens, and states that are carried over windows.

The row is cut into windows of W tokens. Vertically, each token attends to the W tokens before it and to M state
vectors as they were when its window began; both results go through one projection. Horizontally, once a window is
complete, the states attend to themselves and to all keys of this window and the one before, and a gate takes what they
found into the states. So the reach is unlimited, and time and memory are linear in the length.

This is the computation of the authors' code, which differs from the paper: a token sees exactly the W tokens before
it, and not itself; the zero keys before the first token take part in the softmax; queries and keys have unit length
and a learned scale a head, that multiplies T5's bias too; the states see 2W keys without causality; what an LSTM gate
takes in is not squashed (`lstm_input`). Position comes from the bias alone: the model's `positions` do not reach in.

What is inside and what is not: the model's norm, residual and dropout stand around the vertical direction, and the
feed-forward network of the published layer is the `-` that follows. The horizontal direction is inside, with its own
norms: instead of a residual there are gates, and `form` says what they close.

    skip     one gate, around attention; no feed-forward network (the best of the paper)
    single   one gate, around a feed-forward network of what attention gives, with tanh at its end
    dual     two gates, around attention and around a feed-forward network
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.params import Param, normal
from hybrid.sublayers.block_recurrent_reference import reference
from hybrid.sublayers.heads import heads
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.sublayers.recurrent_states import (
    Params,
    attend_all,
    next_memory,
    projections,
    scales,
    seen_states,
    states_spec,
    vectors,
)
from hybrid.validation import Checked, ConfigError, PositiveInt

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class BlockRecurrentConfig(Checked):
    window: PositiveInt = 128
    """W: tokens of a window, and tokens that a token sees before it. 512 in the paper."""
    n_states: PositiveInt = 128
    """M: vectors of d_model numbers. 512 in the paper."""
    gate: Literal["fixed", "lstm"] = "fixed"
    """How states take in z: g c + (1 - g) z with a learned g a channel, or f c + i z with gates that depend on z."""
    form: Literal["skip", "single", "dual"] = "skip"
    lstm_input: Literal["code", "paper"] = "code"
    """z as it is, or tanh(z) as the paper's equations have it."""
    d_ff: PositiveInt | None = None
    """Hidden width of the states' feed-forward network; None: the model's."""
    relative_buckets: PositiveInt = 32
    relative_distance: PositiveInt = 128
    """Of T5's bias: the last bucket holds this distance and all beyond."""


@struct
class BlockRecurrentState:
    """Constant in length."""

    memory: Any
    """(batch, n_states, d_model), at least float32: the states after the last complete window"""
    keys: Any
    """(batch, 2 window, n_kv_heads, head_dim): of the last complete window, and of the tokens since; then zeros"""
    values: Any
    filled: Any
    """(batch,) int32: real tokens so far"""


def spec(config: ModelConfig) -> dict[str, Any]:
    n_heads, _, head_dim = heads(config)
    buckets = config.block_recurrent.relative_buckets
    return {
        **projections(config, ("query", "state_query"), config.init_std),
        **scales(config, "scale", "state_scale"),
        "relative_bias": Param((buckets, n_heads), (None, "heads"), normal(buckets**-0.5), decay=False),
        "out": Param((2 * n_heads * head_dim, config.d_model), ("heads", "embed"), normal(config.output_std)),
        "states": states_spec(config),
    }


def apply(config: ModelConfig, params: Params, x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model). Padding counts for nothing, wherever it stands."""
    y, _ = _mix(config, params, x, state(config, x.shape[0], 0), context, is_whole=True)
    return y, Aux()


def _initial(config: ModelConfig, params: Params, batch: int) -> Any:
    """The memory before the first token: (batch, n_states, d_model)."""
    initial = params["states"]["initial"].astype(jnp.promote_types(config.compute_dtype, jnp.float32))
    return jnp.broadcast_to(initial, (batch, *initial.shape))


def state(config: ModelConfig, batch: int, capacity: int) -> BlockRecurrentState:
    """n_states d_model precise numbers and two windows of keys and values, whatever the capacity.

    The memory of a row without tokens is the learned initial one, whatever stands here.
    """
    _, n_kv_heads, head_dim = heads(config)
    group, precise = config.block_recurrent, jnp.promote_types(config.compute_dtype, jnp.float32)
    cache = jnp.zeros((batch, 2 * group.window, n_kv_heads, head_dim), config.compute_dtype)
    return BlockRecurrentState(
        memory=jnp.zeros((batch, group.n_states, config.d_model), precise),
        keys=cache,
        values=cache,
        filled=jnp.zeros((batch,), jnp.int32),
    )


def extend(config: ModelConfig, params: Params, x: Any, state: BlockRecurrentState, context: Context) -> tuple:
    """x, y: (batch, new tokens, d_model). The states change when a window is complete, and not before."""
    y, state = _mix(config, params, x, state, context, is_whole=False)
    return y, state, Aux()


def _mix(
    config: ModelConfig, params: Params, x: Any, state: BlockRecurrentState, context: Context, is_whole: bool
) -> tuple[Any, BlockRecurrentState]:
    """Outputs, and the state after them. is_whole: the row begins here, and nobody asks for the state."""
    from hybrid.ops.linear import linear
    from hybrid.sequence import shards

    batch, length, _ = x.shape
    width, head_dim = config.block_recurrent.window, heads(config)[2]
    new = jnp.full((batch,), length, jnp.int32)
    order = None
    if context.padding is not None:  # real tokens first
        order = jnp.argsort(~context.padding, axis=1, stable=True)
        x = jnp.take_along_axis(x * context.padding[..., None].astype(x.dtype), order[..., None], axis=1)
        new = context.padding.sum(1, dtype=jnp.int32)
    # A window is reached by its number; tokens start at `at` of window 0, whose first `at` are in the state.
    windows = -(-length // width) if is_whole else (width + length - 2) // width + 1
    at = state.filled % width
    k, v = (vectors(params, name, None, x, head_dim) for name in ("key", "value"))
    later = ((0, 0), (0, windows * width), (0, 0), (0, 0))  # and one window more, for what is left after the last
    keys, values = (
        _put(jnp.pad(cache, later), array.astype(cache.dtype), width + at)
        for cache, array in ((state.keys, k), (state.values, v))
    )
    seen = keys.astype(x.dtype), values.astype(x.dtype)
    complete = (at + new) // width  # windows, of each row
    memory = jnp.where((state.filled == 0)[:, None, None], _initial(config, params, batch), state.memory)
    q, state_q = (
        vectors(params, name, scale, x, head_dim)
        for name, scale in (("query", "scale"), ("state_query", "state_scale"))
    )
    parts = shards(length)
    if is_whole and parts > 1 and length // parts % width == 0:
        mixed = _on_mesh(config, params, q, state_q, k, v, memory)
    else:
        memories, memory = _over_windows(config, params["states"], memory, seen, windows, complete, is_whole)
        tokens = _long if length > width else _short
        mixed = tokens(config, params, q, state_q, seen, memories, at)
    y = linear(mixed.reshape(batch, length, -1), params["out"])
    if order is not None:
        y = jnp.take_along_axis(y, jnp.argsort(order, axis=1)[..., None], axis=1)
    if is_whole:
        return y, state
    # Padding has left keys of zero input, which are zeros.
    keys, values = (_take(array, complete * width, 2 * width) for array in (keys, values))
    return y, BlockRecurrentState(memory=memory, keys=keys, values=values, filled=state.filled + new)


def _on_mesh(config: ModelConfig, params: Params, q: Any, state_q: Any, k: Any, v: Any, memory: Any) -> Any:
    """Whole rows cut along their length, whole windows to a shard. (batch, length, 2 n_heads, head_dim).

    Each shard has the last window of the shard before as its first keys. The states go from shard to shard, so that
    one after another runs over its windows; then all of them do their tokens at once.
    """
    from hybrid.sequence import before, entering
    from hybrid.sharding import per_device

    width = config.block_recurrent.window

    def piece(q: Any, state_q: Any, k: Any, v: Any, memory: Any, params: Params) -> Any:
        rest = jnp.zeros_like(k[:, :width])
        seen = tuple(jnp.concatenate([before(array, width), array, rest], axis=1) for array in (k, v))
        windows = k.shape[1] // width

        def over(memory: Any, is_whole: bool) -> tuple[tuple[Any, Any], Any]:
            complete = jnp.full(memory.shape[:1], windows)
            return _over_windows(config, params["states"], memory, seen, windows, complete, is_whole)

        def step(memory: Any, due: Any) -> Any:
            return jax.lax.cond(due, lambda memory: over(memory, False)[1], lambda memory: memory, memory)

        memories, _ = over(entering(step, memory), True)
        tokens = _long if q.shape[1] > width else _short
        return tokens(config, params, q, state_q, seen, memories, jnp.zeros(q.shape[:1], jnp.int32))

    wide = ("batch", "length", None, None)
    read = {name: params[name] for name in ("states", "relative_bias", "scale")}
    return per_device(piece, [wide] * 4 + [("batch", None, None), None], wide)(q, state_q, k, v, memory, read)


def _put(array: Any, new: Any, at: Any) -> Any:
    return jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice_in_dim(row, new, at, 0))(array, new, at)


def _take(array: Any, at: Any, size: int) -> Any:
    return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, size, 0))(array, at)


def _over_windows(
    config: ModelConfig, params: Params, memory: Any, seen: tuple, windows: int, complete: Any, is_whole: bool
) -> tuple[tuple[Any, Any], Any]:
    """Keys and values of the states at the beginning of each window (windows, batch, ...), and the last memory."""
    width, dtype = config.block_recurrent.window, seen[0].dtype

    def pair(array: Any) -> Any:
        """(windows, batch, 2 width, ...): each window after the one before."""
        cut = array[:, : (windows + 1) * width].reshape(array.shape[0], windows + 1, width, *array.shape[2:])
        return jnp.concatenate([cut[:, :-1], cut[:, 1:]], axis=2).swapaxes(0, 1)

    def window(memory: Any, inputs: tuple[Any, Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        number, keys, values = inputs
        _, own_keys, own_values = seen_states(config, params, memory, dtype)

        def update(memory: Any) -> Any:
            return next_memory(config, params, memory, keys, values)

        if is_whole:
            return update(memory), (own_keys, own_values)
        done = number < complete
        updated = jax.lax.cond(done.any(), update, lambda memory: memory, memory)
        return jnp.where(done[:, None, None], updated, memory), (own_keys, own_values)

    keys, values = (pair(array) for array in seen)
    if not is_whole:
        memory, made = jax.lax.scan(window, memory, (jnp.arange(windows), keys, values))
        return made, memory
    # What the last window leaves to the states is seen by no token.
    scanned = (jnp.arange(windows - 1), keys[:-1], values[:-1])
    memory, made = jax.lax.scan(jax.checkpoint(window), memory, scanned)
    _, *last = seen_states(config, params, memory, dtype)
    own_keys, own_values = (jnp.concatenate([before, end[None]]) for before, end in zip(made, last, strict=True))
    return (own_keys, own_values), memory


def _bias(config: ModelConfig, params: Params, ahead: int) -> Callable[[Any, Any], Any]:
    """T5's bias times the scale of the head, of queries whose positions are given `ahead` too low."""
    from hybrid.positions import relative_bias

    table = params["relative_bias"] * params["scale"]
    longest = config.block_recurrent.relative_distance
    return lambda q, k: relative_bias(q + ahead, k, table, True, longest)


def _short(config: ModelConfig, params: Params, q: Any, state_q: Any, seen: tuple, memories: tuple, at: Any) -> Any:
    """Up to a window of tokens, which stand in two windows at most. (batch, length, 2 n_heads, head_dim)."""
    from hybrid.ops.attention import attention

    width, (batch, length) = config.block_recurrent.window, q.shape[:2]
    place = at[:, None] + jnp.arange(length)[None]
    # A query seen as one place earlier, with a window of W keys, sees the W before it.
    own = attention(
        q, *seen, q_positions=width + place - 1, window=width, scale=1.0, bias=_bias(config, params, 1), form="plain",
        k_positions=jnp.broadcast_to(jnp.arange(seen[0].shape[1]), (batch, seen[0].shape[1])),
    )  # fmt: skip
    keys, values = memories
    read = attend_all(state_q, keys[0], values[0])
    if keys.shape[0] > 1:
        second = (place >= width)[..., None, None]
        read = jnp.where(second, attend_all(state_q, keys[1], values[1]), read)
    return jnp.concatenate([own, read], axis=2)


def _long(config: ModelConfig, params: Params, q: Any, state_q: Any, seen: tuple, memories: tuple, at: Any) -> Any:
    """Any number of tokens, window by window."""
    from hybrid.ops.attention import attention

    width, (batch, length) = config.block_recurrent.window, q.shape[:2]
    keys, values = memories
    windows = keys.shape[0]
    rows = (windows + 1) * width

    def laid_out(array: Any, before: int) -> Any:
        return _put(jnp.zeros((batch, rows, *array.shape[2:]), array.dtype), array, before + at)

    own = attention(
        laid_out(q, width - 1), *(array[:, :rows] for array in seen), window=width, scale=1.0,
        bias=_bias(config, params, 1), form="blocks",
    )  # fmt: skip
    grid = laid_out(state_q, 0)[:, : windows * width].reshape(batch, windows, width, *state_q.shape[2:])
    read = jax.vmap(attend_all, in_axes=(1, 0, 0), out_axes=1)(grid, keys, values)
    read = read.reshape(batch, windows * width, *read.shape[3:])
    return jnp.concatenate([_take(own, width - 1 + at, length), _take(read, at, length)], axis=2)


def check(config: ModelConfig) -> None:
    heads(config)
    group = config.block_recurrent
    if group.relative_distance <= group.relative_buckets // 2:
        least = group.relative_buckets // 2 + 1
        raise ConfigError("relative_distance", f"{group.relative_distance} is not allowed; must be at least {least}")


KIND = Kind(
    symbol="R",
    group="block_recurrent",
    config=BlockRecurrentConfig,
    # Windows are counted from the beginning of the row.
    traits=lambda config: Traits(packing="refused", together=config.block_recurrent.window),
    spec=spec,
    apply=apply,
    reference=reference,
    state=state,
    extend=extend,
    check=check,
)
