"""Cross-entropy at the labelled positions, without the logits of all of them at one time where these are many.

`plain`    all logits at once.
`chunked`  a scan over chunks of positions, whose logits are made again in the backward pass: one more product with the
           head, and memory that does not grow with the positions. Exact: each position sees the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hybrid.config import ModelConfig
from hybrid.model import logits
from hybrid.ops.forms import lookup, note
from hybrid.sharding import RULES, active_mesh, per_device

IGNORED = -1
"""The label of a position that is not scored."""

PLAIN_UP_TO = 1 << 24
"""Logits of a batch: 64 MiB in float32, and three times that in the backward pass."""
CHUNK = 1 << 23
"""Logits of a chunk. Smaller ones read the head more often than they calculate with it."""


def token_losses(
    config: ModelConfig,
    params: Mapping[str, Any],
    hidden: Float[Array, "B L D"],
    labels: Int[Array, "B K"],
    label_positions: Int[Array, "B K"] | None = None,
    form: str = "auto",
) -> tuple[Float[Array, "B K"], Bool[Array, "B K"]]:
    """(-log p(label) in nats, which are scored), zero where not.

    label_positions: where the labels stand; logits are then made at these positions alone. Without it K = L.
    form: of this module; `auto` takes `chunked` above PLAIN_UP_TO logits a device.
    """
    if label_positions is not None:
        hidden = jnp.take_along_axis(hidden, label_positions[..., None], axis=1)
    # What the head reads alone: the derivative adds up over the chunks, and has a place for each array given here.
    used = {name: params[name] for name in ("embedding", "head") if name in params}
    mesh = active_mesh()
    if form == "auto":
        devices = 1 if mesh is None else mesh.size
        form = "plain" if labels.size * config.vocab_size <= PLAIN_UP_TO * devices else "chunked"
    nats = lookup(_FORMS, form)(config, used, hidden, labels)
    scored = labels != IGNORED
    return jnp.where(scored, nats, 0.0), scored


def _columns(config: ModelConfig, params: Mapping[str, Any]) -> int:
    """Of the vocabulary that is here: a part of it inside of `_on_mesh`."""
    return params["embedding"]["tokens"].shape[0] if config.tie_embeddings else params["head"]["kernel"].shape[1]


def _on_mesh(config: ModelConfig, params: Mapping[str, Any], hidden: Any, labels: Any) -> Any:
    """Each device its own rows and its own part of the vocabulary: the head is brought together once and not in every
    chunk, and its gradient is added up over the devices after the last (beside that of a tied embedding's lookup)."""
    table, kernel = params["embedding"]["tokens"], params.get("head", {}).get("kernel")
    rest = {name: value for name, value in params.get("head", {}).items() if name not in ("kernel", "bias")}
    bias = params.get("head", {}).get("bias")

    def piece(hidden: Any, labels: Any, table: Any, kernel: Any, bias: Any, rest: Any) -> Any:
        own = {"kernel": kernel, "bias": bias}
        head = {**rest, **{name: value for name, value in own.items() if value is not None}}
        return _in_chunks(config, {"embedding": {"tokens": table}, "head": head}, hidden, labels)

    rows = ("batch", "length")
    if config.tie_embeddings:
        kernel = None
    else:
        table = None
    axes = [(*rows, None), rows, ("vocab", None), (None, "vocab"), ("vocab",), None]
    return per_device(piece, axes, rows)(hidden, labels, table, kernel, bias, rest)


def _plain(config: ModelConfig, params: Mapping[str, Any], hidden: Any, labels: Any) -> Any:
    note("token_losses", "plain")
    return _nats(config, params, hidden, labels)


def _nats(config: ModelConfig, params: Mapping[str, Any], hidden: Any, labels: Any) -> Any:
    """(batch, positions); what stands where nothing is scored means nothing."""
    out = logits(config, params, hidden)
    wanted = jnp.where(labels == IGNORED, 0, labels)
    if out.shape[-1] != config.vocab_size:
        return _nats_of_part(out, wanted)
    picked = jnp.take_along_axis(out, wanted[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(out, axis=-1) - picked


def _nats_of_part(out: Any, wanted: Any) -> Any:
    """The same, where each device of an axis has its part of the logits."""
    (axis,) = RULES["vocab"]
    wanted = wanted - jax.lax.axis_index(axis) * out.shape[-1]
    here = (wanted >= 0) & (wanted < out.shape[-1])
    picked = jnp.take_along_axis(out, jnp.where(here, wanted, 0)[..., None], axis=-1)[..., 0]
    highest = jax.lax.pmax(jax.lax.stop_gradient(out.max(-1)), axis)
    total = jnp.exp(out - highest[..., None]).sum(-1)
    total, picked = jax.lax.psum((total, jnp.where(here, picked, 0.0)), axis)
    return jnp.log(total) + highest - picked


def _chunked(config: ModelConfig, params: Mapping[str, Any], hidden: Any, labels: Any) -> Any:
    return (_in_chunks if active_mesh() is None else _on_mesh)(config, params, hidden, labels)


def _in_chunks(config: ModelConfig, params: Mapping[str, Any], hidden: Any, labels: Any) -> Any:
    """Chunks go along the positions, so that rows may lie on several devices."""
    batch, positions = labels.shape
    size = max(1, min(positions, CHUNK // (batch * _columns(config, params))))
    note("token_losses", f"chunked {size}")
    chunks = -(-positions // size)
    missing = chunks * size - positions

    def cut(array: Any, blank: int) -> Any:
        """(batch, positions, ...) -> (chunks, batch, size, ...)."""
        padded = jnp.pad(array, ((0, 0), (0, missing), *((0, 0),) * (array.ndim - 2)), constant_values=blank)
        return padded.reshape(batch, chunks, size, *array.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def chunk(params: Any, part: tuple[Any, Any]) -> Any:
        return _nats(config, params, *part)

    def step(carry: None, part: tuple[Any, Any]) -> tuple[None, Any]:
        return carry, chunk(params, part)

    _, nats = jax.lax.scan(step, None, (cut(hidden, 0), cut(labels, IGNORED)))
    return nats.swapaxes(0, 1).reshape(batch, -1)[:, :positions]


_FORMS: dict[str, Callable[..., Any]] = {"plain": _plain, "chunked": _chunked}
FORMS = tuple(_FORMS)
