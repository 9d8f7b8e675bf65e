"""The stack of residual sublayers: x + f(norm(x)), a segment of repeated units at a time.

A segment is one `lax.scan` over stacked parameters, or is unrolled; both give the same numbers, and dropout is folded
with the global layer index so that they drop the same.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hybrid.chunks import extended, overlapped, way, window
from hybrid.config import ModelConfig
from hybrid.layout import layers_of, scans
from hybrid.norms import norm
from hybrid.segments import Segment
from hybrid.sharding import constrain
from hybrid.sublayers import Aux, Context

Params = Mapping[str, Any]


def run_segment(
    config: ModelConfig, layers: Params, segment: Segment, first: int, x: Any, context: Context
) -> tuple[Any, list[Aux]]:
    """The sublayers of one segment; an Aux for each place in its unit, with a leading axis if it is scanned."""
    size = len(segment.unit)
    if segment.repeats == 1:
        auxes = []
        for offset, symbol in enumerate(segment.unit):
            x, aux = _residual(config, symbol, layers[str(first + offset)], x, context, first + offset)
            auxes.append(aux)
        return x, auxes
    keys = [f"{first + offset}:{first + segment.repeats * size}:{size}" for offset in range(size)]
    assert [layers_of(key).start for key in keys] == list(range(first, first + size))

    def unit(x: Any, inputs: tuple[list[Params], Any]) -> tuple[Any, list[Aux]]:
        stacked, start = inputs
        auxes = []
        for offset, symbol in enumerate(segment.unit):
            x, aux = _residual(config, symbol, stacked[offset], x, context, start + offset)
            auxes.append(aux)
        return constrain(x, "batch", "length", None), auxes

    body = jax.checkpoint(unit) if config.remat == "unit" else unit
    starts = first + size * jnp.arange(segment.repeats)
    return jax.lax.scan(body, x, ([layers[key] for key in keys], starts))


def _residual(
    config: ModelConfig, symbol: str, params: Params, x: Any, context: Context, layer: Any
) -> tuple[Any, Aux]:
    """x + f(norm(x)) of one sublayer, with the norm where the config has it. layer: its index, may be traced."""
    kind, view = config.sublayer(symbol)

    def around(params: Params, x: Any, context: Context, mix: Callable[[Any, Context], tuple]) -> tuple:
        if context.dropout_key is not None:
            context = dataclasses.replace(context, dropout_key=jax.random.fold_in(context.dropout_key, layer))
        y, *more = mix(norm_before(config, params, x), context)
        if context.dropout_key is not None:
            y = drop(config, y, context.dropout_key, context.dropout_rate)
        return add_after(config, params, x, y), *more

    def run(params: Params, x: Any, context: Context) -> tuple[Any, Aux]:
        return around(params, x, context, lambda x, context: kind.apply(view, params["sublayer"], x, context))

    cut = way(kind, view, params["sublayer"], x, context) if config.remat == "chunk" else "no"
    if cut == "state":
        assert kind.extend is not None and kind.state is not None
        extend_kind = kind.extend

        def piece(x: Any, state: Any, context: Context) -> tuple:
            return around(params, x, context, lambda x, c: extend_kind(view, params["sublayer"], x, state, c))

        return extended(piece, kind.state(view, *x.shape[:2]), x, context)
    if cut == "halo":
        return overlapped(functools.partial(run, params), x, context, window(kind, view) - 1)
    if config.remat in ("sublayer", "chunk") or (config.remat == "unit" and not scans(config)):
        run = jax.checkpoint(run)
    return run(params, x, context)


def norm_before(config: ModelConfig, params: Params, x: Any) -> Any:
    return x if config.norm_position == "after" else norm(params["norm"], x, config.norm_eps)


def add_after(config: ModelConfig, params: Params, x: Any, y: Any) -> Any:
    if config.norm_position == "after":
        return norm(params["norm"], x + y, config.norm_eps)
    if config.norm_position == "both":
        y = norm(params["norm_after"], y, config.norm_eps)
    return x + y


def drop(config: ModelConfig, x: Any, key: Any, rate: Any = None) -> Any:
    """rate: () instead of the config's; one that is 0 in the config costs nothing."""
    if config.dropout == 0.0:
        return x
    kept = 1.0 - (config.dropout if rate is None else rate)
    return jnp.where(jax.random.bernoulli(key, kept, x.shape), x / kept, 0.0).astype(x.dtype)


def merge(auxes: Sequence[Aux]) -> Aux:
    """One Aux of a model: losses are added up, metrics have a row a sublayer that reports them, updates are listed."""

    def gather(group: str) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {}
        for aux in auxes:
            for name, value in getattr(aux, group).items():
                rows.setdefault(name, []).append(value)
        return rows

    def flat(values: list[Any]) -> Any:
        return jnp.concatenate([jnp.atleast_1d(value) for value in values])

    return Aux(
        losses={name: flat(values).sum() for name, values in gather("losses").items()},
        metrics={name: flat(values) for name, values in gather("metrics").items()},
        updates=gather("updates"),
    )
