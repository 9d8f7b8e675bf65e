"""Selective copying, memorization and compression (Poli et al. 2024, "Mechanistic design and scaling of hybrid
architectures", appendix B)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.data.synthetic.task import MACRO, Row, Task, must
from hybrid.lazy import jax, jnp
from hybrid.validation import Checked, NaturalInt, PositiveInt

MAD = "Poli et al. 2024 (MAD)"
# --- selective copying ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CopyConfig(Checked):
    vocab_size: PositiveInt = 16
    """The last is the sign to copy, the one before it the blank."""
    num_tokens_to_copy: PositiveInt = 16


def copying(config: CopyConfig, seq_len: int, key: Any, training: bool) -> Row:
    """a . . b c . . . d | . . . .: after the sign, the data without the blanks.

    Each blank stands before a data token drawn for it, so the last data token is just before the sign (so the published
    generator has it).
    """
    count, sign = config.num_tokens_to_copy, config.vocab_size - 1
    for_data, for_blanks = jax.random.split(key)
    data = jax.random.randint(for_data, (count,), 0, sign - 1)
    before = jax.random.randint(for_blanks, (seq_len - 2 * count - 1,), 0, count)
    gaps = jnp.zeros((count,), jnp.int32).at[before].add(1)
    places = jnp.arange(count) + jnp.cumsum(gaps)
    tokens = jnp.full((seq_len,), sign - 1).at[places].set(data).at[seq_len - count - 1].set(sign)
    return {"tokens": tokens, "label_positions": seq_len - count + jnp.arange(count), "labels": data}


def check_copying(config: CopyConfig, seq_len: int) -> None:
    least = 2 * config.num_tokens_to_copy + 2
    must(seq_len >= least, "seq_len", f"{seq_len} is not allowed; {least} or more hold the data, the sign, the copy")
    must(config.vocab_size >= 4, "task.vocab_size", f"{config.vocab_size} is not allowed; must be at least 4")


# --- memorization -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemorizationConfig(Checked):
    vocab_size: PositiveInt = 256
    """The last asks for the value; half of the others are keys, half values."""
    kv_map_seed: NaturalInt = 12345
    """Of the one map from keys to values, which no row shows: it must be learned by heart."""


def memorization(config: MemorizationConfig, seq_len: int, key: Any, training: bool) -> Row:
    """k ? k ? ..: at each ? the value of the key before it. All rows, of training and test, share one map."""
    n_keys = (config.vocab_size - 1) // 2
    n_values = config.vocab_size - 1 - n_keys
    values = n_keys + jax.random.permutation(jax.random.key(config.kv_map_seed), n_values)[:n_keys]
    keys = jax.random.randint(key, (seq_len // 2,), 0, n_keys)
    tokens = jnp.stack([keys, jnp.full_like(keys, config.vocab_size - 1)], 1).reshape(-1)
    return {"tokens": tokens, "label_positions": 1 + 2 * jnp.arange(seq_len // 2), "labels": values[keys]}


def check_memorization(config: MemorizationConfig, seq_len: int) -> None:
    must(seq_len % 2 == 0, "seq_len", f"{seq_len} is not allowed; must be even")
    must(config.vocab_size >= 5, "task.vocab_size", f"{config.vocab_size} is not allowed; must be at least 5")


# --- compression ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompressionConfig(Checked):
    vocab_size: PositiveInt = 16
    """The last ends every row."""


def compression(config: CompressionConfig, seq_len: int, key: Any, training: bool) -> Row:
    """Random tokens and the end; all of them (the end too) are answered from the last position."""
    tokens = jax.random.randint(key, (seq_len,), 0, config.vocab_size - 1).at[-1].set(config.vocab_size - 1)
    return {"tokens": tokens, "labels": tokens}


def check_compression(config: CompressionConfig, seq_len: int) -> None:
    must(config.vocab_size >= 3, "task.vocab_size", f"{config.vocab_size} is not allowed; must be at least 3")
    must(seq_len >= 2, "seq_len", f"{seq_len} is not allowed; must be at least 2")


COPYING = Task(
    about="tokens among blanks, copied in their order at the end",
    source=f"{MAD}, selective copying",
    config=CopyConfig,
    vocab_size=lambda config: config.vocab_size,
    row=copying,
    chance=lambda config, seq_len: 1 / (config.vocab_size - 2),
    check=check_copying,
    **MACRO,
)
MEMORIZATION = Task(
    about="values of keys that no row shows, the same in all rows",
    source=f"{MAD}, memorization",
    config=MemorizationConfig,
    vocab_size=lambda config: config.vocab_size,
    row=memorization,
    chance=lambda config, seq_len: 1 / (config.vocab_size - 1 - (config.vocab_size - 1) // 2),
    check=check_memorization,
    **MACRO,
)
COMPRESSION = Task(
    about="a row of random tokens, read out of one hidden state",
    source=f"{MAD}, compression",
    config=CompressionConfig,
    vocab_size=lambda config: config.vocab_size,
    row=compression,
    chance=lambda config, seq_len: (1 + (seq_len - 1) / (config.vocab_size - 1)) / seq_len,
    check=check_compression,
    **MACRO,
    readout="last",
)
