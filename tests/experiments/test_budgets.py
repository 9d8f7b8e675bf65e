"""Arms of equal parameters, FLOPs or state: the solver against the counts themselves."""

import dataclasses
import sys

import pytest

from experiments import budgets
from experiments.budgets import BUDGETS, Lengths, Match, matched, nearest
from hybrid.config import ModelConfig
from hybrid.validation import ConfigError

LENGTHS = Lengths(32)
FIELDS = {"d_model": 32, "n_heads": 4, "vocab_size": 64, "positions": "none"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path))


@pytest.mark.parametrize("wanted", [1, 5, 77, 1000, 123_456])
def test_the_nearest_width_is_found_with_few_counts(wanted):
    asked = []

    def cost(units):
        asked.append(units)
        return 3 * units**2 + 10 * units + 40

    units, found = nearest(cost, wanted)
    assert found == cost(units)
    assert all(abs(cost(other) - wanted) >= abs(found - wanted) for other in (max(units - 1, 1), units + 1))
    assert len(asked) <= 24


@pytest.mark.parametrize(
    ("pattern", "budget", "by", "multiple", "width"),
    [
        ("A-", "flops", "d_model", 4, {"d_model": 44}),
        ("M", "state_bytes", "d_state", 1, {"mamba": {"d_state": 23}}),
        ("(H-)2", "state_bytes", "d_model", 4, {"d_model": 52}),
    ],
)
def test_the_width_that_has_the_budget_is_found(pattern, budget, by, multiple, width):
    fields = {**FIELDS, "pattern": pattern, "hyena": {"filter_length": 32}}
    target = ModelConfig(**{**fields, **width})
    wanted = round(1.005 * BUDGETS[budget](target, LENGTHS))
    assert matched(fields, Match(**{budget: wanted}, by=by, multiple=multiple), LENGTHS) == target


def test_what_was_solved_is_not_counted_again(monkeypatch):
    fields, match = {**FIELDS, "pattern": "MA"}, Match(state_bytes=20_000, by="d_state", multiple=1)
    first = matched(fields, match, LENGTHS)
    monkeypatch.setitem(budgets.BUDGETS, "state_bytes", None)
    assert matched(fields, match, LENGTHS) == first
    with pytest.raises(TypeError):
        matched(fields, dataclasses.replace(match, state_bytes=20_001), LENGTHS)


def test_a_budget_that_no_width_comes_near_is_refused_with_what_is_near():
    with pytest.raises(ConfigError, match=r"nearest is 12168 at d_model = 40"):
        matched({**FIELDS, "pattern": "(H-)2", "hyena": {"filter_length": 32}},
                Match(state_bytes=12_754, by="d_model", multiple=4), LENGTHS)  # fmt: skip


@pytest.mark.parametrize(
    ("match", "pattern", "field"),
    [
        ({"flops": 10}, "M-", "match.flops"),
        ({"parameters": 10}, "M-", "match.parameters"),
        ({"state_bytes": 10**6, "by": "d_state"}, "A-", "match.by"),
    ],
)
def test_what_cannot_be_reached_is_refused_by_name(match, pattern, field):
    with pytest.raises(ConfigError) as error:
        matched({**FIELDS, "pattern": pattern}, Match(**match), LENGTHS)
    assert error.value.field == field


@pytest.mark.parametrize(
    "match", [{}, {"parameters": 1, "flops": 1}, {"state_bytes": 1, "by": "d_ff"}, {"flops": 1, "by": "n_heads"}]
)
def test_one_budget_is_given_and_something_that_moves_it(match):
    with pytest.raises(ConfigError):
        Match(**match)


def test_parameters_are_matched_without_jax():
    import subprocess

    program = (
        "import sys; from experiments.budgets import *; from hybrid.config import ModelConfig\n"
        f"m = matched({ ({**FIELDS, 'pattern': 'M-'})!r}, Match(parameters=40_000), Lengths(32))\n"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
