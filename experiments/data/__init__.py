"""Text and DNA: sources -> TFDS (array_record) -> tokens, once -> batches that are a function of (seed, step).

    prepare(config, print)                                    # once; any number of processes may call it
    data = load(config, seed=0, evaluation_sequences=64)
    data.batch(1000)                                          # {"tokens": (B, L), "labels": (B, L)}

`check`, `fingerprint` and `vocab_size` import neither jax nor TFDS nor grain, and answer in milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.data.objectives import OBJECTIVES, Batch
from experiments.data.sources import SOURCES, find
from experiments.data.stream import fingerprint, meta, prepare
from experiments.data.text import Batches, Data, check_lengths, open_data
from experiments.data.vocabulary import Vocabulary, vocabulary

if TYPE_CHECKING:
    from experiments.data.config import DataConfig

__all__ = [
    "OBJECTIVES", "SOURCES", "Batch", "Batches", "Data", "Vocabulary", "check", "fingerprint", "load", "meta",
    "prepare", "vocab_size", "vocabulary",
]  # fmt: skip


def check(config: DataConfig, evaluation_sequences: int = 1) -> None:
    """What can be known at the border: the source's name, that it is here, and lengths once the tokens are.

    Raises ConfigError with fields `data.source`, `data.folder`, `data.seq_len` or `evaluate.sequences`. Data sets of
    the TFDS catalogue are looked at by `prepare`, because that needs TFDS.
    """
    row = find(config.source)
    about = meta(config)
    if about is None:
        row.look(config)
    else:
        check_lengths(config, {name: split["tokens"] for name, split in about["splits"].items()}, evaluation_sequences)


def load(config: DataConfig, *, seed: int, evaluation_sequences: int) -> Data:
    """The data of one run, prepared first where that was not done.

    Raises ConfigError where the source is missing, or a split too short for `seq_len` or `evaluation_sequences`.
    """
    return open_data(prepare(config), config, seed, evaluation_sequences)


def vocab_size(config: DataConfig) -> int:
    """Ids that a model of `config` has: the tokenizer's and those of its objective."""
    return vocabulary(config).size
