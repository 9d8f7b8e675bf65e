"""From tokens to logits: embedding, the stack of residual sublayers (`hybrid.stack`), final norm, head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hybrid.config import ModelConfig
from hybrid.layout import arrange, per_layer, stack_segments
from hybrid.lazy import struct
from hybrid.norms import norm
from hybrid.ops.linear import linear
from hybrid.ops.tied import tied
from hybrid.positions import documents, in_document, sinusoids
from hybrid.sharding import constrain
from hybrid.stack import Params, add_after, drop, merge, norm_before, run_segment
from hybrid.sublayers import Aux, Context
from hybrid.validation import ConfigError


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B L"],
    *,
    decoder_tokens: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    positions: Int[Array, "B L"] | None = None,
    padding: Bool[Array, "B L"] | None = None,
    decoder_padding: Bool[Array, "B T"] | None = None,
    token_types: Int[Array, "B L"] | None = None,
    dropout_key: Any = None,
    dropout_rate: Any = None,
) -> tuple[Float[Array, "B T D"], Aux]:
    """Hidden states after the final norm, and what the sublayers report.

    segment_ids: the document of each token, in rows that hold several. positions: counted in the document, among real
    tokens, if not given. padding: True at real tokens. token_types: BERT's, all 0 if not given. dropout_key: None in
    evaluation. dropout_rate: () a traced rate instead of config.dropout, so that one program serves every rate; a
    config whose rate is 0 draws no random numbers, whatever is given.

    With an encoder it reads `tokens`, and the hidden states are those of `decoder_tokens` (T = L without one).
    """
    encoder = config.encoder_config
    if encoder is None:
        if decoder_tokens is not None or decoder_padding is not None:
            raise ConfigError("decoder_tokens", "not allowed; the model has no encoder")
        x, auxes = _hidden(
            config, params, params, tokens, segment_ids, positions, padding, dropout_key, dropout_rate,
            token_types=token_types,
        )  # fmt: skip
        return x, merge(auxes)
    if decoder_tokens is None:
        raise ConfigError("decoder_tokens", "must be given: the model has an encoder, which reads `tokens`")
    _check_inputs(config, decoder_tokens, segment_ids)
    if segment_ids is not None:
        raise ConfigError("segment_ids", "not allowed: a model with an encoder has one document in a row")
    memory, reported = _encode(config, params, tokens, positions, padding, token_types, dropout_key, dropout_rate)
    x, auxes = _hidden(
        config, params, params, decoder_tokens, None, None, decoder_padding, dropout_key, dropout_rate,
        memory=memory, memory_padding=padding,
    )  # fmt: skip
    of_encoder = merge(reported)
    return x, dataclasses.replace(
        merge([of_encoder, *auxes]), updates={**merge(auxes).updates, **_named("encoder/", of_encoder.updates)}
    )


def encode(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B L"],
    *,
    positions: Int[Array, "B L"] | None = None,
    padding: Bool[Array, "B L"] | None = None,
    token_types: Int[Array, "B L"] | None = None,
) -> Float[Array, "B L D"]:
    """The memory that the encoder of an encoder-decoder makes of `tokens`."""
    if config.encoder is None:
        raise ConfigError("encoder", "must be given: the model has one stack; its hidden states are those of `forward`")
    return _encode(config, params, tokens, positions, padding, token_types)[0]


def apply(config: ModelConfig, params: Params, tokens: Int[Array, "B L"], **options: Any) -> Float[Array, "B T vocab"]:
    """Logits, at least float32. The options are those of `forward`."""
    hidden, _ = forward(config, params, tokens, **options)
    return logits(config, params, hidden)


def _encode(
    config: ModelConfig, params: Params, tokens: Any, positions: Any, padding: Any, token_types: Any,
    dropout_key: Any = None, dropout_rate: Any = None,
) -> tuple[Any, list[Aux]]:  # fmt: skip
    encoder = config.encoder_config
    assert encoder is not None
    if dropout_key is not None:
        dropout_key = jax.random.fold_in(dropout_key, ENCODER)
    return _hidden(
        encoder, params, params["encoder"], tokens, None, positions, padding, dropout_key, dropout_rate,
        token_types=token_types,
    )  # fmt: skip


ENCODER = 1 << 20
"""What an encoder's dropout key is folded with: no layer index."""


