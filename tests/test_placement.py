"""Patterns from a ratio and a placement, and from the notations of published models."""

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hybrid.pattern import attention_ratio, expand, summary
from hybrid.placement import PLACEMENTS, place, share
from hybrid.readers import from_indices, from_megatron, from_period, from_shares, to_megatron
from hybrid.validation import ConfigError

NVIDIA_8B = "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-"  # arXiv 2406.07887


def places(pattern, symbol="A"):
    return [i for i, sublayer in enumerate(expand(pattern)) if sublayer == symbol]


# --- published strings ------------------------------------------------------------------------------------------------


def test_even_channels_give_the_published_string_of_nvidias_8b_hybrid():
    pattern = place(mixers=28, base="D", insert="A", count=4, where="even", channel="-", channel_where="even")
    assert to_megatron(pattern) == NVIDIA_8B
    assert attention_ratio(pattern) == Fraction(1, 7)


@pytest.mark.parametrize(
    ("mixers", "ratio", "indices"),
    [
        (8, "1/8", [4]),
        (8, "1:7", [4]),
        (48, "6/48", [6, 13, 20, 27, 34, 41]),
        (16, "1/8", [5, 10]),
        (8, "1/4", [2, 5]),
        (8, 0.25, [2, 5]),
        (32, Fraction(1, 8), [6, 12, 19, 25]),
    ],
)
def test_even_places_attention_where_megatron_does(mixers, ratio, indices):
    assert places(place(mixers, "M", "A", ratio)) == indices


def test_even_strings_of_megatron_character_for_character():
    for layers, string in {
        8: "MMMM*MMM",
        16: "MMMMM*MMMM*MMMMM",
        32: "MMMMMM*MMMMM*MMMMMM*MMMMM*MMMMMM",
    }.items():
        assert to_megatron(place(layers, "D", "A", "1/8")) == string
        assert to_megatron(from_shares(layers, 1 / 8)) == string


@pytest.mark.parametrize("attention", [4 / 56, 0.08])
def test_shares_are_rounded_as_megatron_rounds_them(attention):
    assert to_megatron(from_shares(56, attention, 0.5)) == NVIDIA_8B
    assert places(from_shares(24, 0.08)) == [7, 16]


def test_jamba_by_period_and_by_placement():
    jamba = "(M-MEM-MEA-MEM-ME)4"
    assert from_period(32, attn_period=8, attn_offset=4, expert_period=2, expert_offset=1) == jamba
    assert [i // 2 for i in places(jamba)] == [4, 12, 20, 28]
    dense = from_period(32, attn_period=8, attn_offset=4)
    assert dense == place(32, "M", "A", "1:7", where="periodic", offset=4, channel="-") == "((M-)4A-(M-)3)4"
    assert dense == from_indices(32, [4, 12, 20, 28])


def test_megatron_strings_are_read_without_their_pipeline_bars():
    assert expand(from_megatron("M-M*|-ME")) == tuple("D-DA-DE")
    assert expand(from_megatron(NVIDIA_8B)) == tuple(NVIDIA_8B.replace("M", "D").replace("*", "A"))


@given(st.lists(st.sampled_from("M*-E"), min_size=1, max_size=60))
def test_megatron_strings_survive_a_round_trip(symbols):
    string = "".join(symbols)
    assert to_megatron(from_megatron(string)) == string


# --- placements -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "count", "expected"),
    [
        ("first", 3, "AAAMMMMMMMMM"),
        ("last", 3, "MMMMMMMMMAAA"),
        ("middle", 4, "MMMMAAAAMMMM"),
        ("middle", 3, "MMMMAAAMMMMM"),
        ("even", 3, "MMAMMMAMMAMM"),  # 2.25, 4.5 and 6.75 others before each, rounded to 2, 5 and 7
        ("sandwich", 4, "AAMMMMMMMMAA"),
        ("sandwich", 3, "AAMMMMMMMMMA"),
        ("periodic", 3, "MMMAMMMAMMMA"),
        ((0, 5, 6), 3, "AMMMMAAMMMMM"),
    ],
)
def test_each_placement_stands_where_its_name_says(where, count, expected):
    assert "".join(expand(place(12, "M", "A", count=count, where=where))) == expected


