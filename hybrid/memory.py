"""Bytes that a train step, reading a prompt or decoding takes, before anything is allocated.

    training(config, length=1_048_576).peak          # of the compiled program: nothing runs, no array is made
    decoding(config, length=131_072, batch=8).peak

The programs are compiled for this machine from shapes alone and asked what they take (XLA's buffer assignment). What a
process takes beside that, its code and libraries, is not in it: some hundred MiB; nor is what malloc keeps of pages.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from hybrid.config import ModelConfig
from hybrid.lazy import jax
from hybrid.params import abstract
from hybrid.sublayers import ON_REPLACE

MOMENTS = 2
"""Arrays of the size of the parameters that AdamW keeps, float32."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the device."""

    arguments: int
    """What the program reads: parameters, optimizer, states, tokens."""
    results: int
    """What it writes that does not lie where an argument lay."""
    temporaries: int

    @property
    def peak(self) -> int:
        return self.arguments + self.results + self.temporaries


def of_compiled(compiled: Any) -> Memory:
    """Of a program of `jax.jit(...).lower(...).compile()`."""
    said = compiled.memory_analysis()
    results = said.output_size_in_bytes - said.alias_size_in_bytes
    return Memory(said.argument_size_in_bytes, max(results, 0), said.temp_size_in_bytes)


def training(config: ModelConfig, length: int, batch: int = 1) -> Memory:
    """Loss of next tokens and its gradient, with room for the moments of AdamW. Compiles, which takes seconds."""
    memory = _memory("train", config, length, batch)
    moments = MOMENTS * sum(4 * leaf.size for leaf in jax.tree.leaves(abstract(config)))
    return Memory(memory.arguments + moments, memory.results, memory.temporaries)


def prefill(config: ModelConfig, length: int, batch: int = 1) -> Memory:
    """Reading a prompt of `length` tokens at once: logits of the last position, and the state after it."""
    return _memory("prefill", config, length, batch)


def decoding(config: ModelConfig, length: int, batch: int = 1) -> Memory:
    """Appending one token to a state with room for `length`, in place."""
    return _memory("decode", config, length, batch)


def lowered(work: str, config: ModelConfig, length: int, batch: int = 1) -> Any:
    """The program of WORKS, traced from shapes: `.compile()` gives what can be called.

    train    (params, tokens (batch, length)) -> loss, gradients
    prefill  (params, tokens (batch, length)) -> logits of the last position, a state with room for `length`
    decode   (params, token (batch, 1), state) -> logits, the state, in the place of the one given
    """
    return WORKS[work](config, length, batch)


@functools.lru_cache(maxsize=256)
def _memory(work: str, config: ModelConfig, length: int, batch: int) -> Memory:
    return of_compiled(lowered(work, config, length, batch).compile())


ON_REPLACE.append(_memory.cache_clear)


def _train(config: ModelConfig, length: int, batch: int) -> Any:
    gradient = jax.jit(jax.value_and_grad(functools.partial(_loss, config)))
    return gradient.lower(abstract(config), _tokens(batch, length))


def _prefill(config: ModelConfig, length: int, batch: int) -> Any:
    return jax.jit(functools.partial(_read, config)).lower(abstract(config), _tokens(batch, length))


def _decode(config: ModelConfig, length: int, batch: int) -> Any:
    append = jax.jit(functools.partial(_append, config), donate_argnums=2)
    return append.lower(abstract(config), _tokens(batch, 1), state_shapes(config, length, batch))


WORKS = {"prefill": _prefill, "decode": _decode, "train": _train}


def state_shapes(config: ModelConfig, length: int, batch: int = 1) -> Any:
    from hybrid.model import init_state

    return jax.eval_shape(lambda: init_state(config, batch, length))


def _tokens(batch: int, length: int) -> Any:
    return jax.ShapeDtypeStruct((batch, length), "int32")


def _loss(config: ModelConfig, params: Any, tokens: Any) -> Any:
    from hybrid.losses import token_losses
    from hybrid.model import forward

    both = {} if config.encoder is None else {"decoder_tokens": tokens}
    hidden, aux = forward(config, params, tokens, **both)
    nats, _ = token_losses(config, params, hidden, tokens)
    return nats.mean() + sum(aux.losses.values())


def _read(config: ModelConfig, params: Any, tokens: Any) -> Any:
    from hybrid.model import extend_hidden, init_state, logits

    batch, length = tokens.shape
    hidden, state = extend_hidden(config, params, tokens, init_state(config, batch, length))
    return logits(config, params, hidden[:, -1]), state


def _append(config: ModelConfig, params: Any, token: Any, state: Any) -> Any:
    from hybrid.model import extend_hidden, logits

    hidden, state = extend_hidden(config, params, token, state)
    return logits(config, params, hidden[:, -1]), state
