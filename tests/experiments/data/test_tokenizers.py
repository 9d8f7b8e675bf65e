from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments.data.tokenizers import BytePair, Bytes, Tokenizer, chunks

TEXT = ["the cat sat on the mat; the cats sat on the mats\n", "naïve 语言 🎭", "  two  spaces\ttab"] * 5


@functools.cache
def trained() -> BytePair:
    return BytePair.train(TEXT, 300)


MAKERS = pytest.mark.parametrize("make", [Bytes, trained], ids=["bytes", "bpe"])


@MAKERS
@given(text=st.text())
@example(text="")
@example(text="<|document|> <s> [UNK] \x00 \u200b e\u0301 \r\n   ")
@settings(max_examples=200, deadline=None)
def test_decoding_what_was_encoded_gives_the_text_and_its_bytes(make, text: str) -> None:
    tokenizer: Tokenizer = make()
    (tokens,) = tokenizer.encode([text])
    assert tokens.dtype == np.uint16
    assert tokenizer.decode(tokens) == text
    assert tokenizer.token_bytes()[tokens].sum() == len(text.encode())
    assert (tokens < tokenizer.vocab_size - 1).all(), "only documents have separators"


@MAKERS
def test_the_separator_is_the_last_token_and_has_no_bytes(make) -> None:
    tokenizer: Tokenizer = make()
    counts = tokenizer.token_bytes()
    assert counts.shape == (tokenizer.vocab_size,)
    assert counts[-1] == 0
    assert (counts[:256] == 1).all()
    assert tokenizer.decode([tokenizer.vocab_size - 1]) == ""


def test_a_full_bpe_leaves_the_last_id_to_the_separator() -> None:
    tokenizer = BytePair.train(TEXT, 265)
    assert np.count_nonzero(tokenizer.token_bytes()) == 264
    assert max(tokens.max() for tokens in tokenizer.encode(TEXT)) == 263


def test_a_torn_character_is_shown_as_one() -> None:
    assert Bytes().decode("🎭".encode()[:2]) == "\ufffd"


def test_bpe_learns_the_words_of_its_text() -> None:
    tokenizer = trained()
    (tokens,) = tokenizer.encode(["the cat sat on the mat"])
    assert len(tokens) < 10
    assert max(tokenizer.token_bytes()) > 3


def test_bpe_is_the_same_when_it_is_trained_or_read_again(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        BytePair.train(iter(TEXT), 300).save(folder)
    first, second = ((folder / "tokenizer.json").read_bytes() for folder in folders)
    assert first == second
    assert len(json.loads(first)["model"]["vocab"]) <= 299
    again = BytePair.load(folders[0], 300)
    for text in TEXT:
        np.testing.assert_array_equal(again.encode([text])[0], trained().encode([text])[0])


def test_a_vocabulary_larger_than_the_text_can_fill_keeps_its_separator() -> None:
    tokenizer = BytePair.train(["ab"], 1000)
    assert tokenizer.vocab_size == 1000
    assert tokenizer.token_bytes().sum() == 256 + 2
    assert tokenizer.token_bytes()[999] == 0


@given(st.lists(st.integers()), st.integers(1, 5))
def test_chunks_keep_all_in_order(items: list[int], size: int) -> None:
    parts = list(chunks(items, size))
    assert [item for part in parts for item in part] == items
    assert all(len(part) == size for part in parts[:-1])
