"""The best learning rate of an arm and the window of good ones."""

import dataclasses
import math

import pytest

from experiments.responses import response, tolerance
from experiments.scores import SCORES

RATES = [1e-4, 1e-3, 1e-2, 1e-1]


def test_the_best_rate_and_the_window_around_it():
    found = response([1e-2, 1e-4, 1e-3, 1e-1], [2.4, 3.0, 2.0, 4.0], tolerance=0.2)  # in any order
    assert (found.best_rate, found.best_score, found.at_edge) == (1e-3, 2.0, None)
    assert math.log10(found.low) == pytest.approx(-3.2)  # the limit 2.2 is met a fifth of the way to 3.0
    assert math.log10(found.high) == pytest.approx(-2.5)  # and half of the way to 2.4
    assert found.width == pytest.approx(0.7)
    assert found.bounded


@pytest.mark.parametrize(
    ("scores", "edge"),
    [
        ([1.0, 2, 3, 4], "low"),
        ([4, 3, 2, 1], "high"),
        ([4, 3, 2, math.nan], None),  # divergence bounds the grid
        ([math.inf, 2, 3, 4], None),
        ([4, 3, 1, 2], None),
    ],
)
def test_a_best_rate_at_the_edge_of_the_grid_is_told(scores, edge):
    assert response(RATES, scores, tolerance=0.1).at_edge == edge


def test_a_window_ends_at_a_diverged_run_and_may_be_open_at_the_edge():
    found = response(RATES, [2.05, 2.0, 2.1, math.nan], tolerance=0.2)
    assert (found.low, found.high) == pytest.approx((1e-4, 1e-2))
    assert found.width == pytest.approx(2)
    assert not found.bounded
    assert response(RATES, [3.0, 2.0, 2.1, math.nan], tolerance=0.2).bounded


def test_a_second_valley_does_not_widen_the_window():
    found = response([1, 10, 100, 1000, 10000], [5, 2.0, 5, 2.05, 5], tolerance=0.3)
    assert found.best_rate == 10
    assert found.width == pytest.approx(0.2)


def test_accuracies_are_larger_when_better():
    losses, accuracies = [3, 2, 2.5, 4], [-3, -2, -2.5, -4]
    found = response(RATES, accuracies, tolerance=0.2, smaller_is_better=False)
    assert found == dataclasses.replace(response(RATES, losses, tolerance=0.2), best_score=-2)


def test_one_rate_is_both_edges_and_no_finite_score_is_no_answer():
    assert response([1e-3], [2.0], tolerance=0.1).at_edge == "both"
    nothing = response(RATES, [math.nan] * 4, tolerance=0.1)
    assert math.isnan(nothing.best_rate)
    assert (nothing.at_edge, nothing.width, nothing.bounded) == (None, 0.0, False)


@pytest.mark.parametrize("rates", [[1e-3], [1e-3, 1e-3], [0.0, 1e-3], [math.nan, 1e-3]])
def test_rates_that_make_no_curve_are_refused(rates):
    with pytest.raises(ValueError, match="rates must be distinct"):
        response(rates, [1.0, 2.0], tolerance=0.1)


def test_a_good_rate_keeps_nine_tenths_of_an_accuracy_and_a_hundredth_of_a_loss():
    assert tolerance(0.5, SCORES["accuracy"]) == pytest.approx(0.05)
    assert tolerance(2.0, SCORES["loss"]) == pytest.approx(0.02)
    found = response(RATES, [0.1, 1.0, 0.8, 0.1], tolerance(1.0, SCORES["accuracy"]), smaller_is_better=False)
    assert (math.log10(found.low), math.log10(found.high)) == pytest.approx((-3 - 1 / 9, -2.5))
    assert found.width == pytest.approx(0.5 + 1 / 9)
