"""Intervals, verdicts and learning-rate responses against published answers and against simulated truth."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.statistics import (
    block_p_values,
    compare,
    holm,
    interval,
    more_seeds,
    nested_interval,
    paired_difference,
)

# Student's sleep data (1908; `sleep` in R). R's t.test(paired = TRUE): t = -4.0621, df = 9, p = 0.002833,
# 95 percent confidence interval -2.4598858 to -0.7001142, mean -1.58.
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)


def by_seed(scores):
    return dict(enumerate(scores))


# --- intervals --------------------------------------------------------------------------------------------------------


def test_below_ten_seeds_the_interval_is_students():
    found = interval([1, 2, 3, 4, 5])
    half = 2.776445 * math.sqrt(2.5 / 5)  # the table's t for 0.975 and 4 degrees of freedom
    assert (found.mean, found.n, found.estimator) == (3, 5, "mean")
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert interval([1.0, 2.0], level=0.9).high == pytest.approx(1.5 + 6.313752 * 0.5, rel=1e-6)


def test_one_seed_has_an_infinite_interval():
    assert dataclasses.astuple(interval([2.5])) == (2.5, -math.inf, math.inf, 1, "mean")


def test_from_ten_seeds_one_bad_seed_does_not_move_the_centre():
    scores = [*np.linspace(1, 2, 11), 1000.0]
    found = interval(scores)
    assert found.estimator == "interquartile mean"
    assert found.mean == pytest.approx(np.mean(sorted(scores)[3:9]))  # a quarter cut at either end
    assert 1 < found.low < found.mean < found.high < 3
    assert interval(scores) == found


def test_equal_scores_have_an_interval_of_no_width():
    for n in (3, 12):
        assert dataclasses.astuple(interval([0.5] * n))[:3] == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0, 2.0]]])
def test_scores_that_are_not_finite_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        interval(values)


@pytest.mark.parametrize(("n", "runs", "least", "most"), [(3, 1000, 0.92, 0.98), (12, 200, 0.84, 0.98)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(n, runs, least, most):
    draws = np.random.default_rng(0).normal(2.0, 0.1, size=(runs, n))
    held = np.mean([found.low <= 2.0 <= found.high for found in map(interval, draws)])
    assert least <= held <= most  # the percentile bootstrap is known to be short of its level at a dozen


# --- paired differences -----------------------------------------------------------------------------------------------


def test_a_paired_difference_is_the_one_of_the_textbook():
    found = paired_difference(by_seed(SLEEP[0]), by_seed(SLEEP[1]))
    assert found.n == 10
    assert found.difference == pytest.approx(-1.58)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)
    assert found.p_value == found.p_adjusted == pytest.approx(0.002833, abs=5e-7)


def test_the_verdict_follows_the_sign_and_what_is_better():
    small, large = by_seed(SLEEP[0]), by_seed(SLEEP[1])
    assert paired_difference(small, large).verdict == "better"
    assert paired_difference(large, small).verdict == "worse"
    assert paired_difference(small, large, smaller_is_better=False).verdict == "worse"
    assert paired_difference(large, small, smaller_is_better=False).verdict == "better"
    assert paired_difference(small, large, level=0.999).verdict == "undecided"


def test_only_shared_seeds_are_compared():
    found = paired_difference({0: 1.0, 1: 2.0, 2: 3.5, 7: 99.0}, {2: 3.0, 1: 2.2, 0: 1.1, 8: -99.0})
    assert found.n == 3
    assert found.difference == pytest.approx((-0.1 - 0.2 + 0.5) / 3)


@pytest.mark.parametrize("ours", [{}, {5: 1.0}, {0: 1.0}])
def test_fewer_than_two_pairs_decide_nothing(ours):
    found = paired_difference(ours, {0: 2.0, 1: 2.0})
    assert (found.low, found.high, found.p_value, found.verdict) == (-math.inf, math.inf, 1.0, "undecided")


def test_the_same_scores_are_undecided_and_the_same_difference_on_every_seed_is_not():
    scores = {0: 1.25, 1: 1.5, 2: 1.75}
    assert paired_difference(scores, scores).verdict == "undecided"
    lower = {seed: score - 0.25 for seed, score in scores.items()}
    assert paired_difference(lower, scores).verdict == "better"


def test_an_arm_that_diverged_more_often_is_not_called_better():
    good, bad = by_seed([1.0, 1.1, 0.9, 1.0]), by_seed([2.0, 2.2, 2.1, 1.9])
    assert paired_difference(good, bad).verdict == "better"
    torn = {**good, 3: math.nan}
    found = paired_difference(torn, bad)
    assert (found.n, found.diverged, found.verdict) == (3, (1, 0), "undecided")
    assert paired_difference(bad, torn).verdict == "undecided"
    assert paired_difference({**bad, 3: math.inf}, good).verdict == "worse"
    assert paired_difference(good, {**bad, 3: math.inf}).verdict == "better"


def test_two_samples_of_one_distribution_are_told_apart_at_the_nominal_rate():
    draws = np.random.default_rng(1).normal(size=(1500, 2, 4))
    wrong = np.mean([paired_difference(by_seed(a), by_seed(b)).verdict != "undecided" for a, b in draws])
    assert 0.03 < wrong < 0.07  # 0.05, with 3.5 standard errors of 1500 draws


# --- tables -----------------------------------------------------------------------------------------------------------


def test_holm_is_the_published_adjustment():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_plain_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p)
    by_p = [adjusted[i] for i in sorted(range(len(p_values)), key=lambda i: p_values[i])]
    assert by_p == sorted(by_p)


def test_a_difference_that_holds_alone_can_fall_in_a_larger_table():
    base = by_seed(SLEEP[1])
    noise = np.random.default_rng(2).normal(size=(30, 10))
    scores = {"base": base, "ours": by_seed(SLEEP[0])}
    alone = compare(scores, "base")
    assert list(alone) == ["ours"]
    assert alone["ours"].verdict == "better"
    crowd = {f"arm {i}": {seed: base[seed] + row[seed] for seed in base} for i, row in enumerate(noise)}
    crowded = compare({**scores, **crowd}, "base")
    assert crowded["ours"].p_value == alone["ours"].p_value
    assert crowded["ours"].p_adjusted == pytest.approx(31 * alone["ours"].p_value)
    assert crowded["ours"].verdict == "undecided"


def test_arms_without_pairs_do_not_weigh_on_the_others():
    scores = {"base": by_seed(SLEEP[1]), "ours": by_seed(SLEEP[0]), **{f"new {i}": {0: 1.0} for i in range(40)}}
    found = compare(scores, "base")
    assert found["ours"].verdict == "better"
    assert found["new 0"].verdict == "undecided"


def test_a_table_without_differences_errs_at_most_at_the_nominal_rate():
    tables = np.random.default_rng(3).normal(size=(300, 5, 4))
    wrong = 0
    for table in tables:
        found = compare({f"arm {i}": by_seed(scores) for i, scores in enumerate(table)}, "arm 0")
        wrong += any(comparison.verdict != "undecided" for comparison in found.values())
    assert wrong / 300 < 0.09  # 0.05 and 3 standard errors; without Holm about 0.15


# --- more seeds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("effect", "seeds"), [(1.0, 10), (0.8, 15), (0.5, 34), (0.2, 199)])
def test_seeds_needed_are_those_of_the_published_power_tables(effect, seeds):
    found = paired_difference(by_seed([0.0, 1.0, 2.0, 3.5]), by_seed([0.5, 0.8, 2.5, 3.0]))
    found = dataclasses.replace(found, difference=-effect * found.sd)
    assert more_seeds(found) == seeds - 4
    assert more_seeds(dataclasses.replace(found, n=300)) == 0
    assert more_seeds(found, difference=1.0 * found.sd) == 6


def test_more_seeds_is_honest_about_what_cannot_be_known():
    one = paired_difference({0: 1.0}, {0: 2.0})
    assert more_seeds(one) is None
    same = paired_difference({0: 1.0, 1: 2.0}, {0: 2.0, 1: 1.0})
    assert more_seeds(same) is None  # no difference was seen
    tiny = dataclasses.replace(same, difference=1e-6)
    assert more_seeds(tiny) is None  # more than a thousand
    assert more_seeds(paired_difference({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5})) == 0


def test_a_study_with_the_advised_seeds_decides_as_often_as_asked():
    found = dataclasses.replace(paired_difference({0: 0.0, 1: 1.0}, {0: 1.0, 1: 0.0}), difference=1.0, sd=1.0)
    n = found.n + more_seeds(found, power=0.8)
    draws = np.random.default_rng(4).normal(1.0, 1.0, size=(600, n))
    decided = np.mean([paired_difference(by_seed(row), by_seed(0 * row)).verdict == "worse" for row in draws])
    assert 0.75 < decided < 0.87


def test_scipy_is_imported_when_it_is_needed_only():
    program = "import sys, experiments.statistics; sys.exit('scipy' in sys.modules or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- scores that jump -------------------------------------------------------------------------------------------------


def test_seeds_and_examples_both_widen_a_nested_interval():
    rng = np.random.default_rng(5)
    seeds = rng.normal(0.5, 0.1, size=6)
    few, many = ([rng.normal(seed, 1.0, size=n) for seed in seeds] for n in (10, 4000))
    wide, narrow = nested_interval(few), nested_interval(many)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    spread = np.std([row.mean() for row in many])
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * spread / math.sqrt(6), rel=0.15)
    assert nested_interval(few) == wide and wide.estimator == "mean"
    ten = nested_interval([[1.0, 2.0]] * 19 + [[99.0]])
    assert ten.estimator == "interquartile mean" and ten.high < 2
    with pytest.raises(ValueError, match="one a seed"):
        nested_interval([[1.0], []])


def test_seeds_that_agree_by_chance_decide_nothing_where_other_arms_jump():
    """The baseline failed thrice by chance; two of five equal arms learnt the task thrice."""
    arms = {"base": (0.2, 0.21, 0.19), "a": (0.99, 1.0, 0.98), "b": (1.0, 0.98, 0.99)}
    arms |= {"c": (0.2, 1.0, 0.2), "d": (1.0, 0.2, 1.0), "e": (0.99, 0.98, 0.2)}
    scores = {arm: by_seed(values) for arm, values in arms.items()}
    plain = compare(scores, "base", smaller_is_better=False)
    assert plain["a"].verdict == "better" and plain["b"].verdict == "better"
    jumps = compare(scores, "base", smaller_is_better=False, jumps=True)
    assert {comparison.verdict for comparison in jumps.values()} == {"undecided"}


def test_a_jump_that_every_seed_makes_is_found_where_arms_agree_with_themselves():
    scores = {"base": by_seed([0.2, 0.21, 0.19]), "a": by_seed([0.99, 1.0, 0.98]), "b": by_seed([0.2, 0.2, 0.22])}
    found = compare(scores, "base", smaller_is_better=False, jumps=True)
    assert (found["a"].verdict, found["b"].verdict) == ("better", "undecided")
    two = {arm: {0: values[0], 1: values[1]} for arm, values in scores.items()}
    assert compare(two, "base", smaller_is_better=False, jumps=True)["a"].verdict == "undecided"


def test_the_contrast_of_blocks_is_the_paired_test_of_two_arms_and_the_anova_of_more():
    scores = {"base": by_seed(SLEEP[1]), "ours": by_seed(SLEEP[0])}
    pair = paired_difference(scores["ours"], scores["base"])
    assert block_p_values(scores, {"ours": pair})["ours"] == pytest.approx(pair.p_value)
    # By hand: residuals of [[1, 2, 3], [2, 4, 3], [6, 5, 7]] have squares 30/9 in all, over 4 degrees of freedom.
    table = {"a": by_seed([1.0, 2, 3]), "b": by_seed([2.0, 4, 3]), "c": by_seed([6.0, 5, 7])}
    pair = paired_difference(table["c"], table["a"])
    t = 4 / math.sqrt(2 * (30 / 9 / 4) / 3)
    x = 4 / (4 + t * t)  # two-sided p of Student's t with 4 degrees of freedom: 1 - s (3 - s^2) / 2, s = sqrt(1 - x)
    s = math.sqrt(1 - x)
    assert block_p_values(table, {"c": pair})["c"] == pytest.approx(1 - s * (3 - s * s) / 2)
