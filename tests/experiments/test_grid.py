"""The algebra of sweeps."""

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.grid import axis, chain, choice, integers, log_uniform, point, prefix, product, sample, uniform, zipped
from hybrid.validation import ConfigError

VALUES = st.lists(st.integers(), min_size=1, max_size=5)


def test_an_axis_is_one_trial_a_value():
    assert axis("model.d_model", (64, 128)) == [{"model.d_model": 64}, {"model.d_model": 128}]


def test_the_last_factor_of_a_product_varies_fastest():
    assert product(axis("a", [1, 2]), axis("b", ["x", "y"])) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


@given(VALUES, VALUES, VALUES)
def test_products_are_associative_and_distribute_over_chains(xs, ys, zs):
    a, b, c = axis("a", xs), axis("b", ys), axis("c", zs)
    assert product(product(a, b), c) == product(a, product(b, c)) == product(a, b, c)
    b2 = axis("b", zs)
    assert product(chain(b, b2), a) == chain(product(b, a), product(b2, a))
    assert len(product(a, b, c)) == len(xs) * len(ys) * len(zs)


@given(VALUES)
def test_the_empty_point_is_the_unit_of_products(xs):
    assert product(point(), axis("a", xs)) == product(axis("a", xs), point()) == axis("a", xs)
    assert product() == point() == [{}]
    assert chain(axis("a", xs), []) == axis("a", xs)


def test_points_take_dotted_fields_and_keywords():
    assert point({"model.d_model": 64}, seed=1) == [{"model.d_model": 64, "seed": 1}]


def test_zipped_sweeps_walk_together():
    assert zipped(axis("a", [1, 2]), axis("b", [3, 4])) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]


def test_prefix_puts_every_field_in_a_group():
    rates = product(axis("learning_rate", [1e-3]), axis("schedule", ["cosine", "wsd"]))
    assert prefix("optimizer", rates)[1] == {"optimizer.learning_rate": 1e-3, "optimizer.schedule": "wsd"}


def test_results_share_nothing_with_their_parts():
    part = axis("a", [1])
    product(part, axis("b", [2]))[0]["a"] = 5
    assert part == [{"a": 1}]


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_are_the_same_for_the_same_seed_and_in_another_process():
    program = (
        "from experiments.grid import *; print(sample({'a.rate': log_uniform(1e-4, 1), 'b': choice('xyz')}, 5, seed=3))"
    )
    elsewhere = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    here = sample({"a.rate": log_uniform(1e-4, 1), "b": choice("xyz")}, 5, seed=3)
    assert str(here) == elsewhere.strip()
    assert here != sample({"a.rate": log_uniform(1e-4, 1), "b": choice("xyz")}, 5, seed=4)


def test_more_fields_and_more_samples_leave_the_drawn_values_alone():
    few = sample({"a": uniform(0, 1)}, 3, seed=0)
    many = sample({"b": uniform(0, 1), "a": uniform(0, 1)}, 6, seed=0)
    assert [entry["a"] for entry in many[:3]] == [entry["a"] for entry in few]
    assert many[0]["a"] != many[0]["b"]


def test_log_uniform_is_even_over_decades():
    values = [entry["a"] for entry in sample({"a": log_uniform(1e-4, 1e-1)}, 3000, seed=0)]
    assert 1e-4 <= min(values) < 1.1e-4
    assert 0.9e-1 < max(values) <= 1e-1
    decades = [sum(math.floor(math.log10(value)) == k for value in values) for k in (-4, -3, -2)]
    assert all(abs(count - 1000) < 4 * math.sqrt(3000 * 2 / 9) for count in decades)  # 4 standard deviations


def test_integers_and_uniform_stay_in_their_bounds():
    values = {entry["a"] for entry in sample({"a": integers(64, 256, step=64)}, 200, seed=0)}
    assert values == {64, 128, 192, 256}
    assert all(2 <= entry["a"] <= 3 for entry in sample({"a": uniform(2, 3)}, 100, seed=0))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "field", "words"),
    [
        (lambda: product(axis("a", [1]), axis("a", [2])), "a", "set by two"),
        (lambda: product(axis("m.d", [1]), axis("b", [2]), point({"m.d": 1})), "m.d", "set by two"),
        (lambda: product(axis("m", [{}]), axis("m.d", [1])), "m.d", "set beside 'm'"),
        (lambda: product(axis("m.d", [1]), axis("m", [{}])), "m", "set beside 'm.d'"),
        (lambda: zipped(axis("a", [1]), axis("a", [2])), "a", "set by two"),
        (lambda: zipped(axis("a", [1, 2]), axis("b", [1])), "sweep", "2 and 1 entries"),
        (lambda: point({"a": 1}, a=2), "a", "set twice"),
        (lambda: point({"m": {}, "m.d": 2}), "m.d", "set beside"),
        (lambda: axis("a", []), "a", "at least one value"),
        (lambda: axis("a", "even"), "a", "a list of values"),
        (lambda: axis("a", 3), "a", "a list of values"),
        (lambda: axis("a b", [1]), "sweep", "'a b' is not a field"),
        (lambda: axis("a..b", [1]), "sweep", "is not a field"),
        (lambda: prefix("", axis("a", [1])), "sweep", "'' is not a field"),
        (lambda: product({"a": 1}), "sweep", "is not a sweep"),
        (lambda: chain(["a"]), "sweep", "is not a sweep"),
        (lambda: sample({"a": uniform(0, 1)}, 0, seed=0), "sweep", "at least 1"),
        (lambda: sample({"a": 3}, 2, seed=0), "a", "is not a distribution"),
        (lambda: log_uniform(0, 1), "sweep", "0 < low <= high"),
        (lambda: log_uniform(1, 0.1), "sweep", "low <= high"),
        (lambda: uniform(0, float("nan")), "sweep", "low <= high"),
        (lambda: integers(0, 4, step=0), "sweep", "step above 0"),
        (lambda: integers(0, 4.5), "sweep", "must be integers"),
        (lambda: uniform("0", 1), "sweep", "low <= high"),
        (lambda: product(*[axis(name, range(100)) for name in "abcdefgh"]), "sweep", "at most 100000"),
        (lambda: choice([]), "sweep", "at least one value"),
    ],
)
def test_what_makes_no_sweep_is_refused(make, field, words):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == field
    assert words in str(caught.value)


def test_the_algebra_loads_no_heavy_library():
    program = "import sys, experiments.grid; sys.exit(bool({'jax', 'numpy', 'ml_collections'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
