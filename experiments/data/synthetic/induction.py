"""Associative recall and induction heads (Fu et al. 2023, H3, section 3.1; the code of Hyena has their numbers), and
induction heads as Mamba trains and stretches them (Gu & Dao 2023, appendix E.1).

    recall       k2 v2 k1 v1 k2 v2 .. => k1       the value of the last key
    induction    . . => x . . . . . . =>          the token that came after the sign
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from experiments.data.synthetic.task import Row, Task, must, next_tokens, one_of
from hybrid.lazy import jax, jnp
from hybrid.validation import Checked, PositiveInt

# --- associative recall -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AssociativeConfig(Checked):
    vocab_size: PositiveInt = 20
    """The last two are the sign and one that never comes; half of the others are keys, half values."""
    train_on: Literal["all", "answer"] = "all"
    """Labels of training: every next token, or the answer alone. Test rows are scored on the answer."""


def associative(config: AssociativeConfig, seq_len: int, key: Any, training: bool) -> Row:
    n_keys = (config.vocab_size - 2) // 2
    n_values = config.vocab_size - 2 - n_keys
    for_map, for_keys, for_probe = jax.random.split(key, 3)
    values = n_keys + jax.random.randint(for_map, (n_keys,), 0, n_values)
    keys = jax.random.randint(for_keys, (seq_len // 2 - 1,), 0, n_keys)
    probe = one_of(for_probe, jnp.zeros((n_keys,), bool).at[keys].set(True))
    pairs = jnp.stack([keys, values[keys]], 1).reshape(-1)
    tokens = jnp.concatenate([pairs, jnp.stack([_sign(config), probe, values[probe]])])
    return _answered(config, tokens, seq_len, training)


def check_associative(config: AssociativeConfig, seq_len: int) -> None:
    must(seq_len % 2 == 0 and seq_len >= 4, "seq_len", f"{seq_len} is not allowed; must be even, at least 4")
    must(config.vocab_size >= 6, "task.vocab_size", f"{config.vocab_size} is not allowed; must be at least 6")


def _sign(config: Any) -> Any:
    return jnp.asarray(config.vocab_size - 2)


def _answered(config: Any, tokens: Any, seq_len: int, training: bool) -> Row:
    """Of a sequence (L + 1,) whose last token is the answer."""
    if training and config.train_on == "all":
        return next_tokens(tokens)
    return {"tokens": tokens[:-1], "label_positions": jnp.full((1,), seq_len - 1), "labels": tokens[-1:]}


# --- induction heads --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class H3InductionConfig(Checked):
    vocab_size: PositiveInt = 20
    """The last two are the sign and one that never comes."""
    train_on: Literal["all", "answer"] = "all"


@dataclass(frozen=True)
class InductionConfig(Checked):
    vocab_size: PositiveInt = 16
    """The last is the sign."""
    train_on: Literal["all", "answer"] = "answer"


def h3_induction(config: H3InductionConfig, seq_len: int, key: Any, training: bool) -> Row:
    return _induction(config, config.vocab_size - 2, seq_len, key, training)


def induction(config: InductionConfig, seq_len: int, key: Any, training: bool) -> Row:
    return _induction(config, config.vocab_size - 1, seq_len, key, training)


def _induction(config: Any, sign: int, seq_len: int, key: Any, training: bool) -> Row:
    """The sign stands once among L - 1 random tokens, not at their end, and once more behind them."""
    for_tokens, for_place = jax.random.split(key)
    tokens = jax.random.randint(for_tokens, (seq_len + 1,), 0, sign)
    place = jax.random.randint(for_place, (), 0, seq_len - 2)
    tokens = tokens.at[place].set(sign).at[seq_len - 1].set(sign).at[seq_len].set(tokens[place + 1])
    return _answered(config, tokens, seq_len, training)


def check_induction(config: Any, seq_len: int) -> None:
    must(seq_len >= 3, "seq_len", f"{seq_len} is not allowed; must be at least 3")
    must(config.vocab_size >= 4, "task.vocab_size", f"{config.vocab_size} is not allowed; must be at least 4")


ASSOCIATIVE = Task(
    about="pairs of keys and values, drawn with repeats; the value of one key at the end",
    source="Fu et al. 2023 (H3); Poli et al. 2023 (Hyena)",
    config=AssociativeConfig,
    vocab_size=lambda config: config.vocab_size,
    row=associative,
    chance=lambda config, seq_len: 1 / (config.vocab_size - 2 - (config.vocab_size - 2) // 2),
    check=check_associative,
)
H3_INDUCTION = Task(
    about="the token that came after the sign, when the sign comes again; trained on all next tokens",
    source="Fu et al. 2023 (H3)",
    config=H3InductionConfig,
    vocab_size=lambda config: config.vocab_size,
    row=h3_induction,
    chance=lambda config, seq_len: 1 / (config.vocab_size - 2),
    check=check_induction,
)
INDUCTION = Task(
    about="the token that came after the sign, at any distance",
    source="Gu & Dao 2023 (Mamba), appendix E.1, table 11",
    config=InductionConfig,
    vocab_size=lambda config: config.vocab_size,
    row=induction,
    chance=lambda config, seq_len: 1 / (config.vocab_size - 1),
    check=check_induction,
)
