from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data.chance import uniforms
from experiments.data.spans import composition, corrupt, counted, draws, fill_in, lengths, noise_mask
from hybrid.validation import ConfigError

ROWS = 3


def made(raw: int, density: float, mean: float, seed: int = 0):
    """(tokens, noise mask, inputs, targets, lengths) of rows whose tokens are all different."""
    about = counted(raw, density, mean)
    tokens = np.arange(ROWS * raw, dtype=np.int32).reshape(ROWS, raw)
    noise = noise_mask(about, uniforms(seed, "test", np.arange(ROWS), draws(about)))
    highest = tokens.size + about.spans  # `end` is the first id behind the tokens
    inputs, targets = corrupt(tokens, noise, highest, tokens.size)
    return tokens, noise, inputs, targets, about, highest


CASES = given(
    st.integers(2, 90), st.floats(0.01, 0.9), st.floats(1.0, 8.0), st.integers(0, 10**6)
)  # raw, density, mean length, seed


def test_the_published_lengths() -> None:
    """T5: inputs 512, density 0.15, mean span 3 -> 568 raw tokens and targets of 114."""
    assert lengths(512, 0.15, 3.0) == (568, 85, 28, 512, 114)


@given(st.integers(3, 600), st.sampled_from([0.1, 0.15, 0.3, 0.5]), st.sampled_from([2.0, 3.0, 5.0, 10.0]))
def test_lengths_fill_the_encoder_exactly_and_are_the_most_that_do(inputs: int, density: float, mean: float) -> None:
    about = lengths(inputs, density, mean)
    assert about.inputs == inputs
    assert counted(about.raw + 1, density, mean).inputs > inputs
    assert counted(about.raw - 1, density, mean).inputs <= inputs or about.raw == 2


def test_a_length_that_cannot_be_filled_is_refused() -> None:
    with pytest.raises(ConfigError, match="seq_len: 2 is not allowed; span corruption needs at least 3"):
        lengths(2, 0.15, 3.0)
    with pytest.raises(ConfigError, match="seq_len: 4 is not allowed; spans of this density and length fill 3 or 5"):
        lengths(4, 0.5, 1.0)


@CASES
def test_counts_of_noise_and_of_spans_are_exact_and_a_row_starts_with_what_stays(raw, density, mean, seed) -> None:
    _, noise, inputs, targets, about, _ = made(raw, density, mean, seed)
    assert about.noise == min(max(round(raw * density), 1), raw - 1)
    assert (noise.sum(1) == about.noise).all()
    starts = noise & ~np.pad(noise, ((0, 0), (1, 0)))[:, :-1]
    assert (starts.sum(1) == about.spans).all()
    assert not noise[:, 0].any()
    assert noise[:, -1].all()
    assert inputs.shape == (ROWS, about.inputs)
    assert targets.shape == (ROWS, about.targets)


@CASES
def test_filling_in_gives_the_original_back(raw, density, mean, seed) -> None:
    tokens, _, inputs, targets, about, highest = made(raw, density, mean, seed)
    for row in range(ROWS):
        back = fill_in(inputs[row], targets[row], highest, tokens.size, about.spans)
        np.testing.assert_array_equal(back, tokens[row])


@CASES
def test_sentinels_count_down_from_the_highest_id_in_inputs_and_targets_alike(raw, density, mean, seed) -> None:
    tokens, noise, inputs, targets, about, highest = made(raw, density, mean, seed)
    wanted = [highest - i for i in range(about.spans)]
    for row in range(ROWS):
        for side in (inputs[row], targets[row]):
            assert [token for token in side if token > tokens.size] == wanted
            assert side[-1] == tokens.size
            assert (side[:-1] != tokens.size).all()
        assert targets[row, 0] == highest, "targets begin with a sentinel and have none for the end"
        assert sorted(t for t in inputs[row] if t < tokens.size) == tokens[row][~noise[row]].tolist()
        assert sorted(t for t in targets[row] if t < tokens.size) == tokens[row][noise[row]].tolist()


def test_an_example_by_hand() -> None:
    tokens = np.array([[1, 2, 3, 4, 5, 6, 7, 8]])
    noise = np.array([[0, 1, 1, 0, 0, 0, 1, 0]], bool)
    inputs, targets = corrupt(tokens, noise, 99, 50)
    assert inputs.tolist() == [[1, 99, 4, 5, 6, 98, 8, 50]]
    assert targets.tolist() == [[99, 2, 3, 98, 7, 97, 50]]  # a row that ends with what stays has one sentinel more


def test_all_compositions_are_equally_likely() -> None:
    """10 = 1 + ... in 4 parts: C(9, 3) = 84 ways, 600 draws of each on average."""
    parts = composition(10, 4, np.random.default_rng(0).random((84 * 600, 9)))
    counts = Counter(map(tuple, parts.tolist()))
    ways = {w for w in itertools.product(range(1, 8), repeat=4) if sum(w) == 10}
    assert set(counts) == ways
    chi = sum((count - 600) ** 2 / 600 for count in counts.values())
    assert chi < 83 + 5 * np.sqrt(2 * 83)


def test_all_masks_are_equally_likely() -> None:
    """8 tokens, 4 of them in 2 spans: 3 ways to cut the noise times 3 to cut the rest."""
    about = counted(8, 0.5, 2.0)
    masks = noise_mask(about, np.random.default_rng(1).random((9 * 1000, draws(about))))
    counts = Counter(map(bytes, masks))
    assert len(counts) == 9
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 8 + 5 * np.sqrt(2 * 8)


def test_what_a_model_wrote_badly_is_filled_in_too() -> None:
    inputs, end, highest = np.array([1, 99, 2, 98, 3, 50]), 50, 99
    assert fill_in(inputs, np.array([98, 7, 99, 8, 8, 50, 4]), highest, end, 2).tolist() == [1, 8, 8, 2, 7, 3]
    assert fill_in(inputs, np.array([9, 99, 5]), highest, end, 2).tolist() == [1, 5, 2, 3]