def _hidden(
    config: ModelConfig, params: Params, stack: Params, tokens: Any, segment_ids: Any, positions: Any, padding: Any,
    dropout_key: Any, dropout_rate: Any = None, *, memory: Any = None, memory_padding: Any = None,
    token_types: Any = None,
) -> tuple[Any, list[Aux]]:  # fmt: skip
    """One stack from its tokens to its final norm. params: the model's, for the embedding; stack: this stack's."""
    _check_inputs(config, tokens, segment_ids)
    if segment_ids is not None:
        segment_ids = documents(segment_ids)
    if positions is None:
        positions = _positions(tokens, segment_ids, padding)
    stack = arrange(config, {name: value for name, value in stack.items() if name != "encoder"})
    context = Context(
        positions=positions, segment_ids=segment_ids, padding=padding, memory=memory, memory_padding=memory_padding,
        dropout_key=dropout_key, dropout_rate=dropout_rate, shared=stack.get("shared", {}),
    )  # fmt: skip
    x = embed(config, params["embedding"], tokens, positions, token_types)
    if dropout_key is not None:
        x = drop(config, x, jax.random.fold_in(dropout_key, config.n_layers), dropout_rate)
    x, auxes, first = constrain(x, "batch", "length", None), [], 0
    for segment in stack_segments(config):
        x, aux = run_segment(config, stack["layers"], segment, first, x, context)
        auxes += aux
        first += len(segment.unit) * segment.repeats
    return _final(config, stack, x), auxes


def _check_inputs(config: ModelConfig, tokens: Any, segment_ids: Any) -> None:
    if config.max_length is not None and config.positions == "learned" and tokens.shape[1] > config.max_length:
        raise ConfigError("max_length", f"{config.max_length} is less than the {tokens.shape[1]} tokens given")
    for kind, view in set(config.kinds()):
        limit = kind.traits(view).max_length
        if limit is not None and tokens.shape[1] > limit:
            raise ConfigError(kind.group, f"takes at most {limit} tokens; {tokens.shape[1]} were given")
        if segment_ids is not None and kind.traits(view).packing == "refused":
            raise ConfigError(kind.group, "mixes packed documents; segment_ids are not allowed")


def _positions(tokens: Any, segment_ids: Any, padding: Any) -> Any:
    """(batch, length) int32: counted in each document; padding counts for nothing where there is one document."""
    if segment_ids is not None:
        return in_document(segment_ids)
    if padding is not None:
        return jnp.maximum(jnp.cumsum(padding, axis=1, dtype=jnp.int32) - 1, 0)
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)


def embed(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    token_types: Int[Array, "B L"] | None = None,
) -> Float[Array, "B L D"]:
    """Token embedding times its scale, plus those of positions and token types, in the compute dtype."""
    table = constrain(params["tokens"], "vocab", None)  # gather the table's columns, and not all rows of the batch
    x = table[tokens] * config.embedding_scale
    if config.positions == "learned":
        x = x + params["positions"][positions]
    elif config.positions == "sinusoidal":
        x = x + sinusoids(positions, config.d_model, x.dtype)
    if config.token_types:
        x = x + params["types"][jnp.zeros_like(tokens) if token_types is None else token_types]
    if config.embedding_norm:
        x = norm(params["norm"], x, config.norm_eps)
    return x.astype(config.compute_dtype)


