"""The other strand: reverse complements of text and of token arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.data.tokenizers import Bases
from hybrid.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAIRS = str.maketrans("ACGTUNRYSWKMBDHVacgtunryswkmbdhv", "TGCAANYRSWMKVHDBtgcaanyrswmkvhdb")


def reverse_complement(text: str) -> str:
    """What stands on the other strand, read in its own direction. All letters of IUPAC, either case."""
    return text.translate(_PAIRS)[::-1]


def complement_tokens(tokens: NDArray) -> NDArray:
    """The reverse complement of tokens (..., L) of the vocabulary `bases`; N and the marks stay what they are.

    A separator between two documents is between them afterwards too, and opens the other one.
    """
    first = Bases.first
    bases = (tokens >= first) & (tokens < first + 4)  # A C G T: the partner of i is 3 - i
    return np.where(bases, 2 * first + 3 - tokens, tokens)[..., ::-1]
