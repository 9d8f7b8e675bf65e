"""Span corruption as T5 does it: spans of a row are taken out, and the model writes them down. Pure numpy.

    tokens    the cat sat on the mat and slept            (noise: "cat sat", "and")
    inputs    the <1> on the mat <2> slept <end>
    targets   <1> cat sat <2> and <end>

The lengths are the same in all rows: n_noise = round(density R) of R raw tokens, in n_spans = round(n_noise / mean)
spans. Noise, and what is between, are cut into n_spans parts of at least one token, all ways of cutting being equally
likely; a row begins with a part that stays and ends with a span that goes. Sentinel i is the id `highest` - i.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from hybrid.lazy import np
from hybrid.validation import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Lengths(NamedTuple):
    """Tokens of a row, the end mark counted in inputs and targets."""

    raw: int
    noise: int
    spans: int
    inputs: int
    targets: int


def counted(raw: int, density: float, mean_length: float) -> Lengths:
    """What becomes of `raw` tokens, 2 or more. Halves are rounded to even, as T5 does."""
    noise = min(max(round(raw * density), 1), raw - 1)
    spans = min(max(round(noise / mean_length), 1), noise, raw - noise)
    return Lengths(raw, noise, spans, raw - noise + spans + 1, noise + spans + 1)


@functools.lru_cache(maxsize=256)
def lengths(inputs: int, density: float, mean_length: float) -> Lengths:
    """The most raw tokens whose inputs fill `inputs` tokens (T5's random_spans_helper: 512 -> 568, targets 114).

    Raises ConfigError (seq_len) where no number of raw tokens fills them exactly: less than a token, a sentinel and
    the end mark, or, at high densities of short spans, a length that is passed over.
    """
    if inputs < 3:
        raise ConfigError("seq_len", f"{inputs} is not allowed; span corruption needs at least 3 tokens")
    low, high = 2, 4
    while counted(high, density, mean_length).inputs <= inputs:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if counted(middle, density, mean_length).inputs <= inputs else (low, middle)
    found = counted(low, density, mean_length)
    if found.inputs != inputs:
        near = f"{found.inputs} or {counted(high, density, mean_length).inputs}"
        raise ConfigError("seq_len", f"{inputs} is not allowed; spans of this density and length fill {near} tokens")
    return found


def draws(about: Lengths) -> int:
    """Uniform numbers that a row uses up."""
    return about.raw - 2


def noise_mask(about: Lengths, uniform: NDArray) -> NDArray:
    """(B, raw) bool, True in the spans that are taken out. uniform: (B, draws(about)) numbers in [0, 1)."""
    stays = about.raw - about.noise
    parts = np.stack(
        [
            composition(stays, about.spans, uniform[:, : stays - 1]),
            composition(about.noise, about.spans, uniform[:, stays - 1 :]),
        ],
        axis=2,
    )
    rows = len(uniform)
    which = np.tile([False, True], rows * about.spans)
    return np.repeat(which, parts.ravel()).reshape(rows, about.raw)


def composition(total: int, parts: int, uniform: NDArray) -> NDArray:
    """(B, parts) positive integers that add up to `total`, each of the C(total - 1, parts - 1) ways equally likely.

    uniform: (B, total - 1), a number for each place between two tokens; the places of the smallest are cut.
    """
    places = np.sort(np.argsort(uniform, axis=1, kind="stable")[:, : parts - 1], axis=1) + 1
    rows = len(uniform)
    edges = np.concatenate([np.zeros((rows, 1), int), places, np.full((rows, 1), total)], axis=1)
    return np.diff(edges, axis=1)


def corrupt(tokens: NDArray, noise: NDArray, highest: int, end: int) -> tuple[NDArray, NDArray]:
    """(inputs, targets) of tokens (B, raw) without the spans of `noise`, with the same number of spans in each row.

    Every row begins with a token that stays. highest: the id of the first sentinel; the others count down.
    """
    return _with_sentinels(tokens, noise, highest, end), _with_sentinels(tokens, ~noise, highest, end)


def _with_sentinels(tokens: NDArray, gone: NDArray, highest: int, end: int) -> NDArray:
    """Each run of `gone` becomes a sentinel; `end` is put after the row."""
    first = gone.copy()
    first[:, 1:] &= ~gone[:, :-1]
    sentinels = highest - (np.cumsum(first, axis=1) - 1)
    kept = np.where(first, sentinels, tokens)[~gone | first].reshape(len(tokens), -1)
    return np.concatenate([kept, np.full((len(tokens), 1), end)], axis=1).astype(np.int32)


def fill_in(inputs: NDArray, targets: NDArray, highest: int, end: int, sentinels: int) -> NDArray:
    """One row of tokens from its inputs and targets: the inverse of `corrupt`.

    Each sentinel of the inputs is replaced by what follows it in the targets; one that the targets leave out by
    nothing. So what a model wrote can be filled in as well.
    """
    lowest = highest - sentinels + 1
    found: dict[int, list[int]] = {}
    place: list[int] = []
    for token in map(int, targets):
        if token == end:
            break
        if lowest <= token <= highest:
            place = found.setdefault(token, [])
        else:
            place.append(token)
    row: list[int] = []
    for token in map(int, inputs):
        if token == end:
            break
        row += found.get(token, []) if lowest <= token <= highest else [token]
    return np.array(row, np.int32)