def logits(config: ModelConfig, params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... vocab"]:
    """The head: tied to the embedding or its own, scaled and soft-capped if asked; at least float32."""
    if config.head == "transform":
        head = params["head"]
        hidden = jax.nn.gelu(linear(hidden, head["transform"], head["transform_bias"]), approximate=False)
        hidden = norm(head["norm"], hidden, config.norm_eps)
    if config.tie_embeddings:
        out = tied(hidden, params["embedding"]["tokens"])
    else:
        out = linear(hidden, params["head"]["kernel"])
    out = out.astype(jnp.promote_types(out.dtype, jnp.float32)) * config.logit_scale
    if config.head_bias:
        out = out + params["head"]["bias"].astype(out.dtype)
    if config.logit_softcap is not None:
        out = config.logit_softcap * jnp.tanh(out / config.logit_softcap)
    return out


def _final(config: ModelConfig, stack: Params, x: Any) -> Any:
    return norm(stack["final_norm"], x, config.norm_eps) if "final_norm" in stack else x


def _named(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in values.items()}


# --- decoding ---------------------------------------------------------------------------------------------------------


@struct
class ModelState:
    """What decoding carries: a state a sublayer, and how many tokens each row has read."""

    layers: tuple[Any, ...]
    length: Any
    """(batch,) int32"""
    room: Any
    """() int32: tokens that still fit"""


def init_state(
    config: ModelConfig,
    batch: int,
    capacity: int,
    *,
    params: Params | None = None,
    memory: Float[Array, "B M D"] | None = None,
    memory_padding: Bool[Array, "B M"] | None = None,
) -> ModelState:
    """A fresh state for `capacity` tokens a row. Raises ConfigError where a sublayer cannot decode that many.

    A model with an encoder needs params and the memory that `encode` gives: its keys and values are computed here.
    """
    if config.encoder is not None and (params is None or memory is None):
        raise ConfigError("memory", "must be given, with params: the model has an encoder (hybrid.encode makes it)")
    layers = per_layer(params)["layers"] if params is not None else {}
    states = []
    for i, (kind, view) in enumerate(config.kinds()):
        traits = kind.traits(view)
        if kind.state is None or not traits.decodable:
            raise ConfigError("pattern", f"{kind.symbol} ({kind.group}) cannot decode step by step")
        if traits.max_length is not None and capacity > traits.max_length:
            raise ConfigError("capacity", f"{capacity} is not allowed; {kind.group} takes at most {traits.max_length}")
        if kind.prepare is not None:
            states.append(kind.prepare(view, layers[str(i)]["sublayer"], memory, memory_padding))
        else:
            states.append(kind.state(view, batch, capacity))
    if config.positions == "learned" and config.max_length is not None and capacity > config.max_length:
        raise ConfigError("capacity", f"{capacity} is not allowed; max_length is {config.max_length}")
    return ModelState(layers=tuple(states), length=jnp.zeros((batch,), jnp.int32), room=jnp.array(capacity, jnp.int32))


def extend(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    state: ModelState,
    padding: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T vocab"], ModelState]:
    """Logits of the new tokens and the state after them; any way of cutting a sequence gives what `apply` gives.

    padding: True at real tokens, for prompts of several lengths in one batch: what is padded stands in front of a row,
    takes room and no position, and leaves no trace at the real tokens.

    Writing past the capacity is refused before it starts (ConfigError); where the state is traced and cannot be
    asked, the logits are NaN instead of wrong.
    """
    hidden, state = extend_hidden(config, params, tokens, state, padding)
    out = logits(config, params, hidden)
    return jnp.where(state.room >= 0, out, jnp.nan), state


def extend_hidden(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    state: ModelState,
    padding: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], ModelState]:
    """`extend` up to the head: hidden states after the final norm."""
    new = tokens.shape[1]
    if not isinstance(state.room, jax.core.Tracer) and int(state.room) < new:
        raise ConfigError("capacity", f"the state has room for {int(state.room)} more tokens; {new} were given")
    count = jnp.broadcast_to(jnp.arange(1, new + 1, dtype=jnp.int32), tokens.shape)
    if padding is not None:
        count = jnp.cumsum(padding, axis=1, dtype=jnp.int32)
    positions = jnp.maximum(state.length[:, None] + count - 1, 0)
    layers = per_layer({"layers": params["layers"]})["layers"]
    context = Context(positions=positions, padding=padding, shared=params.get("shared", {}))
    x = embed(config, params["embedding"], tokens, positions)
    states = []
    for i, (kind, view) in enumerate(config.kinds()):
        layer = layers[str(i)]
        assert kind.extend is not None
        before = norm_before(config, layer, x)
        y, sublayer_state, _ = kind.extend(view, layer["sublayer"], before, state.layers[i], context)
        x = add_after(config, layer, x, y)
        states.append(sublayer_state)
    length = state.length + count[:, -1]
    return _final(config, params, x), ModelState(layers=tuple(states), length=length, room=state.room - new)