@given(st.integers(1, 60), st.data())
def test_the_asked_count_and_ratio_are_what_the_pattern_has(mixers, data):
    count = data.draw(st.integers(0, mixers))
    where = data.draw(st.sampled_from([*PLACEMENTS, "periodic"]))
    channel = data.draw(st.sampled_from([None, "-", "[-|E]"]))
    channel_where = data.draw(st.sampled_from(["after", "even"]))
    assume(where != "sandwich" or count != 1)
    slots = 2 * mixers if channel and channel_where == "even" else mixers
    assume(where != "periodic" or count == 0 or slots % count == 0)
    amount = data.draw(
        st.sampled_from([{"count": count}, {"ratio": f"{count}:{mixers - count}"}, {"ratio": count / mixers}])
    )
    pattern = place(mixers, "M", "A", where=where, channel=channel, channel_where=channel_where, **amount)
    found = summary(pattern)
    assert (found.mixers, found.attention, found.ratio) == (mixers, count, Fraction(count, mixers))
    assert found.channels == (mixers if channel else 0)


@given(st.integers(1, 80), st.data())
def test_even_stretches_differ_by_one_at_most(mixers, data):
    count = data.draw(st.integers(1, mixers))
    at = places(place(mixers, "M", "A", count=count))
    stretches = [b - a - 1 for a, b in zip([-1, *at], [*at, mixers], strict=True)]
    assert max(stretches) - min(stretches) <= 1


@given(st.integers(2, 40), st.data())
def test_channels_after_each_mixer_leave_the_placement_as_it_is(mixers, data):
    count = data.draw(st.integers(2, mixers))
    where = data.draw(st.sampled_from([*PLACEMENTS]))
    bare = expand(place(mixers, "M", "[A|M]", count=count, where=where))
    with_channels = expand(place(mixers, "M", "[A|M]", count=count, where=where, channel="E"))
    assert with_channels[::2] == bare
    assert set(with_channels[1::2]) == {"E"}


def test_a_period_defines_the_count_and_needs_not_divide():
    assert places(place(10, "M", "A", where="periodic", period=4, offset=1)) == [1, 5, 9]
    assert places(place(10, "M", "A", where="periodic", period=4)) == [3, 7]  # the last of each period
    assert places(place(10, "M", "A", count=3, where="periodic", period=4, offset=1)) == [1, 5, 9]


def test_no_insert_is_the_same_stack_for_every_placement():
    assert {place(12, "M", "A", ratio=0, where=where) for where in (*PLACEMENTS, "periodic", ())} == {"M12"}


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [("1:7", "1/8"), (" 1 : 3 ", "1/4"), ("1/8", "1/8"), ("0.25", "1/4"), (0.125, "1/8"), (1, "1"), ("1:0", "1")],
)
def test_ratios_are_parts_or_shares(ratio, expected):
    assert share(ratio) == Fraction(expected)


# --- what is refused --------------------------------------------------------------------------------------------------

