from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data.chance import uniforms
from experiments.data.config import MaskedConfig
from experiments.data.masking import chosen, draws, mask
from hybrid.validation import ConfigError

MASK, VOCABULARY, SEPARATOR = 20, 21, 19


def masked(tokens: np.ndarray, config: MaskedConfig, seed: int = 0):
    uniform = uniforms(seed, "test", np.arange(len(tokens)), draws(tokens.shape[1], config))
    return mask(tokens, tokens != SEPARATOR, uniform, config, MASK, VOCABULARY)


def rows(count: int, length: int, seed: int = 0, highest: int = 19) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, highest, (count, length)).astype(np.int32)


@pytest.mark.parametrize(
    ("length", "rate", "most", "count"),
    [(128, 0.15, None, 19), (512, 0.15, None, 77), (128, 0.15, 20, 19), (512, 0.15, 76, 76), (3, 0.15, None, 1),
     (10, 0.15, None, 2), (1, 0.15, None, 1), (4, 0.15, None, 1), (6, 0.999, None, 6), (30, 0.15, None, 4)],
)  # fmt: skip
def test_the_count_is_berts(length: int, rate: float, most: int | None, count: int) -> None:
    """min(max_predictions, max(1, int(round(length * rate)))), halves to even: 0.15 · 10 = 1.5 -> 2, 4.5 -> 4."""
    assert chosen(length, MaskedConfig(rate=rate, max_predictions=most)) == count


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_labels_put_back_give_the_text_and_only_chosen_places_changed(length: int, rate: float, seed: int) -> None:
    tokens = rows(3, length, seed)
    made = masked(tokens, MaskedConfig(rate=rate), seed)
    assert made.labels.shape == made.positions.shape == (3, chosen(length, MaskedConfig(rate=rate)))
    assert (np.diff(made.positions, axis=1) > 0).all(), "different places, in order"
    back = made.tokens.copy()
    np.put_along_axis(back, made.positions.astype(int), made.labels, 1)
    np.testing.assert_array_equal(back, tokens)
    others = np.ones_like(tokens, bool)
    np.put_along_axis(others, made.positions.astype(int), False, 1)
    np.testing.assert_array_equal(made.tokens[others], tokens[others])


def test_eighty_ten_ten_over_the_whole_vocabulary() -> None:
    """Shares of 96,000 chosen tokens within five standard deviations; a random word is the old one once in V."""
    tokens = rows(5000, 128)
    made = masked(tokens, MaskedConfig())
    before, after = made.labels.ravel(), np.take_along_axis(made.tokens, made.positions.astype(int), 1).ravel()
    n = before.size
    kept = after == before
    drawn = after[(after != MASK) & ~kept]
    for share, expected in [
        ((after == MASK).mean(), 0.8 + 0.1 / VOCABULARY),
        (kept.mean(), 0.1 + 0.1 / VOCABULARY),
        (drawn.size / n, 0.1 * (VOCABULARY - 2) / VOCABULARY),
    ]:
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n)
    counts = np.bincount(drawn, minlength=VOCABULARY)
    assert counts[SEPARATOR] > 0, "a random word may be any, the separator too"
    expected = drawn.size / VOCABULARY
    assert (abs(counts[:MASK] - expected) < 6 * np.sqrt(expected)).all()


def test_every_place_is_chosen_equally_often() -> None:
    made = masked(rows(20_000, 20), MaskedConfig())
    counts = np.bincount(made.positions.ravel(), minlength=20)
    assert (abs(counts - 3000) < 6 * np.sqrt(3000)).all()


def test_a_separator_is_never_chosen_and_a_row_of_few_others_scores_fewer() -> None:
    tokens = np.full((20, 40), SEPARATOR, np.int32)
    tokens[1:, [3, 7]] = [5, 6]
    made = masked(tokens, MaskedConfig(mask_share=1, random_share=0))
    assert (made.labels != -1).sum(1).tolist() == [0] + 19 * [2]
    assert (np.sort(made.labels[1:])[:, -2:] == [5, 6]).all()
    assert (made.tokens[1:, [3, 7]] == MASK).all()
    assert (made.tokens[0] == SEPARATOR).all()


def test_shares_that_are_more_than_all_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"random_share: 0\.3 is not allowed; mask_share leaves 0\.2"):
        MaskedConfig(mask_share=0.8, random_share=0.3)


def test_uniforms_depend_on_seed_purpose_and_row_alone() -> None:
    whole = uniforms(3, "mask", np.array([5, 9, 10**12]), 50)
    np.testing.assert_array_equal(uniforms(3, "mask", np.array([9]), 50)[0], whole[1])
    np.testing.assert_array_equal(uniforms(3, "mask", np.array([10**12]), 7)[0], whole[2, :7])
    for other in (uniforms(4, "mask", np.array([5]), 50), uniforms(3, "span", np.array([5]), 50), whole[1:2]):
        assert (other[0] != whole[0]).all()
    many = uniforms(0, "x", np.arange(2000), 50)
    assert 0 <= many.min() < many.max() < 1
    assert abs(many.mean() - 0.5) < 5 / np.sqrt(12 * many.size)
    assert abs(np.corrcoef(many[:-1].ravel(), many[1:].ravel())[0, 1]) < 5 / np.sqrt(many.size)
    assert uniforms(0, "x", np.array([0]), 1)[0, 0] == pytest.approx(many[0, 0])


def test_uniforms_are_these_numbers_for_ever() -> None:
    """Runs are resumed and repeated by them, so a change would change every mask."""
    found = uniforms(7, "mask train", np.array([0, 123456789]), 2)
    np.testing.assert_allclose(found, GOLDEN, rtol=0, atol=0)


GOLDEN = [[0.27270223599613996, 0.680525739038217], [0.4232925963261387, 0.12937092131013017]]
