"""Tasks of state: parity, cumulative parity, majority of random bits.

A recurrence whose transitions are between 0 and 1, as Mamba's and the gated delta rule's are, cannot count modulo two
at every length, in theory (Grazzi et al. 2024; Merrill et al. 2024); nor does attention with a fixed number of layers
(Hahn 2020). So failing here is no fault of a run; majority, a sum against a threshold, is within reach of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.data.synthetic.task import Row, Task, must
from hybrid.lazy import jax, jnp
from hybrid.validation import Checked


@dataclass(frozen=True)
class BitsConfig(Checked):
    """Bits are the tokens 0 and 1, each with probability one half; so are the answers."""


def _bits(seq_len: int, key: Any) -> Any:
    return jax.random.bernoulli(key, shape=(seq_len,)).astype(jnp.int32)


def _at_the_end(bits: Any, answer: Any) -> Row:
    return {"tokens": bits, "label_positions": jnp.full((1,), bits.shape[0] - 1), "labels": answer[None]}


def parity(config: BitsConfig, seq_len: int, key: Any, training: bool) -> Row:
    bits = _bits(seq_len, key)
    return _at_the_end(bits, bits.sum() % 2)


def cumulative(config: BitsConfig, seq_len: int, key: Any, training: bool) -> Row:
    bits = _bits(seq_len, key)
    return {"tokens": bits, "labels": jnp.cumsum(bits) % 2}


def majority(config: BitsConfig, seq_len: int, key: Any, training: bool) -> Row:
    bits = _bits(seq_len, key)
    return _at_the_end(bits, (2 * bits.sum() > seq_len).astype(jnp.int32))


def check(config: BitsConfig, seq_len: int) -> None:
    must(seq_len >= 2, "seq_len", f"{seq_len} is not allowed; must be at least 2")


def check_majority(config: BitsConfig, seq_len: int) -> None:
    must(seq_len % 2 == 1, "seq_len", f"{seq_len} is not allowed; must be odd, so that there is a majority")


def _last_bit(config: BitsConfig, seq_len: int) -> float:
    """Of a guess by one bit of a majority: it is in the majority a little more often than not."""
    from math import comb

    half = (seq_len - 1) // 2
    return 0.5 + comb(seq_len - 1, half) / 2**seq_len


PARITY = Task(
    about="whether the number of ones is odd, at the end",
    source="Hahn 2020; Grazzi et al. 2024",
    config=BitsConfig,
    vocab_size=lambda config: 2,
    row=parity,
    chance=lambda config, seq_len: 0.5,
    check=check,
)
CUMULATIVE = Task(
    about="whether the number of ones so far is odd, at every position",
    source="Grazzi et al. 2024",
    config=BitsConfig,
    vocab_size=lambda config: 2,
    row=cumulative,
    chance=lambda config, seq_len: 0.5 + 1 / seq_len,
    check=check,
)
MAJORITY = Task(
    about="whether there are more ones than zeros, at the end",
    source="Merrill et al. 2022",
    config=BitsConfig,
    vocab_size=lambda config: 2,
    row=majority,
    chance=_last_bit,
    check=check_majority,
)
