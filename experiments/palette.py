"""Colours, dashes and markers: one colour a kind of sublayer, everywhere. No matplotlib here.

The hues are those of two published colour-blind safe sets (Okabe and Ito 2008; Paul Tol's muted scheme). No 13 hues are
safe for all eyes, so a colour never speaks alone: cells carry their letter, series their marker and their dash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from hybrid.pattern import ATTENTION, CHANNELS, branches, expand

KINDS: dict[str, str] = {
    "A": "#D55E00",  # vermilion
    "B": "#E69F00",  # orange
    "S": "#F0E442",  # yellow
    "X": "#CC79A7",  # rose
    "M": "#0072B2",  # blue
    "D": "#56B4E9",  # sky
    "H": "#009E73",  # green
    "G": "#332288",  # indigo
    "L": "#44AA99",  # teal
    "R": "#882255",  # wine
    "C": "#999933",  # olive
    "-": "#D9D9D9",  # channels are grey: they are not what a study is about
    "E": "#A6A6A6",
}
UNKNOWN = "#FFFFFF"
LIGHT = ("B", "S", "D", "-", "E")
"""Symbols whose cells are light enough to want a dark letter."""
INK, FAINT, OTHERS, GRID, ALARM = "#222222", "#767676", "#CCCCCC", "#E6E6E6", "#B00020"

SERIES = ("#CC79A7", "#56B4E9", "#E69F00", "#332288", "#999933", "#882255", "#44AA99", "#000000")
"""Of what mixes kinds, in the order of the study; what is of one kind has the colour of its kind."""
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<")

PLACEMENTS: dict[str, str] = {
    "": "o", "even": "s", "first": "<", "last": ">", "middle": "D", "sandwich": "X", "periodic": "P", "indices": "v",
}  # fmt: skip
"""Word of the placement -> marker."""


class Look(NamedTuple):
    """How a series is drawn."""

    colour: str
    dash: Any
    marker: str


def kind_colour(symbol: str, symbols: Mapping[str, str] | None = None) -> str:
    """The colour of a symbol; a user's lower-case letter has that of the kind it stands for (`symbols`)."""
    return KINDS.get((symbols or {}).get(symbol, symbol), UNKNOWN)


def cells(pattern: str | None) -> list[tuple[str, ...]]:
    """The sublayers of a pattern, each as its branches; none of a pattern that is not known."""
    return [branches(sublayer) for sublayer in expand(pattern)] if pattern else []


def mixers(pattern: str | None, symbols: Mapping[str, str] | None = None) -> list[str]:
    """The symbols of a pattern that mix positions, branches one by one."""
    whole = [symbol for cell in cells(pattern) for symbol in cell]
    return [symbol for symbol in whole if (symbols or {}).get(symbol, symbol) not in CHANNELS]


def base(pattern: str | None, symbols: Mapping[str, str] | None = None) -> str:
    """The mixers beside attention, each once: "M" of "M-M-A-M-", nothing of "A-A-"."""
    found = set(mixers(pattern, symbols))
    return "".join(sorted(symbol for symbol in found if (symbols or {}).get(symbol, symbol) not in ATTENTION))


def looks(patterns: Mapping[str, str | None], symbols: Mapping[str, str] | None = None) -> dict[str, Look]:
    """Name -> how it is drawn, for arms or series with these patterns. The first 24 mixed ones differ."""
    found: dict[str, Look] = {}
    mixed = 0
    for name, pattern in patterns.items():
        kinds = set(mixers(pattern, symbols))
        pure = kind_colour(next(iter(kinds)), symbols) if len(kinds) == 1 else UNKNOWN
        if pure != UNKNOWN and pure not in (look.colour for look in found.values()):
            found[name] = Look(pure, DASHES[0], MARKERS[0])
            continue
        lap = mixed // len(SERIES) % len(DASHES)
        found[name] = Look(SERIES[mixed % len(SERIES)], DASHES[lap], MARKERS[(mixed + lap + 1) % len(MARKERS)])
        mixed += 1
    return found
