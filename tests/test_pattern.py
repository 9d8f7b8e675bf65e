"""The layer language: reading, writing, counting, and cutting into segments."""

import itertools
import re
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid import pattern
from hybrid.pattern import attention_ratio, compact, expand, parse, summary, write
from hybrid.segments import segments
from hybrid.validation import ConfigError

SYMBOL = st.sampled_from([*pattern.SYMBOLS, "w", "z"])
BRANCHES = st.lists(SYMBOL, min_size=2, max_size=3).map(lambda symbols: f"[{'|'.join(symbols)}]")
SUBLAYER = SYMBOL | BRANCHES
TIMES = st.sampled_from([1, 1, 2, 3, 12])
SEQUENCE = st.lists(st.sampled_from(["M", "A", "-", "[A|M]"]), min_size=1, max_size=40)


def nodes(bodies):
    return st.builds(pattern.Node, bodies, TIMES)


def trees(bodies):
    return st.lists(nodes(bodies), min_size=1, max_size=4).map(tuple)


TREE = trees(st.recursive(SUBLAYER, lambda bodies: trees(bodies), max_leaves=6)).filter(
    lambda tree: size(tree) <= pattern.MAX_SUBLAYERS
)


def size(tree):
    return sum(node.times * (1 if isinstance(node.body, str) else size(node.body)) for node in tree)


# --- reading and writing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("M3", "M M M"),
        ("(A-)2", "A - A -"),
        ("((S-)2A-)2", "S - S - A - S - S - A -"),
        ("[A|M]2-", "[A|M] [A|M] -"),
        (" [ A | M ] 2\n- ", "[A|M] [A|M] -"),
        ("M 12", " ".join("M" * 12)),
        ("w-", "w -"),
        ("M1", "M"),
    ],
)
def test_expand_gives_a_string_per_sublayer(text, expanded):
    assert expand(text) == tuple(expanded.split())


@given(TREE)
def test_parse_reads_what_write_wrote(tree):
    assert parse(write(tree)) == tree
    assert len(expand(write(tree))) == size(tree)


@given(TREE)
def test_printing_a_parsed_canonical_string_gives_it_back(tree):
    text = write(tree)
    assert write(parse(text)) == text


@given(TREE, st.data())
def test_white_space_changes_nothing(tree, data):
    tokens = re.findall(r"\d+|\D", write(tree))
    spaced = "".join(token + data.draw(st.sampled_from(["", " ", "\t\n"])) for token in tokens)
    assert parse(spaced) == tree


@pytest.mark.parametrize(
    "text",
    ["(A-)12", "M48", "(M-MEM-MEA-MEM-ME)4", "((S-)5A-)4", "M14A4M14", "[A|M]8", "MM", "M3", "(M-)4A-(M-)3", "M-M-"],
)
def test_compact_writes_stacks_as_people_do(text):
    assert compact(expand(text)) == text


@given(SEQUENCE)
def test_compact_is_never_longer_and_expands_to_its_sequence(sequence):
    text = compact(sequence)
    assert expand(text) == tuple(sequence)
    assert len(text) <= len("".join(sequence))
    assert compact(tuple(sequence)) == text


@given(SEQUENCE, st.integers(5, 40))
def test_compact_finds_a_group_that_repeats(unit, times):
    assert len(compact(unit * times)) <= len(compact(unit)) + 4


def test_compact_of_a_deep_stack_is_quick():
    sequence = (["M", "-"] * 7 + ["A", "-"]) * 8
    start = time.perf_counter()
    assert compact(sequence) == "((M-)7A-)8"
    assert compact(["M"] * 2000 + ["A"]) == "M2000A"
    assert compact(sequence * 4) == "((M-)7A-)32"
    assert time.perf_counter() - start < 2


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "character", "words"),
    [
        ("MMQ-", 3, "unknown symbol 'Q' at character 3 of 'MMQ-'; did you mean 'G'? (allowed: A, B, S"),
        ("M*", 2, "did you mean 'A'?"),
        ("M\N{EN DASH}", 2, "did you mean '-'?"),
        ("M\u00b2", 2, "unknown symbol"),
        ("M  \n!", 5, "unknown symbol '!'"),
        ("(A-", 1, "'(' is never closed"),
        ("((A-)2", 1, "'(' is never closed"),
        ("(A(B)(-", 6, "'(' is never closed"),
        ("A-)2", 3, "')' closes nothing"),
        ("A()2", 2, "empty group"),
        ("M0", 2, "count 0"),
        ("M-00", 3, "count 0"),
        ("3M", 1, "follows no symbol"),
        ("M4 8", 4, "follows no symbol"),
        ("(3M)", 2, "follows no symbol"),
        ("A|M", 2, "'|' stands outside"),
        ("A]", 2, "']' closes nothing"),
        ("[A|[M|H]]", 4, "brackets inside brackets"),
        ("-[A|M", 2, "'[' is never closed"),
        ("[A]", 1, "one branch"),
        ("[|A]", 2, "a symbol is missing"),
        ("[A|]", 4, "a symbol is missing"),
        ("[]", 2, "a symbol is missing"),
        ("[A2|M]", 3, "a branch is one symbol"),
        ("[AM|D]", 3, "a branch is one symbol"),
        ("[(A)|M]", 2, "a branch is one symbol"),
        ("[A|Q]", 4, "unknown symbol 'Q'"),
        ("M4097", 2, "more than 4096"),
        ("M99999999999999999999", 2, "more than 4096"),
        ("((M64)64M)2", 9, "more than 4096"),
        ("M4096A", 6, "more than 4096"),
        ("(" * 40 + "M" + ")" * 40, 33, "deeper than 32"),
    ],
)
def test_an_error_points_at_its_character(text, character, words):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("pattern: ")
    assert f"at character {character} of " in message
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("value", ["", " \n", None, 12, ["M"]])
def test_what_is_no_pattern_is_refused(value):
    with pytest.raises(ConfigError, match=r"^pattern: .*such as '\(MA\)4'"):
        parse(value)


