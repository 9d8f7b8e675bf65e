"""Selective copying (Gu & Dao 2023, section 4.1 and appendix E.1; Arjovsky et al. 2016, Jing et al. 2019): data tokens
at random places among noise, then as many signs, at which they are written in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.data.synthetic.task import Row, Task, distinct, must
from hybrid.lazy import jax, jnp
from hybrid.validation import Checked, PositiveInt


@dataclass(frozen=True)
class SelectiveCopyingConfig(Checked):
    vocab_size: PositiveInt = 16
    """0 is the noise, the last the sign, the others are data."""
    data_tokens: PositiveInt = 16


def row(config: SelectiveCopyingConfig, seq_len: int, key: Any, training: bool) -> Row:
    """L = what is read, with its noise, and the signs behind it."""
    count, sign = config.data_tokens, config.vocab_size - 1
    for_data, for_places = jax.random.split(key)
    data = jax.random.randint(for_data, (count,), 1, sign)
    places = jnp.sort(distinct(for_places, seq_len - count, count))
    tokens = jnp.zeros((seq_len,), jnp.int32).at[places].set(data).at[seq_len - count :].set(sign)
    return {"tokens": tokens, "label_positions": seq_len - count + jnp.arange(count), "labels": data}


def check(config: SelectiveCopyingConfig, seq_len: int) -> None:
    least = 2 * config.data_tokens
    must(seq_len >= least, "seq_len", f"{seq_len} is not allowed; {least} or more hold the data and their copy")
    must(config.vocab_size >= 4, "task.vocab_size", f"{config.vocab_size} is not allowed; must be at least 4")


TASK = Task(
    about="tokens at random places among noise, copied in their order at the end",
    source="Gu & Dao 2023 (Mamba), appendix E.1, table 1",
    config=SelectiveCopyingConfig,
    vocab_size=lambda config: config.vocab_size,
    row=row,
    chance=lambda config, seq_len: 1 / (config.vocab_size - 2),
    check=check,
)
