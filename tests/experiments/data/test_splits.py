from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data.splits import OVERSHOOT, SHARE, SPLITS, split_groups
from hybrid.validation import ConfigError

SIZES = st.dictionaries(st.text(max_size=5), st.integers(1, 10**6), min_size=3, max_size=60)


@given(SIZES, st.integers(0, 10))
def test_every_group_is_in_one_split_and_no_split_is_empty(sizes: dict[str, int], seed: int) -> None:
    split = split_groups(sizes, seed)
    assert set(split) == set(sizes)
    assert set(split.values()) == set(SPLITS)


@given(SIZES, st.integers(0, 10), st.randoms())
def test_the_order_of_the_groups_does_not_matter(sizes: dict[str, int], seed: int, chance) -> None:
    shuffled = list(sizes.items())
    chance.shuffle(shuffled)
    assert split_groups(dict(shuffled), seed) == split_groups(sizes, seed)


@given(st.lists(st.integers(50, 100), min_size=60, max_size=200), st.integers(0, 10))
def test_held_out_splits_have_their_share_when_documents_are_small(sizes: list[int], seed: int) -> None:
    split = split_groups({str(number): size for number, size in enumerate(sizes)}, seed)
    for name in ("validation", "test"):
        held_out = sum(size for number, size in enumerate(sizes) if split[str(number)] == name)
        assert SHARE <= held_out / sum(sizes) <= SHARE * OVERSHOOT


def test_a_huge_work_is_never_held_out_while_smaller_ones_are_there() -> None:
    for seed in range(20):
        split = split_groups({"huge": 1000, **{f"small {i}": 10 for i in range(30)}}, seed)
        assert split["huge"] == "train"


def test_a_few_large_works_give_the_smallest_away() -> None:
    split = split_groups({"a": 400, "b": 100, "c": 300, "d": 200}, 0)
    assert split == {"a": "train", "b": "validation", "c": "train", "d": "test"}


def test_another_seed_holds_out_other_groups() -> None:
    sizes = {str(number): 10 for number in range(100)}
    held_out = [{name for name, split in split_groups(sizes, seed).items() if split == "test"} for seed in (0, 1)]
    assert held_out[0] != held_out[1]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_groups_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=rf"data.source: has {count} documents .* at least 3"):
        split_groups({str(number): 10 for number in range(count)}, 0)
