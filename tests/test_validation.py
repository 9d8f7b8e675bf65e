"""Dataclasses that check themselves, and errors that name field, value, what is allowed and the nearest name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from hybrid.validation import (
    Checked,
    ConfigError,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    build,
    nearest,
    plain,
    unknown,
    within,
)


@dataclass(frozen=True)
class Inner(Checked):
    size: PositiveInt
    rate: PositiveFloat = 0.5


@dataclass(frozen=True)
class Outer(Checked):
    name: str
    inner: Inner
    mode: Literal["fast", "slow", 3, True] = "fast"
    chance: Probability = 0.0
    maybe: PositiveInt | None = None
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[PositiveInt, ...] = ()
    either: int | str = 0
    flag: bool = False
    anything: Any = None
    share: Annotated[float, within(-1, 1)] = 0.0

    def check(self) -> None:
        if self.name == self.mode:
            raise ConfigError("name", "must not be the mode")


GOOD = {"name": "x", "inner": {"size": 2}}


def test_plain_values_become_what_is_declared_and_back():
    made = build(Outer, {**GOOD, "pair": [3, 4], "many": [5], "chance": 0, "inner": {"size": 2.0}, "maybe": 7})
    assert made == Outer("x", Inner(2), pair=(3, 4.0), many=(5,), maybe=7)
    assert type(made.inner.size) is int
    assert type(made.pair[1]) is float
    assert build(Outer, plain(made)) == made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nam": "y"}, "o.nam: unknown field; did you mean 'name'? (allowed: name, inner, mode, "),
        ({"name": 3}, "o.name: 3 is not allowed; must be a string"),
        ({"inner": 3}, "o.inner: 3 is not allowed; must be a group of fields"),
        ({"inner": {}}, "o.inner.size: must be given"),
        ({"inner": {"size": 0}}, "o.inner.size: 0 is not allowed; must be an integer at least 1"),
        ({"inner": {"size": 2, "rat": 1}}, "o.inner.rat: unknown field; did you mean 'rate'?"),
        ({"inner": {"size": True}}, "o.inner.size: True is not allowed; must be an integer at least 1"),
        ({"inner": {"size": "2"}}, "o.inner.size: '2' is not allowed"),
        ({"inner": {"size": 2, "rate": -0.5}}, "must be a finite number above 0"),
        ({"inner": {"size": 2, "rate": math.nan}}, "o.inner.rate: nan is not allowed; must be a finite number"),
        ({"inner": {"size": 2, "rate": True}}, "o.inner.rate: True is not allowed"),
        ({"mode": "fsat"}, "o.mode: 'fsat' is not allowed; did you mean 'fast'? (allowed: fast, slow, 3, True)"),
        ({"mode": 1}, "o.mode: 1 is not allowed"),
        ({"mode": 3.0}, "o.mode: 3.0 is not allowed"),
        ({"chance": 1}, "o.chance: 1.0 is not allowed; must be a finite number at least 0 and below 1"),
        ({"maybe": 0}, "o.maybe: 0 is not allowed; must be an integer at least 1"),
        ({"pair": [1]}, "o.pair: [1] is not allowed; must have 2 entries"),
        ({"pair": "ab"}, "o.pair: 'ab' is not allowed; must be a tuple, such as (1, 2)"),
        ({"pair": (1, "b")}, "o.pair[1]: 'b' is not allowed"),
        ({"many": (1, -1)}, "o.many[1]: -1 is not allowed"),
        ({"either": 1.5}, "o.either: 1.5 is not allowed"),
        ({"flag": 1}, "o.flag: 1 is not allowed; must be True or False"),
        ({"share": -1.5}, "at least -1 and below 1"),
        ({"name": "fast"}, "o.name: must not be the mode"),
    ],
)
def test_errors_say_all_in_one_line(given, message):
    with pytest.raises(ConfigError) as caught:
        build(Outer, {**GOOD, **given}, "o")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_what_has_no_default_must_be_given():
    with pytest.raises(ConfigError, match="name: must be given"):
        build(Outer, {"inner": {"size": 1}})


def test_instances_are_taken_as_they_are():
    inner = Inner(3)
    assert build(Outer, {**GOOD, "inner": inner}).inner is inner


def test_errors_seen_from_a_level_up():
    assert str(ConfigError("d_state", "no").within("mamba").within("model")) == "model.mamba.d_state: no"
    assert str(ConfigError("", "no")) == "no"
    assert ConfigError("", "no").within("mamba").field == "mamba"


def test_nearest_names():
    assert nearest("D_MODEL", ["d_model", "d_state"]) == "; did you mean 'd_model'?"
    assert nearest("zzz", ["d_model"]) == ""
    assert str(unknown("f", "x", ["a", "b"])) == "f: unknown field (allowed: a, b)"


def test_other_errors_of_a_constructor_are_not_swallowed():
    @dataclass(frozen=True)
    class Breaks(Checked):
        size: NaturalInt = 0

        def check(self) -> None:
            raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        build(Breaks, {"size": 1})
