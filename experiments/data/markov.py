"""What counting gives: a Markov model of some order, the baseline that a trained model of DNA must beat.

baseline(data, "test", order=6)      # bits per base; E. coli with its last tenth held out: 1.934
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from experiments.data.tokenizers import Bases
from hybrid.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from experiments.data.text import Data

LETTERS = 4


class Coded(NamedTuple):
    bits: float
    """Per base that was scored."""
    bases: int


def stretches(tokens: NDArray) -> list[NDArray]:
    """Runs of known bases in tokens of the vocabulary `bases`, as 0 to 3: what stands between separators and Ns."""
    codes = np.asarray(tokens, np.int16) - Bases.first
    known = (codes >= 0) & (codes < LETTERS)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known.view(np.int8), [0]])))
    return [codes[start:stop].astype(np.int8) for start, stop in edges.reshape(-1, 2)]


def markov(
    train: Iterable[NDArray], held_out: Iterable[NDArray], order: int, *, prior: float = 1.0, both_strands: bool = False
) -> Coded:
    """Bits per base of `held_out` under p(base | the `order` bases before it), counted in `train`.

    Runs of bases as 0 to 3. prior: added to every count (1: Laplace). both_strands: the reverse complement of `train`
    is counted too. The first `order` bases of a run have no context and are not scored.
    """
    counts = np.full((LETTERS**order, LETTERS), prior)
    for run in train:
        for strand in (run, LETTERS - 1 - run[::-1]) if both_strands else (run,):
            context, base = _contexts(strand, order)
            counts += np.bincount(context * LETTERS + base, minlength=counts.size).reshape(counts.shape)
    bits = np.log2(counts.sum(1, keepdims=True)) - np.log2(counts)
    scored = [bits[_contexts(run, order)] for run in held_out if len(run) > order]
    total = sum(len(part) for part in scored)
    return Coded(float(sum(part.sum() for part in scored)) / max(total, 1), total)


def baseline(data: Data, *splits: str, order: int, both_strands: bool = False) -> float:
    """Bits per base of held-out splits of a DNA source, counted on its training split."""
    held_out = [run for split in splits for run in stretches(data.streams[split])]
    return markov(stretches(data.streams["train"]), held_out, order, both_strands=both_strands).bits


def _contexts(run: NDArray, order: int) -> tuple[NDArray, NDArray]:
    """(the `order` bases before each base as a number, the base) of all bases that have so many before them."""
    count = max(len(run) - order, 0)
    context = np.zeros(count, np.int64)
    for back in range(order):
        context = context * LETTERS + run[back : back + count]
    return context, run[order:].astype(np.int64)
