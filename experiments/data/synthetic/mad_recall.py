"""In-context, noisy and fuzzy recall (Poli et al. 2024, "Mechanistic design and scaling of hybrid architectures",
appendix B): pairs in a stream, and the value of every key that comes again is asked for.

Trained on all next tokens, tested on the values of keys that were there before. Keys are drawn with repeats, and a map
from keys to values is drawn for every row. Rows have L tokens where the published ones have L - 1: the last is read and
asks nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from experiments.data.synthetic.task import IGNORED, MACRO, Row, Task, must, next_tokens, one_of
from hybrid.lazy import jax, jnp
from hybrid.validation import Checked, NaturalInt, PositiveInt, Probability

# --- in-context and noisy recall --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecallConfig(Checked):
    vocab_size: PositiveInt = 16
    """Half of what the noise leaves are keys, half values."""
    noise_vocab_size: NaturalInt = 0
    """Tokens that stand in noise alone, the last of the vocabulary."""
    frac_noise: Probability = 0.0
    """Of the pairs: replaced by two tokens of noise."""


@dataclass(frozen=True)
class NoisyConfig(RecallConfig):
    vocab_size: PositiveInt = 32
    noise_vocab_size: NaturalInt = 16
    frac_noise: Probability = 0.2


def _halves(config: RecallConfig) -> tuple[int, int]:
    """(keys, values)."""
    left = config.vocab_size - config.noise_vocab_size
    return left // 2, left - left // 2


def recall(config: RecallConfig, seq_len: int, key: Any, training: bool) -> Row:
    n_keys, n_values = _halves(config)
    pairs = seq_len // 2
    for_map, for_keys, for_noise, for_kept, for_tokens, for_probe = jax.random.split(key, 6)
    values = n_keys + jax.random.randint(for_map, (n_keys,), 0, n_values)
    keys = jax.random.randint(for_keys, (pairs,), 0, n_keys)
    noise = jax.random.uniform(for_noise, (pairs,)) < config.frac_noise
    noise = noise.at[jax.random.randint(for_kept, (), 0, pairs - 1)].set(False).at[-1].set(False)
    there = jnp.zeros((n_keys,), bool).at[keys[:-1]].max(~noise[:-1])
    keys = keys.at[-1].set(one_of(for_probe, there))  # the last pair comes again
    tokens = jnp.stack([keys, values[keys]], 1)
    if config.frac_noise > 0:
        first = config.vocab_size - config.noise_vocab_size
        tokens = jnp.where(noise[:, None], jax.random.randint(for_tokens, (pairs, 2), first, config.vocab_size), tokens)
    if training:
        row = tokens.reshape(-1)
        return {"tokens": row, "labels": jnp.append(row[1:], IGNORED)}
    earlier = (keys[:, None] == keys) & ~noise & jnp.tri(pairs, k=-1, dtype=bool)
    asked = earlier.any(1) & ~noise
    labels = jnp.where(asked, values[keys], IGNORED)
    return {"tokens": tokens.reshape(-1), "label_positions": 2 * jnp.arange(pairs), "labels": labels}


def check_recall(config: RecallConfig, seq_len: int) -> None:
    must(seq_len % 2 == 0 and seq_len >= 4, "seq_len", f"{seq_len} is not allowed; must be even, at least 4")
    problem = f"{config.vocab_size} is not allowed; the noise must leave a key and two values at least"
    must(min(_halves(config)) >= 1 and _halves(config)[1] >= 2, "task.vocab_size", problem)
    problem = f"{config.frac_noise} is not allowed; noise needs a vocabulary (noise_vocab_size)"
    must(config.frac_noise == 0 or config.noise_vocab_size > 0, "task.frac_noise", problem)


def _value_before(config: RecallConfig, seq_len: int) -> float:
    """Of answering the value just read: often the pair before has the same key, else values are equal by luck."""
    n_keys, n_values = _halves(config)
    pairs, kept = seq_len // 2, 1 - config.frac_noise
    new = 1 - kept / n_keys  # the share of pairs that do not show a given key
    asked = sum(kept * (1 - new**i) for i in range(1, pairs - 1)) + 1
    distinct = max(n_keys * (1 - new ** (pairs - 1)), 1.0)
    same = ((pairs - 2) * kept**2 / n_keys + kept / distinct) / asked
    return same + (1 - same) / n_values


# --- fuzzy recall -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FuzzyConfig(Checked):
    vocab_size: PositiveInt = 16
    """The last is padding; half of the others make keys, half values."""
    k_motif_size: PositiveInt = 3
    """A key is 1 to so many different tokens; in test rows always so many."""
    v_motif_size: PositiveInt = 3


def _motif(key: Any, first: int, among: int, most: int) -> Any:
    """(most,) different tokens of first .. first + among - 1."""
    return first + jax.random.permutation(key, among)[:most]


def fuzzy(config: FuzzyConfig, seq_len: int, key: Any, training: bool) -> Row:
    n_keys = (config.vocab_size - 1) // 2
    n_values = config.vocab_size - 1 - n_keys
    most_k, most_v = config.k_motif_size, config.v_motif_size
    for_map, for_keys, for_sizes, for_place = jax.random.split(key, 4)
    count = seq_len // 2 + 1  # pairs of the shortest motifs; the last is the probe

    sizes = jax.random.randint(for_sizes, (count,), 1, most_k + 1) if training else jnp.full((count,), most_k)
    keys = jax.vmap(lambda k: _motif(k, 0, n_keys, most_k))(jax.random.split(for_keys, count))
    keys = jnp.where(jnp.arange(most_k) < sizes[:, None], keys, -1)
    probe, pairs = keys[-1], jnp.arange(count)

    def value(motif: Any) -> tuple[Any, Any]:
        """(tokens, how many) of a key's value, a function of the row's map and the key."""
        code = (motif + 1) @ (n_keys + 1) ** jnp.arange(most_k)
        sizing, drawing = jax.random.split(jax.random.fold_in(for_map, code))
        return _motif(drawing, n_keys, n_values, most_v), jax.random.randint(sizing, (), 1, most_v + 1)

    end = seq_len + 1
    last_size = sizes[-1] + value(probe)[1]
    limit = end - 1 - last_size - (most_k + most_v)  # no pair begins here or later
    wanted = jax.random.randint(for_place, (), 0, jnp.maximum(limit, 1))

    def starts(keys: Any, sizes: Any) -> Any:
        lengths = sizes + jax.vmap(value)(keys)[1]
        return jnp.cumsum(lengths) - lengths

    # The probe stands as the pair during which `wanted` comes, so it is there before it is asked for at the end.
    at = jnp.sum(starts(keys, sizes) <= wanted) - 1
    keys, sizes = keys.at[at].set(probe), sizes.at[at].set(sizes[-1])
    values, value_sizes = jax.vmap(value)(keys)
    begin = starts(keys, sizes)
    shown = (begin < limit) & (pairs < count - 1)
    length = jnp.max(jnp.where(shown, begin + sizes + value_sizes, 0))
    begin = jnp.where(shown, begin, length).at[-1].set(length)
    shown = shown.at[-1].set(True)
    shift = end - (length + last_size)  # padding stands before

    def write(row: Any, content: Any, first: Any, width: Any, most: int) -> Any:
        offsets = jnp.arange(most)
        places = (shift + first)[:, None] + offsets
        places = jnp.where(shown[:, None] & (offsets < width[:, None]), places, end)  # out of range: dropped
        return row.at[places].set(content, mode="drop")

    row = write(jnp.full((end,), config.vocab_size - 1), keys, begin, sizes, most_k)
    row = write(row, values, begin + sizes, value_sizes, most_v)
    if training:
        return next_tokens(row)
    same = (keys[:, None] == keys).all(-1) & shown & shown[:, None]
    again = (same & jnp.tri(count, k=-1, dtype=bool)).any(1)
    answers = jnp.where(again[:, None], values, IGNORED)
    labels = write(jnp.full((end,), IGNORED), answers, begin + sizes, value_sizes, most_v)
    return {"tokens": row[:-1], "labels": labels[1:]}


def check_fuzzy(config: FuzzyConfig, seq_len: int) -> None:
    n_keys = (config.vocab_size - 1) // 2
    problem = f"{config.vocab_size} is not allowed; motifs of different tokens need as many keys and values"
    enough = n_keys >= config.k_motif_size and config.vocab_size - 1 - n_keys >= config.v_motif_size
    must(enough, "task.vocab_size", problem)
    least = 4 * (config.k_motif_size + config.v_motif_size)
    must(seq_len >= least, "seq_len", f"{seq_len} is not allowed; must be at least {least} for these motifs")
    codes = (n_keys + 1) ** config.k_motif_size
    must(codes < 2**31, "task.k_motif_size", f"{config.k_motif_size} is not allowed; has {codes} possible keys")


def _fuzzy_chance(config: FuzzyConfig, seq_len: int) -> float:
    """The first token of a value is one of n; later ones are none of those before it."""
    n = config.vocab_size - 1 - (config.vocab_size - 1) // 2
    most = config.v_motif_size
    mean = [sum(1 / (n - i) for i in range(size)) for size in range(1, most + 1)]
    return sum(mean) / sum(range(1, most + 1))


MAD = "Poli et al. 2024 (MAD)"

IN_CONTEXT = Task(
    about="pairs of keys and values in a stream; the value of every key that comes again",
    source=f"{MAD}, in-context recall",
    config=RecallConfig,
    vocab_size=lambda config: config.vocab_size,
    row=recall,
    chance=_value_before,
    check=check_recall,
    **MACRO,
)
NOISY = dataclasses.replace(
    IN_CONTEXT,
    about="the same, with noise of other tokens between the pairs",
    source=f"{MAD}, noisy in-context recall",
    config=NoisyConfig,
)
FUZZY = Task(
    about="the same, keys and values of one to three tokens",
    source=f"{MAD}, fuzzy in-context recall",
    config=FuzzyConfig,
    vocab_size=lambda config: config.vocab_size,
    row=fuzzy,
    chance=_fuzzy_chance,
    check=check_fuzzy,
    **MACRO,
)
