"""What a model costs: parameters (without jax), floating point operations and the bytes of decoding states."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from hybrid.config import ModelConfig
from hybrid.lazy import jax, jnp
from hybrid.params import declarations_per_layer, leaves
from hybrid.sublayers import ON_REPLACE


@dataclass(frozen=True)
class Parameters:
    """Counts of numbers."""

    total: int
    active: int
    """Those that one token uses (fewer than all in a mixture of experts)."""
    without_embeddings: int
    """Without the embedding tables and an untied head."""


@dataclass(frozen=True)
class Flops:
    """Floating point operations of a whole batch; a multiply-add counts as two."""

    forward: int
    train: int
    """Forward and backward pass of the mean loss, without the optimizer's own few per parameter."""


@dataclass(frozen=True)
class Counts:
    parameters: Parameters
    flops: Flops
    state_bytes: int
    """Of the decoding states of the whole batch, with room for `length` tokens."""


@functools.lru_cache(maxsize=4096)
def parameters(config: ModelConfig) -> Parameters:
    """Counted from the declarations; needs no jax."""
    tree = declarations_per_layer(config)
    total = sum(param.size for _, param in leaves(tree))
    tables = sum(param.size for path, param in leaves(tree) if path[0] in ("embedding", "head"))
    active = round(sum(param.size * param.used for _, param in leaves(tree)))
    return Parameters(total=total, active=active, without_embeddings=total - tables)


def layer_parameters(config: ModelConfig) -> list[int]:
    """Parameters of each sublayer of the pattern with its norms, in order."""
    layers = declarations_per_layer(config)["layers"]
    return [sum(param.size for _, param in leaves(layers[str(i)])) for i in range(config.n_layers)]


def count(config: ModelConfig, length: int, batch: int = 1, targets: int | None = None) -> Counts:
    """Parameters, FLOPs of `batch` sequences of `length` tokens, and the bytes that decoding them carries.

    targets: what the decoder of a model with an encoder reads, None: as many as the encoder.
    """
    decoded = targets or length
    return Counts(parameters(config), flops(config, length, batch, targets), state_bytes(config, decoded, batch))


def flops(config: ModelConfig, length: int, batch: int = 1, targets: int | None = None) -> Flops:
    """Counted from the jaxprs of the loss and of its gradient (hybrid/flops.py). An encoder reads `length` tokens, and
    its decoder `targets`, as many if not given.

    The order of the sublayers does not change the sum and neither does the form of an operator that happens to be
    fastest here, so that a count means the same on every machine: sorted layers are traced once each, under scan.
    """
    changes: dict[str, Any] = {"pattern": "".join(sorted(config.sequence)), "scan_layers": True}
    if config.encoder_config is not None:
        changes["encoder"] = "".join(sorted(config.encoder_config.sequence))
    for kind, _ in config.parts():
        changes[kind.group] = dataclasses.replace(getattr(config, kind.group), **kind.counted)
    return _flops(dataclasses.replace(config, **changes), length, batch, targets or length)


@functools.lru_cache(maxsize=1024)
def _flops(config: ModelConfig, length: int, batch: int, targets: int) -> Flops:
    from hybrid.flops import count_jaxpr
    from hybrid.losses import token_losses
    from hybrid.model import forward
    from hybrid.params import abstract

    def loss(params: Any, tokens: Any, labels: Any) -> Any:
        both = {} if config.encoder is None else {"decoder_tokens": labels}
        hidden, _ = forward(config, params, tokens, **both)
        nats, _ = token_losses(config, params, hidden, labels, form="plain")
        return jnp.mean(nats)

    read = length if config.encoder is None else targets
    tokens, labels = (jax.ShapeDtypeStruct((batch, size), "int32") for size in (length, read))
    params = abstract(config)
    forward_only = count_jaxpr(jax.make_jaxpr(loss)(params, tokens, labels))
    both = count_jaxpr(jax.make_jaxpr(jax.value_and_grad(loss))(params, tokens, labels))
    return Flops(forward=forward_only, train=both)


def layer_flops(config: ModelConfig, length: int, batch: int = 1, targets: int | None = None) -> list[int]:
    """FLOPs of each sublayer's share of a train step, in order: what one more of its kind would add."""
    cost = {}
    for symbol in dict.fromkeys(config.sequence):
        encoder = config.encoder if config.sublayer(symbol)[0].prepare else None  # its share is in both, and goes
        one, two = (dataclasses.replace(config, pattern=symbol * n, encoder=encoder) for n in (1, 2))
        read = length if encoder or targets is None else targets  # a stack without its encoder reads the targets
        cost[symbol] = flops(two, read, batch, targets).train - flops(one, read, batch, targets).train
    return [cost[symbol] for symbol in config.sequence]


ON_REPLACE.extend((parameters.cache_clear, _flops.cache_clear))


def state_bytes(config: ModelConfig, length: int, batch: int = 1) -> int:
    """Bytes of the decoding states of `batch` rows with room for `length` tokens: caches, recurrent states, tails."""
    return sum(layer_state_bytes(config, length, batch))


def layer_state_bytes(config: ModelConfig, length: int, batch: int = 1) -> list[int]:
    """The same for each sublayer, in order; 0 for one without a state."""
    sizes = {}
    for symbol in dict.fromkeys(config.sequence):
        kind, view = config.sublayer(symbol)
        made = () if kind.state is None else jax.eval_shape(functools.partial(kind.state, view, batch, length))
        sizes[symbol] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made))
    return [sizes[symbol] for symbol in config.sequence]


def cache_bytes(config: ModelConfig, tokens: int, itemsize: int = 2) -> int:
    """Bytes of keys and values alone: what published tables call the KV cache (no slot bookkeeping, no other states).

    2 * itemsize * n_kv_heads * head_dim * tokens for each attention layer; a window keeps no more tokens than it sees.
    """
    from hybrid.sublayers.heads import heads

    total = 0
    for kind, view in config.parts():
        if kind.group in ("attention", "sliding_window"):
            _, n_kv_heads, head_dim = heads(view)
            kept = min(tokens, view.sliding_window.window) if kind.group == "sliding_window" else tokens
            total += 2 * itemsize * n_kv_heads * head_dim * kept
    return total
