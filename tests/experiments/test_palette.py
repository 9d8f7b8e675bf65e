"""Colours of kinds and looks of arms."""

import itertools

import pytest

from experiments.palette import INK, KINDS, LIGHT, SERIES, base, cells, kind_colour, looks, mixers
from hybrid.pattern import SYMBOLS

WHITE = "#FFFFFF"


def channels(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    """As WCAG 2 defines it: 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_every_symbol_of_the_language_has_a_colour_of_its_own():
    assert set(KINDS) == set(SYMBOLS)
    assert len(set(KINDS.values())) == len(KINDS)


@pytest.mark.parametrize("symbol", KINDS)
def test_the_letter_of_a_cell_can_be_read(symbol):
    assert contrast(INK if symbol in LIGHT else WHITE, KINDS[symbol]) > 2.8


def test_a_letter_of_the_user_has_the_colour_of_its_kind():
    assert kind_colour("w", {"w": "A"}) == KINDS["A"]
    assert kind_colour("w") not in KINDS.values()


def test_mixers_and_bases_look_into_branches_and_leave_channels_out():
    assert cells("[A|M]-") == [("A", "M"), ("-",)] and cells(None) == []
    assert mixers("M-[A|M]-") == ["M", "A", "M"]
    assert base("M-[A|M]-H") == "HM" and base("(A-)2") == "" and base("w-M-", {"w": "A"}) == "M"


def test_pure_arms_have_the_colour_of_their_kind_and_mixed_ones_none_of_it():
    found = looks({"mamba": "(M-)4", "hybrid": "M-A-", "hyena": "HH"})
    assert (found["mamba"].colour, found["hyena"].colour) == (KINDS["M"], KINDS["H"])
    assert found["hybrid"].colour in SERIES


def test_twenty_four_mixed_arms_all_look_different():
    found = looks({f"arm {i}": "M-A-" for i in range(24)}).values()
    assert len({(look.colour, str(look.dash)) for look in found}) == 24
    assert all(a.marker != b.marker for a, b in itertools.combinations(found, 2) if a.colour == b.colour)


def test_two_arms_of_one_kind_do_not_share_its_colour():
    found = looks({"small": "MM", "large": "(MM)2"})
    assert found["small"].colour != found["large"].colour
