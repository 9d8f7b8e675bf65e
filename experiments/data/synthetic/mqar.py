"""Multi-query associative recall (Arora et al. 2024, "Zoology", section 3 and appendix E).

    k1 v1 .. kK vK | . . k3 . k1 . . . k2 ..      at each k of the second part the model answers its v

Keys are 1 .. V/2 - 1, values V/2 .. V - 1, both without repeats in a row. The second part has (L - 2K) / 2 slots of two
tokens; key i stands in slot g_i, drawn without replacement with p(g) ~ (g + 1)^(power_a - 1): most keys come soon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from experiments.data.synthetic.task import Row, Task, distinct, must
from hybrid.lazy import jax, jnp
from hybrid.validation import Checked, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class MQARConfig(Checked):
    vocab_size: PositiveInt = 8192
    num_kv_pairs: PositiveInt = 4
    power_a: PositiveFloat = 0.01
    """1: all slots alike."""
    fillers: Literal["blank", "random"] = "blank"
    """What stands where no key does: token 0, or any token of the vocabulary (`random_non_queries`), among which keys
    come up by chance."""


def row(config: MQARConfig, seq_len: int, key: Any, training: bool) -> Row:
    pairs, half = config.num_kv_pairs, config.vocab_size // 2
    for_keys, for_values, for_gaps, for_fillers = jax.random.split(key, 4)
    keys = 1 + distinct(for_keys, half - 1, pairs)
    values = half + distinct(for_values, config.vocab_size - half, pairs)
    slots = (seq_len - 2 * pairs) // 2
    # The highest of log p + Gumbel noise are a sample without replacement, in its order (Vieira 2014).
    likely = (config.power_a - 1) * jnp.log(jnp.arange(1, slots + 1))
    gaps = jax.lax.top_k(likely + jax.random.gumbel(for_gaps, (slots,)), pairs)[1]
    asked = 2 * pairs + 2 * gaps
    if config.fillers == "random":
        tokens = jax.random.randint(for_fillers, (seq_len,), 0, config.vocab_size)
    else:
        tokens = jnp.zeros((seq_len,), jnp.int32)
    tokens = tokens.at[: 2 * pairs].set(jnp.stack([keys, values], 1).reshape(-1)).at[asked].set(keys)
    order = jnp.argsort(asked)
    return {"tokens": tokens, "label_positions": asked[order], "labels": values[order]}


def check(config: MQARConfig, seq_len: int) -> None:
    pairs, half = config.num_kv_pairs, config.vocab_size // 2
    must(seq_len % 2 == 0, "seq_len", f"{seq_len} is not allowed; must be even")
    problem = f"{pairs} is not allowed; pairs and queries need 4 tokens each, data.seq_len is {seq_len}"
    must(4 * pairs <= seq_len, "task.num_kv_pairs", problem)
    problem = f"{config.vocab_size} is not allowed; must have {pairs} keys and as many values"
    must(half - 1 >= pairs, "task.vocab_size", problem)


TASK = Task(
    about="each key of a list is asked for once, soon after the list or late",
    source="Arora et al. 2024 (Zoology), figure 2",
    config=MQARConfig,
    vocab_size=lambda config: config.vocab_size,
    row=row,
    chance=lambda config, seq_len: 1 / config.num_kv_pairs,
    check=check,
)
