"""From tokens to logits: embedding, the stack of residual sublayers, final norm, head.

The stack is cut into segments of repeated units. A segment is one `lax.scan` over stacked parameters, or is unrolled;
both give the same numbers, and dropout is folded with the global layer index so that they drop the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hybrid.config import ModelConfig
from hybrid.layout import arrange, layers_of, per_layer, scans, stack_segments
from hybrid.lazy import struct
from hybrid.norms import norm
from hybrid.ops.linear import linear
from hybrid.positions import documents, in_document, sinusoids
from hybrid.segments import Segment
from hybrid.sharding import constrain
from hybrid.sublayers import Aux, Context
from hybrid.validation import ConfigError

Params = Mapping[str, Any]


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B L"],
    *,
    segment_ids: Int[Array, "B L"] | None = None,
    positions: Int[Array, "B L"] | None = None,
    padding: Bool[Array, "B L"] | None = None,
    dropout_key: Any = None,
) -> tuple[Float[Array, "B L D"], Aux]:
    """Hidden states after the final norm, and what the sublayers report.

    segment_ids: the document of each token, in rows that hold several. positions: counted in the document if not
    given. padding: True at real tokens. dropout_key: None in evaluation.
    """
    if config.max_length is not None and config.positions == "learned" and tokens.shape[1] > config.max_length:
        raise ConfigError("max_length", f"{config.max_length} is less than the {tokens.shape[1]} tokens given")
    for kind, view in set(config.kinds()):
        limit = kind.traits(view).max_length
        if limit is not None and tokens.shape[1] > limit:
            raise ConfigError(kind.group, f"takes at most {limit} tokens; {tokens.shape[1]} were given")
        if segment_ids is not None and kind.traits(view).packing == "refused":
            raise ConfigError(kind.group, "mixes packed documents; segment_ids are not allowed")
    if segment_ids is not None:
        segment_ids = documents(segment_ids)
    if positions is None:
        index = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        positions = index if segment_ids is None else in_document(segment_ids)
    params = arrange(config, params)
    context = Context(
        positions=positions, segment_ids=segment_ids, padding=padding, dropout_key=dropout_key,
        shared=params.get("shared", {}),
    )  # fmt: skip
    x = embed(config, params["embedding"], tokens, positions)
    if dropout_key is not None:
        x = _drop(config, x, jax.random.fold_in(dropout_key, config.n_layers))
    x, auxes, first = constrain(x, "batch", "length", None), [], 0
    for segment in stack_segments(config):
        x, aux = _segment(config, params["layers"], segment, first, x, context)
        auxes += aux
        first += len(segment.unit) * segment.repeats
    return norm(params["final_norm"], x, config.norm_eps), merge(auxes)


def apply(config: ModelConfig, params: Params, tokens: Int[Array, "B L"], **options: Any) -> Float[Array, "B L vocab"]:
    """Logits, at least float32. The options are those of `forward`."""
    hidden, _ = forward(config, params, tokens, **options)
    return logits(config, params, hidden)


def embed(
    config: ModelConfig, params: Params, tokens: Int[Array, "B L"], positions: Int[Array, "B L"]
) -> Float[Array, "B L D"]:
    """Token embedding times its scale, plus learned or sinusoidal positions, in the compute dtype."""
    table = constrain(params["tokens"], "vocab", None)  # gather the table's columns, and not all rows of the batch
    x = table[tokens] * config.embedding_scale
    if config.positions == "learned":
        x = x + params["positions"][positions]
    elif config.positions == "sinusoidal":
        x = x + sinusoids(positions, config.d_model, x.dtype)
    return x.astype(config.compute_dtype)


def logits(config: ModelConfig, params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... vocab"]:
    """The head: tied to the embedding or its own, soft-capped if asked; at least float32."""
    kernel = params["embedding"]["tokens"].T if config.tie_embeddings else params["head"]["kernel"]
    out = linear(hidden, kernel)
    out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
    if config.logit_softcap is not None:
        out = config.logit_softcap * jnp.tanh(out / config.logit_softcap)
    return out


# --- the stack --------------------------------------------------------------------------------------------------------


def _segment(
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

    def run(params: Params, x: Any, context: Context) -> tuple[Any, Aux]:
        if context.dropout_key is not None:
            context = dataclasses.replace(context, dropout_key=jax.random.fold_in(context.dropout_key, layer))
        y, aux = kind.apply(view, params["sublayer"], _before(config, params, x), context)
        if context.dropout_key is not None:
            y = _drop(config, y, context.dropout_key)
        return _after(config, params, x, y), aux

    if config.remat == "sublayer" or (config.remat == "unit" and not scans(config)):
        run = jax.checkpoint(run)
    return run(params, x, context)


def _before(config: ModelConfig, params: Params, x: Any) -> Any:
    return x if config.norm_position == "after" else norm(params["norm"], x, config.norm_eps)


def _after(config: ModelConfig, params: Params, x: Any, y: Any) -> Any:
    if config.norm_position == "after":
        return norm(params["norm"], x + y, config.norm_eps)
    if config.norm_position == "both":
        y = norm(params["norm_after"], y, config.norm_eps)
    return x + y


def _drop(config: ModelConfig, x: Any, key: Any) -> Any:
    if config.dropout == 0.0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - config.dropout, x.shape)
    return jnp.where(kept, x / (1.0 - config.dropout), 0.0).astype(x.dtype)


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


# --- decoding ---------------------------------------------------------------------------------------------------------


@struct
class ModelState:
    """What decoding carries: a state a sublayer, and how many tokens each row has read."""

    layers: tuple[Any, ...]
    length: Any
    """(batch,) int32"""
    room: Any
    """() int32: tokens that still fit"""


def init_state(config: ModelConfig, batch: int, capacity: int) -> ModelState:
    """A fresh state for `capacity` tokens a row. Raises ConfigError where a sublayer cannot decode that many."""
    states = []
    for kind, view in config.kinds():
        traits = kind.traits(view)
        if kind.state is None or not traits.decodable:
            raise ConfigError("pattern", f"{kind.symbol} ({kind.group}) cannot decode step by step")
        if traits.max_length is not None and capacity > traits.max_length:
            raise ConfigError("capacity", f"{capacity} is not allowed; {kind.group} takes at most {traits.max_length}")
        states.append(kind.state(view, batch, capacity))
    if config.positions == "learned" and config.max_length is not None and capacity > config.max_length:
        raise ConfigError("capacity", f"{capacity} is not allowed; max_length is {config.max_length}")
    return ModelState(layers=tuple(states), length=jnp.zeros((batch,), jnp.int32), room=jnp.array(capacity, jnp.int32))


def extend(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"], state: ModelState
) -> tuple[Float[Array, "B T vocab"], ModelState]:
    """Logits of the new tokens and the state after them; any way of cutting a sequence gives what `apply` gives.

    Writing past the capacity is refused before it starts (ConfigError); where the state is traced and cannot be
    asked, the logits are NaN instead of wrong.
    """
    hidden, state = extend_hidden(config, params, tokens, state)
    out = logits(config, params, hidden)
    return jnp.where(state.room >= 0, out, jnp.nan), state


def extend_hidden(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"], state: ModelState
) -> tuple[Float[Array, "B T D"], ModelState]:
    """`extend` up to the head: hidden states after the final norm."""
    new = tokens.shape[1]
    if not isinstance(state.room, jax.core.Tracer) and int(state.room) < new:
        raise ConfigError("capacity", f"the state has room for {int(state.room)} more tokens; {new} were given")
    positions = state.length[:, None] + jnp.arange(new, dtype=jnp.int32)[None]
    layers = per_layer(params)["layers"]
    context = Context(positions=positions, shared=params.get("shared", {}))
    x = embed(config, params["embedding"], tokens, positions)
    states = []
    for i, (kind, view) in enumerate(config.kinds()):
        layer = layers[str(i)]
        assert kind.extend is not None
        y, sublayer_state, _ = kind.extend(view, layer["sublayer"], _before(config, layer, x), state.layers[i], context)
        x = _after(config, layer, x, y)
        states.append(sublayer_state)
    x = norm(params["final_norm"], x, config.norm_eps)
    return x, ModelState(layers=tuple(states), length=state.length + new, room=state.room - new)
