"""Masked language modelling: which tokens are chosen, what stands in their place (BERT, RoBERTa). Pure numpy.

The recipe is that of BERT's own data code: of a row of L tokens, min(max_predictions, max(1, round(rate L))) are
chosen without replacement, never a separator; each becomes the mask (80 %), a token of the whole vocabulary (10 %) or
stays as it is (10 %). Only chosen tokens are scored, those that stay included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hybrid.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from experiments.data.config import MaskedConfig


class Masked(NamedTuple):
    """K is the same in every row; where a row has fewer tokens that may be chosen, the rest have label -1."""

    tokens: NDArray
    """(B, L) what the model reads"""
    labels: NDArray
    """(B, K) what stood at the chosen places"""
    positions: NDArray
    """(B, K) the chosen places, ascending"""


def chosen(length: int, config: MaskedConfig) -> int:
    """K: how many of `length` tokens are chosen. Halves are rounded to even, as Python does."""
    wanted = max(1, round(config.rate * length))
    return min(wanted, length if config.max_predictions is None else config.max_predictions)


def draws(length: int, config: MaskedConfig) -> int:
    """Uniform numbers that a row of `length` tokens uses up."""
    return length + 2 * chosen(length, config)


def mask(
    tokens: NDArray, may_be_chosen: NDArray, uniform: NDArray, config: MaskedConfig, mask_id: int, vocab_size: int
) -> Masked:
    """Masks rows of tokens (B, L).

    may_be_chosen: (B, L) bool. uniform: (B, draws(L, config)) numbers in [0, 1).
    """
    length = tokens.shape[1]
    count = chosen(length, config)
    order, fate, word = np.split(uniform, [length, length + count], axis=1)
    order = np.where(may_be_chosen, order, 2.0)  # behind all others
    positions = np.sort(np.argsort(order, axis=1, kind="stable")[:, :count], axis=1)
    there = np.take_along_axis(may_be_chosen, positions, 1)
    before = np.take_along_axis(tokens, positions, 1)
    drawn = (word * vocab_size).astype(tokens.dtype)
    after = np.where(fate < config.mask_share, mask_id, drawn)
    after = np.where(there & (fate < config.mask_share + config.random_share), after, before)
    out = tokens.copy()
    np.put_along_axis(out, positions, after.astype(tokens.dtype), 1)
    labels = np.where(there, before, -1)
    return Masked(out, labels.astype(np.int32), positions.astype(np.int32))