GOOD = {"mixers": 24, "base": "M", "insert": "A", "count": 3}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"count": None, "ratio": 0.08}, "ratio", "1:23 (count 1) or 2:22 (count 2)"),
        (
            {"count": None, "ratio": "1:6"},
            "ratio",
            "'1:6' of 24 mixers is 3.429; possible near it: 3:21 (count 3) or",
        ),
        ({"count": None, "ratio": "1:0:1"}, "ratio", "must be like '1:7'"),
        ({"count": None, "ratio": "0:0"}, "ratio", "must be like '1:7'"),
        ({"count": None, "ratio": "-1:7"}, "ratio", "must be like '1:7'"),
        ({"count": None, "ratio": "9e999999999"}, "ratio", "must be like '1:7'"),
        ({"count": None, "ratio": 1.5}, "ratio", "from 0 to 1"),
        ({"count": None, "ratio": -0.25}, "ratio", "from 0 to 1"),
        ({"count": None, "ratio": float("nan")}, "ratio", "from 0 to 1"),
        ({"count": None, "ratio": float("inf")}, "ratio", "from 0 to 1"),
        ({"count": None, "ratio": True}, "ratio", "from 0 to 1"),
        ({"count": None}, "ratio", "must be given, or count"),
        ({"ratio": "1/8"}, "count", "excludes ratio"),
        ({"count": 25}, "count", "from 0 to 24"),
        ({"count": -1}, "count", "from 0 to 24"),
        ({"count": 2.5}, "count", "an integer"),
        ({"mixers": 0}, "mixers", "from 1 to"),
        ({"mixers": 10**9}, "mixers", "from 1 to 4096"),
        ({"mixers": True}, "mixers", "an integer"),
        ({"base": "-"}, "base", "a channel sublayer"),
        ({"base": "MM"}, "base", "must be one sublayer"),
        ({"base": "Q"}, "base", "unknown symbol 'Q' at character 1"),
        ({"insert": "M"}, "insert", "must be another mixer"),
        ({"insert": "E"}, "insert", "a channel sublayer"),
        ({"channel": "D"}, "channel", "is a mixer"),
        ({"channel": "-E"}, "channel", "must be one sublayer"),
        ({"channel_where": "befor", "channel": "-"}, "channel_where", "after, even"),
        ({"where": "evn"}, "where", "did you mean 'even'?"),
        ({"where": None}, "where", "allowed: first, last, middle, even, sandwich, periodic"),
        ({"where": "sandwich", "count": 1}, "where", "at least 2"),
        ({"where": "periodic", "count": 5}, "where", "possible near it: 3, 4, 6"),
        ({"where": "periodic", "count": None}, "period", "must be given, or ratio, or count"),
        ({"where": "periodic", "period": 6}, "period", "6 gives 4 places where ratio or count asks for 3"),
        ({"where": "periodic", "offset": 8}, "offset", "from 0 to 7"),
        ({"offset": 1}, "offset", "only for where='periodic'"),
        ({"period": 8}, "period", "only for where='periodic'"),
        ({"where": (1, 2)}, "indices", "2 given where ratio or count asks for 3"),
        ({"where": (1, 2, 24)}, "indices[2]", "from 0 to 23"),
        ({"indices": (1, 2, 2)}, "indices[2]", "stands twice"),
        ({"indices": "1,2"}, "indices", "must be a tuple"),
        ({"indices": (1, 2, 3), "where": "first"}, "indices", "excludes 'where'"),
        ({"indices": (1, 2, 3), "where": (4, 5, 6)}, "indices", "given twice"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_the_way_out(changes, field, words):
    place(**GOOD)
    with pytest.raises(ConfigError) as caught:
        place(**{**GOOD, **changes})
    assert caught.value.field == field
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("read", "field", "words"),
    [
        (lambda: from_megatron("M-Q"), "pattern", "'Q' at character 3 of 'M-Q' (allowed: M, *, -, E, |)"),
        (lambda: from_megatron("||"), "pattern", "is empty"),
        (lambda: from_megatron(None), "pattern", "must be a string"),
        (lambda: to_megatron("(D-)2MA"), "pattern", "'M' (mamba) has no Megatron symbol at character 6"),
        (lambda: to_megatron("D-[D|A]"), "pattern", "'[D|A]' (branches) has no Megatron symbol at character 3"),
        (lambda: from_period(32, 8, 8), "attn_offset", "from 0 to 7"),
        (lambda: from_period(32, 0, 0), "attn_period", "from 1"),
        (lambda: from_period(32, 8, 4, 2), "expert_offset", "None is not allowed"),
        (lambda: from_indices(4, [4]), "indices[0]", "from 0 to 3"),
        (lambda: from_shares(8, 0.75, 0.5), "channels", "must fit into 8"),
    ],
)
def test_readers_refuse_what_they_cannot_read(read, field, words):
    with pytest.raises(ConfigError) as caught:
        read()
    assert caught.value.field == field
    assert words in str(caught.value)