@given(st.text(alphabet="AM-w()[|]123 *Q", max_size=30))
@settings(max_examples=300)
def test_any_text_is_read_or_refused_in_one_line(text):
    message = ""
    try:
        tree = parse(text)
    except ConfigError as error:
        message = str(error)
    if message:
        assert message.startswith("pattern: ")
        assert "\n" not in message
    else:
        assert parse(write(tree)) == tree


@given(st.text(alphabet="AM-", max_size=60), st.text(alphabet="AM-", max_size=60))
def test_the_character_of_an_error_is_the_one_that_was_spoilt(before, after):
    with pytest.raises(ConfigError, match=f"'!' at character {len(before) + 1} of "):
        parse(f"{before}!{after}")


def test_absurd_counts_are_refused_without_expanding():
    start = time.perf_counter()
    for text in ("(((((((M999)999)999)999)999)999)999)", "M" + "9" * 100_000):
        with pytest.raises(ConfigError, match="more than 4096"):
            expand(text)
    assert time.perf_counter() - start < 0.5


def test_a_new_symbol_is_known_as_soon_as_it_is_in_the_table(monkeypatch):
    with pytest.raises(ConfigError):
        parse("ZA")
    monkeypatch.setitem(pattern.SYMBOLS, "Z", "new_kind")
    assert expand("ZA") == ("Z", "A")
    assert attention_ratio("ZA") == Fraction(1, 2)


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ratio"),
    [
        ("(A-)12", 1),
        ("M48", 0),
        ("(M-MEM-MEA-MEM-ME)4", Fraction(1, 8)),
        ("[A|M]M", Fraction(1, 2)),  # one mixer with attention
        ("[A|-]M-", Fraction(1, 2)),
        ("(B-)6", 1),
        ("SRA", Fraction(1, 3)),  # local kinds are mixers and do not count
        ("AX-", Fraction(1, 2)),  # neither does cross-attention
        ("-E", 0),
    ],
)
def test_the_attention_ratio_counts_global_attention_over_mixers(text, ratio):
    assert attention_ratio(text) == ratio


def test_a_summary_counts_symbols_mixers_channels_and_local_attention():
    found = summary("M-[A|M]ES-[S|M]-")
    assert found.counts == {"M": 3, "-": 3, "A": 1, "E": 1, "S": 2}
    assert (found.sublayers, found.mixers, found.channels, found.attention, found.local) == (8, 4, 4, 1, 2)
    assert found.ratio == Fraction(1, 4)


def test_a_user_symbol_counts_as_what_it_stands_for():
    assert attention_ratio("wM", {"w": "A"}) == Fraction(1, 2)
    assert summary("wA", {"w": "S"}).local == 1
    assert summary("[A|S]").local == 0  # global attention already
    assert summary("wA", {"w": "-"}).mixers == 1
    with pytest.raises(ConfigError, match="undefined symbol 'w' at character 2 of 'Aw'"):
        attention_ratio("Aw")


# --- segments ---------------------------------------------------------------------------------------------------------


def cut(text):
    return [("".join(segment.unit), segment.repeats) for segment in segments(expand(text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("M14A4M14", [("M", 14), ("A", 4), ("M", 14)]),
        ("(A-)12", [("A-", 12)]),
        ("((S-)5A-)4", [("S-S-S-S-S-A-", 4)]),
        ("(M-)3A-(M-)4", [("M-", 3), ("A-", 1), ("M-", 4)]),
        ("AMA", [("AMA", 1)]),  # as few traced as A, M, A, in fewer segments
        ("A-A-A", [("A-", 2), ("A", 1)]),  # and not A, (-A)2: the longest first
        ("M3AM2A", [("M", 1), ("MMA", 2)]),  # four sublayers traced, as in M3, A, M2, A
        ("A", [("A", 1)]),
    ],
)
def test_segments_trace_the_fewest_sublayers(text, expected):
    assert cut(text) == expected


def cheapest(sequence):
    """The smallest (sublayers traced, segments) by trying every cut: exponential, for short sequences."""
    best = None
    n = len(sequence)
    for flags in itertools.product([False, True], repeat=n - 1):
        ends = [i + 1 for i, flag in enumerate(flags) if flag] + [n]
        pieces = [sequence[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        units = [
            next(p for p in range(1, len(x) + 1) if len(x) % p == 0 and x[:p] * (len(x) // p) == x) for x in pieces
        ]
        best = min(best or (n + 1, 0), (sum(units), len(units)))
    return best


@given(st.lists(st.sampled_from("MA-"), min_size=1, max_size=9))
@settings(max_examples=60)
def test_segments_are_the_best_of_all_cuts(sequence):
    found = segments(sequence)
    assert (sum(len(segment.unit) for segment in found), len(found)) == cheapest(tuple(sequence))


@given(SEQUENCE)
def test_segments_rebuild_the_sequence(sequence):
    rebuilt = [sublayer for segment in segments(sequence) for sublayer in segment.unit * segment.repeats]
    assert rebuilt == sequence
    assert segments(tuple(sequence)) == segments(sequence)


@pytest.mark.parametrize("text", ["M128", "(M-)64", "((M-)7A-)8", "(M-)20A-(M-)43"])
def test_segments_of_128_sublayers_take_milliseconds(text):
    sequence = expand(text)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        segments(sequence)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


def test_the_language_does_not_import_jax():
    program = "import sys, hybrid.readers; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
