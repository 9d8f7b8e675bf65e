"""Colours and markers: one colour a kind of sublayer, everywhere. No matplotlib here.

The hues are those of two published colour-blind safe sets (Okabe and Ito 2008; Paul Tol's muted scheme). No 13 hues are
safe for all eyes, so a colour never speaks alone: cells carry their letter, arms their marker and their name.
"""

from __future__ import annotations

from collections.abc import Mapping

from hybrid.pattern import CHANNELS, branches, expand

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
INK, FAINT, GRID, ALARM = "#222222", "#8A8A8A", "#E6E6E6", "#B00020"

HYBRIDS = ("#CC79A7", "#56B4E9", "#E69F00", "#332288", "#882255", "#999933", "#44AA99", "#000000")
"""Of arms that mix kinds, in the order of the study; pure arms have the colour of their kind."""

PLACEMENTS: dict[str, str] = {
    "": "o", "even": "s", "first": "<", "last": ">", "middle": "D", "sandwich": "X", "periodic": "P", "indices": "v",
}  # fmt: skip
"""Word of the placement -> marker."""


def kind_colour(symbol: str, symbols: Mapping[str, str] | None = None) -> str:
    """The colour of a symbol; a user's lower-case letter has that of the kind it stands for (`symbols`)."""
    return KINDS.get((symbols or {}).get(symbol, symbol), UNKNOWN)


def mixers(pattern: str, symbols: Mapping[str, str] | None = None) -> list[str]:
    """The symbols of a pattern that mix positions, branches one by one."""
    whole = [symbol for sublayer in expand(pattern) for symbol in branches(sublayer)]
    return [symbol for symbol in whole if (symbols or {}).get(symbol, symbol) not in CHANNELS]


def arm_colours(patterns: Mapping[str, str], symbols: Mapping[str, str] | None = None) -> dict[str, str]:
    """Arm -> its colour, for arms with these patterns."""
    colours: dict[str, str] = {}
    mixed = 0
    for arm, pattern in patterns.items():
        kinds = set(mixers(pattern, symbols))
        pure = kind_colour(next(iter(kinds)), symbols) if len(kinds) == 1 else UNKNOWN
        if pure == UNKNOWN or pure in colours.values():
            colours[arm] = HYBRIDS[mixed % len(HYBRIDS)]
            mixed += 1
        else:
            colours[arm] = pure
    return colours
