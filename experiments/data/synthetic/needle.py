"""A needle in a haystack: a pass key that stands somewhere in a long text of fillers is asked for at the end
(Mohtashami & Jaggi 2023; Kamradt 2023). By depth and length: slices with `depth` and `seq_len`.

    f f f K 3 1 4 f f f f f f K 3 1        behind K the digits, one after another
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from experiments.data.synthetic.task import Row, Task, distinct, must
from hybrid.lazy import jax, jnp
from hybrid.validation import Checked, PositiveInt, within

DIGITS = 10


@dataclass(frozen=True)
class NeedleConfig(Checked):
    vocab_size: PositiveInt = 64
    """Ten digits, the keys, then the fillers."""
    digits: PositiveInt = 5
    """Of a pass key."""
    needles: PositiveInt = 1
    """Keys with a pass key each; one of them is asked for."""
    keys: PositiveInt = 8
    """Tokens that a needle can begin with."""
    depth: Annotated[float, within(0, 1.0000001)] | None = None
    """Where the needle that is asked for stands: 0 at the beginning, 1 just before the question; None: anywhere."""


def _slots(config: NeedleConfig, seq_len: int) -> int:
    """Places for a needle in the haystack, which is all before the question."""
    return (seq_len - config.digits) // (config.digits + 1)


def row(config: NeedleConfig, seq_len: int, key: Any, training: bool) -> Row:
    width, needles, slots = config.digits + 1, config.needles, _slots(config, seq_len)
    hay = seq_len - config.digits
    for_hay, for_digits, for_keys, for_slots, for_shift = jax.random.split(key, 5)
    tokens = jax.random.randint(for_hay, (seq_len,), DIGITS + config.keys, config.vocab_size)
    digits = jax.random.randint(for_digits, (needles, config.digits), 0, DIGITS)
    starts = DIGITS + distinct(for_keys, config.keys, needles)
    spare = jax.random.randint(for_shift, (), 0, hay - slots * width + 1)
    if config.depth is None:
        chosen, shift = distinct(for_slots, slots, needles), spare
    else:
        asked = round(config.depth * (slots - 1))
        others = distinct(for_slots, slots - 1, needles - 1) if needles > 1 else jnp.zeros((0,), jnp.int32)
        chosen = jnp.concatenate([jnp.array([asked]), others + (others >= asked)])
        shift = jnp.asarray(round(config.depth * (hay - slots * width)))
    content = jnp.concatenate([starts[:, None], digits], 1)
    places = shift + width * chosen[:, None] + jnp.arange(width)
    tokens = tokens.at[places].set(content).at[hay:].set(content[0, :-1])  # the first is asked for
    return {"tokens": tokens, "label_positions": hay + jnp.arange(config.digits), "labels": digits[0]}


def check(config: NeedleConfig, seq_len: int) -> None:
    slots = _slots(config, seq_len)
    problem = f"{seq_len} is not allowed; has room for {max(slots, 0)} needles before the question"
    must(slots >= config.needles, "seq_len", problem)
    problem = f"{config.needles} is not allowed; each has a key of its own, of {config.keys}"
    must(config.keys >= config.needles, "task.needles", problem)
    least = DIGITS + config.keys + 1
    must(config.vocab_size >= least, "task.vocab_size", f"{config.vocab_size} is not allowed; must be at least {least}")


TASK = Task(
    about="the digits behind a key that stands somewhere in a long text of fillers",
    source="Mohtashami & Jaggi 2023 (pass key retrieval); Kamradt 2023 (by depth and length)",
    config=NeedleConfig,
    vocab_size=lambda config: config.vocab_size,
    row=row,
    chance=lambda config, seq_len: 1 / DIGITS,
    check=check,
)
