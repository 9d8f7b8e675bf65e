"""DataConfig: what is read, as a checked dataclass. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from hybrid.validation import Checked, ConfigError, NaturalInt, PositiveInt, at_least


@dataclass(frozen=True)
class DataConfig(Checked):
    """What is read. Lengths in tokens."""

    source: str
    """shakespeare, movie-reviews, stdlib, folder, or tfds:NAME (experiments/data/sources.py)."""
    seq_len: PositiveInt
    batch_size: PositiveInt
    """Sequences a step, over all devices."""
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    vocab_size: Annotated[int, at_least(258)] | None = None
    """Of a BPE; bytes have 257."""
    packing: Literal["windows", "documents"] = "windows"
    """`windows`: plain windows of the token stream; `documents`: the same with documents kept apart."""
    folder: str = ""
    """Of the source `folder`."""
    feature: str = "text"
    """The feature of a tfds data set that holds its text."""
    split_seed: NaturalInt = 0

    def check(self) -> None:
        if self.tokenizer == "bpe" and self.vocab_size is None:
            raise ConfigError("vocab_size", "must be given for the bpe tokenizer")
        if self.tokenizer == "bytes" and self.vocab_size is not None:
            raise ConfigError("vocab_size", f"{self.vocab_size} is not allowed; bytes have a vocabulary of their own")
        if self.vocab_size is not None and self.vocab_size > 65536:
            raise ConfigError("vocab_size", f"{self.vocab_size} is not allowed; must be at most 65536")
        if (self.source == "folder") != bool(self.folder):
            raise ConfigError("folder", f"{self.folder!r} is not allowed; belongs to the source 'folder', and it to it")
