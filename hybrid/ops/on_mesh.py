"""The operators that mix positions, on a mesh: each device works on its own rows, channels and part of the length.

The functions have the arguments of their namesakes in hybrid/ops and give the same numbers. Without a mesh they are
those; what decoding needs (an initial state) goes there too, and XLA cuts it as it sees fit. On a mesh

- recurrences run per device, so that no loop over positions talks to another device: sums over channels come after it;
- along the length, a recurrence runs twice: from zeros, which tells what each shard adds to the state, and from the
  state that the shards before it leave (hybrid.sequence.entering); a state goes through a shard by the product of its
  transitions;
- a short convolution gets the last inputs of the shard before, a sliding window its last keys and values; other
  attention gathers keys and values (n_kv_heads of them, which is why they are gathered and not the queries).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hybrid import sequence
from hybrid.ops import attention as whole_attention
from hybrid.ops import delta, scan, short_conv
from hybrid.ops import linear_recurrence as recurrence
from hybrid.ops import ssd as duality
from hybrid.ops.forms import keep_mask
from hybrid.sharding import RULES, active_mesh, per_device

ROWS = ("batch", "length")


# --- recurrences ------------------------------------------------------------------------------------------------------


def selective_scan(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array | None = None, *,
    initial_state: jax.Array | None = None, segment_ids: jax.Array | None = None, **form: Any,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """hybrid.ops.scan.selective_scan."""

    def run(ids: Any, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, **given: Any) -> Any:
        return scan.selective_scan(x, dt, A, B, C, D, segment_ids=ids, **given, **form)

    if active_mesh() is None or initial_state is not None:
        return run(segment_ids, x, dt, A, B, C, D, initial_state=initial_state)

    def through(x: Any, dt: Any, A: Any, *_: Any) -> Any:
        kept = jnp.exp(jnp.einsum("bld->bd", dt.astype(A.dtype))[..., None] * A)
        return lambda state: kept * state

    wide = (*ROWS, "inner")
    varying, fixed = (*ROWS, None), ("inner", None)
    axes = [wide, wide, fixed, *(fixed if matrix.ndim == 2 else varying for matrix in (B, C)), ("inner",)]
    return _carried(run, through, segment_ids, (x, dt, A, B, C, D), axes, [wide, ("batch", "inner", None)])


def ssd(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array | None = None, *,
    initial_state: jax.Array | None = None, segment_ids: jax.Array | None = None, **form: Any,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """hybrid.ops.ssd.ssd."""

    def run(ids: Any, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, **given: Any) -> Any:
        return duality.ssd(x, dt, A, B, C, D, segment_ids=ids, **given, **form)

    if active_mesh() is None or initial_state is not None:
        return run(segment_ids, x, dt, A, B, C, D, initial_state=initial_state)

    def through(x: Any, dt: Any, A: Any, *_: Any) -> Any:
        kept = jnp.exp(jnp.einsum("blh->bh", dt.astype(A.dtype)) * A)
        return lambda state: kept[..., None, None] * state

    B, C = (shareable(matrix, x.shape[2]) for matrix in (B, C))
    group = (*ROWS, None if B.shape[2] == 1 else "inner", None)
    axes = [(*ROWS, "inner", None), (*ROWS, "inner"), ("inner",), group, group, ("inner",)]
    outputs = [(*ROWS, "inner", None), ("batch", "inner", None, None)]
    return _carried(run, through, segment_ids, (x, dt, A, B, C, D), axes, outputs)


def gated_delta_rule(
    q: jax.Array, k: jax.Array, v: jax.Array, log_decay: jax.Array, beta: jax.Array, *,
    initial_state: jax.Array | None = None, segment_ids: jax.Array | None = None, **form: Any,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """hybrid.ops.delta.gated_delta_rule. What enters a shard goes through it by a matrix, which is the memory that the
    shard makes of the identity while nothing is written."""

    def run(ids: Any, q: Any, k: Any, v: Any, log_decay: Any, beta: Any, **given: Any) -> Any:
        return delta.gated_delta_rule(q, k, v, log_decay, beta, segment_ids=ids, **given, **form)

    if active_mesh() is None or initial_state is not None:
        return run(segment_ids, q, k, v, log_decay, beta, initial_state=initial_state)

    def through(q: Any, k: Any, v: Any, log_decay: Any, beta: Any) -> Any:
        shape, width = v.shape, k.shape[-1]
        one = jnp.broadcast_to(jnp.eye(width, dtype=log_decay.dtype), (shape[0], shape[2], width, width))
        nothing = jnp.zeros((*shape[:3], width), v.dtype)
        _, turned = run(None, q, k, nothing, log_decay, beta, initial_state=one)
        return lambda state: jnp.einsum("bhij,bhjd->bhid", turned, state)

    q, k = (shareable(array, v.shape[2]) for array in (q, k))
    keys = (*ROWS, None if k.shape[2] == 1 else "heads", None)
    axes = [keys, keys, (*ROWS, "heads", None), (*ROWS, "heads"), (*ROWS, "heads")]
    outputs = [(*ROWS, "heads", None), ("batch", "heads", None, None)]
    return _carried(run, through, segment_ids, (q, k, v, log_decay, beta), axes, outputs)


def linear_recurrence(
    a: jax.Array, b: jax.Array, *, initial_state: jax.Array | None = None, segment_ids: jax.Array | None = None,
    **form: Any,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """hybrid.ops.linear_recurrence.linear_recurrence."""

    def run(ids: Any, a: Any, b: Any, **given: Any) -> Any:
        return recurrence.linear_recurrence(a, b, segment_ids=ids, **given, **form)

    if active_mesh() is None or initial_state is not None:
        return run(segment_ids, a, b, initial_state=initial_state)

    def through(a: Any, b: Any) -> Any:
        _, kept = run(None, a, jnp.zeros_like(b), initial_state=jnp.ones_like(b[:, 0]))
        return lambda state: kept * state

    wide = (*ROWS, "inner")
    return _carried(run, through, segment_ids, (a, b), [wide, wide], [wide, ("batch", "inner")])


def _carried(
    run: Callable[..., Any], through: Callable[..., Any], segment_ids: Any, inputs: tuple, axes: list, outputs: list
) -> tuple[jax.Array, jax.Array]:
    """A recurrence per device. run(segment_ids, *inputs, initial_state=, previous_segment=) -> outputs, last state;
    through(*inputs) -> a function that takes a state through the positions, if no document begins among them."""
    parts = sequence.shards(inputs[0].shape[1])

    def piece(ids: Any, *inputs: Any) -> tuple[Any, Any]:
        if parts == 1:
            return run(ids, *inputs)
        previous = None if ids is None else sequence.before(ids, 1)[:, 0]
        _, added = run(ids, *inputs, previous_segment=previous)
        pass_on = through(*inputs)
        unbroken = None if ids is None else keep_mask(ids, previous).all(1)

        def step(state: Any, due: Any) -> Any:
            passed = pass_on(state)
            if unbroken is not None:
                passed = passed * unbroken.reshape(-1, *(1,) * (passed.ndim - 1)).astype(passed.dtype)
            return passed + added

        state = sequence.entering(step, jnp.zeros_like(added))
        y, last = run(ids, *inputs, initial_state=state, previous_segment=previous)
        return y, sequence.of_last(last)

    return per_device(piece, [ROWS, *axes], outputs)(segment_ids, *inputs)


def shareable(array: jax.Array, heads: int, axis: int = 2) -> jax.Array:
    """(batch, length, groups, ...) with its groups repeated, where that is what lets the heads that they serve be cut.

    One group stays one: each device takes it whole.
    """
    groups, devices = array.shape[axis], _devices("heads")
    times = devices // math.gcd(groups, devices)
    if groups == 1 or times == 1 or heads % devices or heads % (groups * times):
        return array
    return jnp.repeat(array, times, axis=axis)


def _devices(name: str) -> int:
    """That the mesh has along a logical axis."""
    mesh = active_mesh()
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in RULES[name])


# --- short convolution ------------------------------------------------------------------------------------------------


def causal_conv(
    x: jax.Array, weight: jax.Array, bias: jax.Array | None = None, *, initial: jax.Array | None = None,
    segment_ids: jax.Array | None = None, channels: str | None = "inner",
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """hybrid.ops.short_conv.causal_conv. channels: the logical axis of the channels, None if they are not cut."""
    if sequence.shards(x.shape[1]) == 1 or initial is not None or weight.shape[0] == 1:
        return short_conv.causal_conv(x, weight, bias, initial=initial, segment_ids=segment_ids)

    def piece(x: Any, ids: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
        n = weight.shape[0] - 1
        previous = None if ids is None else sequence.before(ids, n)
        y, last = short_conv.causal_conv(
            x, weight, bias, initial=sequence.before(x, n), segment_ids=ids, previous_segments=previous
        )
        return y, sequence.of_last(last)

    wide = (*ROWS, channels)
    axes = [wide, ROWS, (None, channels), (channels,)]
    return per_device(piece, axes, [wide, ("batch", None, channels)])(x, segment_ids, weight, bias)


# --- attention --------------------------------------------------------------------------------------------------------


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, segment_ids: jax.Array | None = None, k_valid: jax.Array | None = None,
    causal: bool = True, window: int | None = None, bias: Any = None, form: str = "auto", **options: Any,
) -> jax.Array:  # fmt: skip
    """hybrid.ops.attention.attention of rows whose positions are 0, 1, 2, ... segment_ids: of queries and keys. bias: a
    function of positions, or None; if it reads arrays, a jax.tree_util.Partial of them."""
    call: Callable[..., jax.Array] = functools.partial(
        whole_attention.attention, causal=causal, window=window, **options
    )
    if active_mesh() is None:
        return call(q, k, v, q_segments=segment_ids, k_segments=segment_ids, k_valid=k_valid, bias=bias, form=form)
    heads, length = q.shape[2], q.shape[1]
    parts = sequence.shards(length, k.shape[1])
    k, v = (shareable(array, heads) for array in (k, v))

    def piece(q: Any, k: Any, v: Any, ids: Any, valid: Any, tables: Any) -> Any:
        own = _own_heads(jax.tree_util.Partial(bias.func, *tables) if tables else bias, heads, q.shape[2])
        if parts == 1:
            return call(q, k, v, q_segments=ids, k_segments=ids, k_valid=valid, bias=own, form=form)
        local, first = q.shape[1], sequence.index() * q.shape[1]
        back = min(window - 1, length - local) if causal and window is not None else None  # positions of the halo

        def seen(array: Any) -> Any:
            if array is None:
                return None
            if back is None:
                return sequence.gathered(array)
            return jnp.concatenate([sequence.before(array, back), array], axis=1)

        keys = seen(k)
        at = jnp.arange(keys.shape[1], dtype=jnp.int32) + (0 if back is None else first - back)
        there = jnp.broadcast_to(at >= 0, keys.shape[:2])
        return call(
            q, keys, seen(v), q_segments=ids, k_segments=seen(ids), bias=own,
            q_positions=jnp.broadcast_to(first + jnp.arange(local, dtype=jnp.int32), q.shape[:2]),
            k_positions=jnp.broadcast_to(at, keys.shape[:2]),
            k_valid=there if valid is None else there & seen(valid),
            form="auto" if form == "blocks" else form,  # blocks count from the beginning of the row
        )  # fmt: skip

    wide, narrow = (*ROWS, "heads", None), (*ROWS, None if k.shape[2] == 1 else "heads", None)
    tables = bias.args if isinstance(bias, jax.tree_util.Partial) else ()
    return per_device(piece, [wide, narrow, narrow, ROWS, ROWS, None], wide)(q, k, v, segment_ids, k_valid, tables)


def _own_heads(bias: Any, heads: int, own: int) -> Any:
    """A bias of all heads as one of those that this device has."""
    if bias is None or own == heads:
        return bias

    def cut(q_positions: Any, k_positions: Any) -> Any:
        whole = bias(q_positions, k_positions)
        (axis,) = RULES["heads"]
        return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(axis) * own, own, axis=1)

    return cut
