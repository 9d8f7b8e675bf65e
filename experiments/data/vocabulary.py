"""Which id means what: the tokens of the tokenizer, and those that the objective adds behind them.

0 .. tokens - 1      the tokenizer's, the separator among them
masked               the mask, where the tokenizer has none
span                 end, start, then the sentinels, the first one the highest id (as in T5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.data.tokenizers import KINDS

if TYPE_CHECKING:
    from experiments.data.config import DataConfig


@dataclass(frozen=True)
class Vocabulary:
    """Ids that a model of this data has; None where there is no such token."""

    size: int
    separator: int
    """Stands before each document."""
    unscored: tuple[int, ...] = ()
    """Tokens that are read and never predicted: N and the marks of a DNA vocabulary."""
    mask: int | None = None
    end: int | None = None
    """Ends the inputs and targets of span corruption."""
    start: int | None = None
    """The first token of a decoder."""
    sentinels: int = 0
    """Their ids are size - 1, size - 2, ..."""


def vocabulary(config: DataConfig) -> Vocabulary:
    """The ids of `config`. No heavy imports."""
    kind = KINDS[config.tokenizer]
    tokens = kind.vocab_size(config)
    return _ADD[config.objective](config, Vocabulary(tokens, kind.separator(config), kind.unscored, mask=kind.mask))


def _causal(config: DataConfig, own: Vocabulary) -> Vocabulary:
    return own


def _masked(config: DataConfig, own: Vocabulary) -> Vocabulary:
    if own.mask is not None:
        return own
    return Vocabulary(own.size + 1, own.separator, own.unscored, mask=own.size)


def _span(config: DataConfig, own: Vocabulary) -> Vocabulary:
    from experiments.data.spans import lengths

    count = config.span.sentinels or lengths(config.seq_len, config.span.density, config.span.mean_length).spans
    end = own.size
    return Vocabulary(
        end + 2 + count, own.separator, own.unscored, mask=own.mask, end=end, start=end + 1, sentinels=count
    )


_ADD = {"causal": _causal, "masked": _masked, "span": _span}
