"""Text as tokens come: torn characters are whole before they are shown, stop strings end the text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data.tokenizers import Bytes
from experiments.streaming import Pieces, Until

QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def sentencepiece():
    """A library decoder as Llama 2 has it: bytes as words, spaces as marks, the first space dropped."""
    from tokenizers import Tokenizer, decoders, models

    words = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁the", "▁", "é", "s", "漢"]
    library = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return library.decode


def byte_level():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġthe", "Ã©"]
    library = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    library.decoder = decoders.ByteLevel()
    return library.decode


DECODERS = {"bytes": (Bytes().decode, 256), "byte level": (byte_level(), 258)}


@pytest.mark.parametrize("name", DECODERS)
def test_the_pieces_together_are_the_text(name):
    decode, vocabulary = DECODERS[name]

    @QUICK
    @given(st.lists(st.integers(0, vocabulary - 1), max_size=40), st.integers(0, 12))
    def check(tokens, prompt):
        pieces = Pieces(decode, tokens[:prompt])
        shown = "".join([pieces.feed(token) for token in tokens[prompt:]]) + pieces.flush()
        assert pieces.flush() == ""
        before = decode(tokens[:prompt])
        if not before.endswith("\ufffd"):  # prompts are whole texts
            assert before + shown == decode(tokens)

    check()


WORDS = [[256], [257], [258], [259], [260], *(list(character.encode()) for character in ("é", "漢", "🙂", "\n"))]


@QUICK
@given(st.lists(st.sampled_from(WORDS), max_size=12), st.integers(0, 5))
def test_spaces_and_bytes_of_sentencepiece(words, prompt):
    """Only whole characters: its decoder takes a torn one for a fault of all bytes around it."""
    decode = sentencepiece()
    before, after = ([token for word in part for token in word] for part in (words[:prompt], words[prompt:]))
    pieces = Pieces(decode, before)
    shown = "".join([pieces.feed(token) for token in after])
    assert decode(before) + shown == decode(before + after)


@QUICK
@given(st.text(max_size=20))
def test_characters_are_shown_with_their_last_byte(text):
    pieces, shown = Pieces(Bytes().decode), ""
    for character in text:
        *first, last = character.encode()
        for byte in first:
            assert pieces.feed(byte) == ""
        shown += pieces.feed(last)
        if character != "\ufffd":
            assert shown.endswith(character)
    assert shown + pieces.flush() == text


@QUICK
@given(
    st.lists(st.text("ab\n", max_size=3), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_the_text_ends_before_the_first_stop_string_however_it_is_cut(chunks, stops):
    text, until = "".join(chunks), Until(stops)
    shown = ""
    for chunk in chunks:
        shown += until.feed(chunk)
        assert text.startswith(shown)
    shown += until.flush()
    ends = [text.index(stop) for stop in stops if stop in text]
    assert until.done == bool(ends)
    assert shown == text[: min(ends, default=len(text))]


def test_what_cannot_begin_a_stop_string_is_shown_at_once():
    until = Until(["\n\nB", "END"])
    assert [until.feed(piece) for piece in ("a", "E", "N", "x", "\n", "\n", "c")] == [
        "a",
        "",
        "",
        "ENx",
        "",
        "",
        "\n\nc",
    ]
