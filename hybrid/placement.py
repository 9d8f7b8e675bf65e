"""Where attention goes: a pattern from a ratio and a placement. No jax here.

place(mixers=8, base="M", insert="A", ratio="1:7", where="even", channel="-")  ->  "(M-)4A-(M-)3"
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from hybrid.pattern import CHANNELS, MAX_SUBLAYERS, SYMBOLS, branches, compact, expand
from hybrid.validation import ConfigError, nearest

Ratio = str | float | Fraction
"""A share of the mixers: "1:7" (one to seven, 1/8 of them), "1/8", 0.125 or Fraction(1, 8)."""

CHANNEL_PLACES = ("after", "even")


def place(
    mixers: int,
    base: str,
    insert: str,
    ratio: Ratio | None = None,
    count: int | None = None,
    where: str | Sequence[int] = "even",
    channel: str | None = None,
    channel_where: str = "after",
    offset: int | None = None,
    period: int | None = None,
    indices: Sequence[int] | None = None,
) -> str:
    """The pattern of `mixers` mixers, `count` (or the share `ratio`) of them `insert` and the others `base`.

    `where` the inserted ones stand:

    - `first`, `last`, `middle`: one block (in the middle, one more `base` behind it than before it if it must be);
    - `sandwich`: a block at either end, the longer one first;
    - `even`: equal stretches of `base` before, between and behind them, rounded as Megatron-LM rounds;
    - `periodic`: wherever i % period == offset. The period follows from the ratio, or the ratio from the period;
      without an offset each period ends with `insert`;
    - indices from 0, as `indices` or in the place of `where`.

    `channel` is a sublayer after each mixer, or with `channel_where="even"` as many of them spread over the stack:
    `where` then places `insert` among all the sublayers (indices and periods count these), and the channels are spread
    over the rest. That is the allocation of NVIDIA's 8B hybrid (arXiv 2406.07887).

    Raises ConfigError with the name of the argument.
    """
    whole("mixers", mixers, 1, MAX_SUBLAYERS // 2 if channel else MAX_SUBLAYERS)
    mixer(base, "base")
    asked = _asked(mixers, ratio, count)
    mixer(insert, "insert", *((base,) if asked != 0 else ()))  # a study's pure arm may name one mixer twice
    if channel is not None:
        channel_of(channel, base, insert)
    _choice("channel_where", channel_where, CHANNEL_PLACES)
    if isinstance(where, Sequence) and not isinstance(where, str):
        if indices is not None:
            raise ConfigError("indices", "given twice: as 'where' too")
        indices = where
    spread = channel is not None and channel_where == "even"
    slots = 2 * mixers if spread else mixers
    if indices is not None:
        if where not in ("even", indices) or offset is not None or period is not None:
            raise ConfigError("indices", "excludes 'where', 'offset' and 'period'")
        positions = _indices(indices, slots)
        if asked not in (None, len(positions)):
            raise ConfigError("indices", f"{len(positions)} given where ratio or count asks for {asked}")
        if len(positions) > mixers:
            raise ConfigError("indices", f"{len(positions)} given; must be at most the {mixers} mixers")
    else:
        positions = _positions(where, slots, mixers, asked, offset, period)
    stack = [insert if i in positions else base for i in range(slots)]
    if channel is None:
        return compact(stack)
    if not spread:
        return compact([sublayer for pair in zip(stack, [channel] * mixers, strict=True) for sublayer in pair])
    return compact(spread_channels(stack, base, channel, mixers))


def _positions(
    where: Any, slots: int, mixers: int, count: int | None, offset: int | None, period: int | None
) -> set[int]:
    """The places of `count` inserted sublayers among `slots` (more than `mixers` when channels are among them)."""
    _choice("where", where, (*PLACEMENTS, "periodic"), "a sequence of indices")
    if where == "periodic":
        return _periodic(slots, mixers, count, offset, period)
    for field, value in {"offset": offset, "period": period}.items():
        if value is not None:
            raise ConfigError(field, f"{value!r} is only for where='periodic', not {where!r}")
    if count is None:
        raise ConfigError("ratio", "must be given, or count")
    return set(PLACEMENTS[where](slots, count))


def even(slots: int, count: int, stretches: int | None = None) -> list[int]:
    """Places of `count` sublayers with equal stretches of others before, between and (if one more than `count`) behind.

    The j-th (from 1) comes after j (slots - count) / stretches others, rounded to the nearest, halves up: exact in
    fractions where a running remainder in floats may slip.
    """
    stretch = Fraction(slots - count, stretches or count + 1)
    return [j + math.floor((j + 1) * stretch + Fraction(1, 2)) for j in range(count)]


def _sandwich(slots: int, count: int) -> list[int]:
    if count == 1:
        raise ConfigError("where", "'sandwich' needs at least 2 inserted mixers, one for each end; got 1")
    return [*range((count + 1) // 2), *range(slots - count // 2, slots)]


#: Name -> places of `count` sublayers among `slots`. `periodic` and indices are apart: they may define the count.
PLACEMENTS: dict[str, Callable[[int, int], Sequence[int]]] = {
    "first": lambda slots, count: range(count),
    "last": lambda slots, count: range(slots - count, slots),
    "middle": lambda slots, count: range((slots - count) // 2, (slots - count) // 2 + count),
    "even": even,
    "sandwich": _sandwich,
}


def _periodic(slots: int, mixers: int, count: int | None, offset: int | None, period: int | None) -> set[int]:
    if count == 0:
        return set()
    if period is None:
        if count is None:
            raise ConfigError("period", "must be given, or ratio, or count")
        if slots % count:
            near = _near([c for c in range(1, mixers + 1) if slots % c == 0], count)
            raise ConfigError("where", f"'periodic' cannot place {count} in {slots}; possible near it: {near}")
        period = slots // count
    whole("period", period, 1, slots)
    offset = period - 1 if offset is None else offset
    whole("offset", offset, 0, period - 1)
    positions = set(range(offset, slots, period))
    if len(positions) > mixers:
        raise ConfigError("period", f"{period} gives {len(positions)} places; must be at most the {mixers} mixers")
    if count not in (None, len(positions)):
        raise ConfigError("period", f"{period} gives {len(positions)} places where ratio or count asks for {count}")
    return positions


def _indices(indices: Any, slots: int) -> set[int]:
    if not isinstance(indices, Sequence) or isinstance(indices, str):
        raise ConfigError("indices", f"{indices!r} is not allowed; must be a tuple of integers, such as (3, 7)")
    for i, index in enumerate(indices):
        whole(f"indices[{i}]", index, 0, slots - 1)
        if index in indices[:i]:
            raise ConfigError(f"indices[{i}]", f"{index} stands twice")
    return set(indices)


def spread_channels(stack: list[str], base: str, channel: str, channels: int) -> list[str]:
    """`channels` of the `base` sublayers of the stack turned into `channel`, evenly, the last at the end."""
    free = [i for i, sublayer in enumerate(stack) if sublayer == base]
    if channels:
        for j in even(len(free), channels, stretches=channels):
            stack[free[j]] = channel
    return stack


def _asked(mixers: int, ratio: Ratio | None, count: int | None) -> int | None:
    """The count that was asked for, by itself or as a ratio; None where it follows from period or indices."""
    if ratio is None:
        if count is not None:
            whole("count", count, 0, mixers)
        return count
    if count is not None:
        raise ConfigError("count", "excludes ratio; must be one of the two")
    wanted = share(ratio) * mixers
    nearest_count = round(wanted)
    if abs(wanted - nearest_count) > 1e-6:
        near = " or ".join(f"{c}:{mixers - c} (count {c})" for c in (math.floor(wanted), math.ceil(wanted)))
        raise ConfigError(
            "ratio", f"{str(ratio)!r} of {mixers} mixers is {float(wanted):.4g}; possible near it: {near}"
        )
    return nearest_count


_PARTS = re.compile(r"\s*(\d{1,6})\s*:\s*(\d{1,6})\s*", re.ASCII)
_SHARE = re.compile(r"\s*(\d{1,6}/\d{1,6}|\d?\.?\d{1,12})\s*", re.ASCII)


def share(ratio: Ratio, field: str = "ratio") -> Fraction:
    """The share of all mixers that a ratio says: 1/8 of "1:7", "1/8", 0.125."""
    try:
        if isinstance(ratio, str):
            parts = _PARTS.fullmatch(ratio)
            if not parts and not _SHARE.fullmatch(ratio):
                raise ValueError
            value = Fraction(int(parts[1]), int(parts[1]) + int(parts[2])) if parts else Fraction(ratio)
        elif isinstance(ratio, bool) or not isinstance(ratio, int | float | Fraction):
            raise TypeError
        else:
            value = Fraction(ratio)
        if not 0 <= value <= 1:
            raise ValueError
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise ConfigError(field, f"{ratio!r} is not allowed; must be like '1:7', '1/8' or 0.125, from 0 to 1") from None
    return value


def _near(possible: list[int], wanted: int) -> str:
    return ", ".join(str(c) for c in sorted(sorted(possible, key=lambda c: abs(c - wanted))[:3]))


def mixer(symbol: str, field: str, *others: str) -> None:
    """Refuses what is not one mixer, or is one of the `others`."""
    if _one_sublayer(field, symbol) <= CHANNELS:
        raise ConfigError(field, f"{symbol!r} is a channel sublayer; must be a mixer, such as 'M' or 'A'")
    if symbol in others:
        raise ConfigError(field, f"{symbol!r} is the base itself; must be another mixer")


def channel_of(symbol: str, *others: str) -> None:
    """Refuses what is not one channel sublayer (or a letter of the user's), or is one of the `others`."""
    mixers = _one_sublayer("channel", symbol) & (SYMBOLS.keys() - CHANNELS)
    if mixers or symbol in others:
        raise ConfigError("channel", f"{symbol!r} is a mixer; must be a channel sublayer, such as '-' or 'E'")


def _one_sublayer(field: str, symbol: Any) -> set[str]:
    try:
        sequence = expand(symbol)
    except ConfigError as failure:
        raise ConfigError(field, failure.problem) from None
    if sequence != (symbol,):
        raise ConfigError(field, f"{symbol!r} is not allowed; must be one sublayer, such as 'M' or '[A|M]'")
    return set(branches(symbol))


def whole(field: str, value: Any, low: int, high: int) -> None:
    """Refuses what is not an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(field, f"{value!r} is not allowed; must be an integer from {low} to {high}")


def _choice(field: str, value: Any, allowed: Sequence[str], *others: str) -> None:
    if value not in allowed:
        hint = nearest(value, allowed) if isinstance(value, str) else ""
        raise ConfigError(field, f"{value!r} is not allowed{hint} (allowed: {', '.join([*allowed, *others])})")
