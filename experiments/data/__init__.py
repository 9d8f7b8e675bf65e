"""Text and DNA: sources -> TFDS (array_record) -> tokens, once -> batches that are a function of (seed, step).
Synthetic tasks: numbers of rows, which the compiled step makes itself (experiments/data/synthetic).

    prepare(config, print)                                    # once; any number of processes may call it
    data = load(config, seed=0, evaluation_sequences=64)
    data.batch(1000)                                          # {"tokens": (B, L), "labels": (B, L)}

`check`, `fingerprint` and `vocab_size` import neither jax nor TFDS nor grain, and answer in milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.data import stream
from experiments.data.objectives import OBJECTIVES, Batch
from experiments.data.source import digest
from experiments.data.sources import SOURCES, find
from experiments.data.stream import meta
from experiments.data.synthetic import TASKS
from experiments.data.text import Batches, Data, check_lengths, open_data
from experiments.data.vocabulary import Vocabulary, vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from experiments.data.config import DataConfig
    from experiments.data.documents import Progress
    from experiments.data.synthetic.rows import TaskData

__all__ = [
    "OBJECTIVES", "SOURCES", "TASKS", "Batch", "Batches", "Data", "Vocabulary", "check", "fingerprint", "load", "meta",
    "prepare", "vocab_size", "vocabulary",
]  # fmt: skip


def check(config: DataConfig, evaluation_sequences: int = 1) -> None:
    """What can be known at the border: the source's name, that it is here, and lengths once the tokens are.

    Raises ConfigError with fields `data.source`, `data.folder`, `data.seq_len` or `evaluate.sequences`. Data sets of
    the TFDS catalogue are looked at by `prepare`, because that needs TFDS.
    """
    if config.is_task:
        return
    row = find(config.source)
    about = meta(config)
    if about is None:
        row.look(config)
    else:
        check_lengths(config, {name: split["tokens"] for name, split in about["splits"].items()}, evaluation_sequences)


def prepare(config: DataConfig, progress: Progress = lambda message: None) -> Path | None:
    """The token folder of `config`, made if it is not there (experiments.data.stream); a task needs none."""
    return None if config.is_task else stream.prepare(config, progress)


def fingerprint(config: DataConfig) -> str | None:
    """16 hexadecimal digits that name what is read, None while token files are not prepared.

    Of a task: its name and the version of its rules. Its fields stand in the config, and so in a run's identity.
    """
    if config.is_task:
        return digest({"task": config.source, "rules": (TASKS[config.source].rules, ROWS_VERSION)})[:16]
    return stream.fingerprint(config)


ROWS_VERSION = 1
"""Raised when the same numbers give other keys of rows."""


def load(config: DataConfig, *, seed: int, evaluation_sequences: int, rows_together: int = 1) -> Data | TaskData:
    """The data of one run, prepared first where that was not done.

    rows_together: batches of slices are multiples of it. Raises ConfigError where the source is missing, or a split too
    short for `seq_len` or `evaluation_sequences`.
    """
    if config.is_task:
        import numpy as np

        from experiments.data.synthetic.rows import TaskData

        none = np.zeros(vocab_size(config), np.int32)
        return TaskData(config, seed, evaluation_sequences, fingerprint(config) or "", none, rows_together)
    return open_data(stream.prepare(config), config, seed, evaluation_sequences)


def vocab_size(config: DataConfig) -> int:
    """Ids that a model of `config` has: the task's, or the tokenizer's and those of its objective."""
    return TASKS[config.source].vocab_size(config.task) if config.is_task else vocabulary(config).size
