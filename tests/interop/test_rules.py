"""Rules: every step and every way of joining, there and back; what a table finds wrong."""

from __future__ import annotations

import numpy as np
import pytest

from hybrid.interop.rules import (
    CONV,
    TRANSPOSED,
    Leaf,
    Table,
    constant,
    ignored,
    joined,
    linear,
    or_else,
    permuted,
    plus,
    reordered,
    reshaped,
    same,
    stacked,
    tied,
    times,
)
from hybrid.validation import ConfigError

STEPS = {
    "transposed": (TRANSPOSED, (3, 2)),
    "transposed under experts": (TRANSPOSED, (4, 3, 2)),
    "conv": (CONV, (4, 6)),
    "plus": (plus(1.0), (5,)),
    "times": (times(0.125), (5, 2)),
    "times a vector": (times([1.0, 2.0, 4.0]), (5, 3)),
    "permuted": (permuted(2, 0, 1), (2, 3, 4)),
    "reshaped": (reshaped((6, 2), (3, 4)), (3, 4)),
    "reordered": (reordered([2, 0, 1], axis=1), (2, 3)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_goes_back(name):
    step, shape = STEPS[name]
    ours = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    theirs = step.save(ours)
    assert theirs.shape == step.shape(shape)
    np.testing.assert_allclose(step.load(theirs), ours, rtol=1e-6, atol=1e-7)


def test_what_the_steps_mean():
    weight = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(TRANSPOSED.load(weight), weight.T)
    np.testing.assert_array_equal(CONV.load(weight[:, None]), weight.T)
    np.testing.assert_array_equal(plus(1.0).load(weight), weight + 1)
    np.testing.assert_array_equal(times(2.0).load(weight), 2 * weight)
    assert permuted(2, 0, 1).load(np.zeros((5, 6, 7))).shape == (7, 5, 6)
    np.testing.assert_array_equal(reordered([2, 0, 1], 1).load(weight), weight[:, [2, 0, 1]])


def load(table, tensors):
    """The leaves that a table makes of tensors."""
    table.check({name: array.shape for name, array in tensors.items()})
    found = {path: np.full(shape, np.nan, np.float32) for path, shape in table.shapes.items()}

    def put(path, expert, value):
        target = found[path] if expert is None else found[path][expert]
        assert target.shape == value.shape
        target[...] = value

    table.load(tensors.__getitem__, tensors.__contains__, put)
    return found


def random(shapes):
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


SHAPES = {"in_z": (5, 4), "in_x": (5, 6), "gate": (3, 5, 7), "up": (3, 5, 7), "down": (3, 7, 5), "scale": (5,)}
FACTORS = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
TABLE = Table(
    (
        joined("in_proj.weight", ["in_z", Leaf("in_x", (TRANSPOSED, times(FACTORS)))], TRANSPOSED),
        stacked([f"experts.{e}.gate_up.weight" for e in range(3)], ["gate", "up"], TRANSPOSED),
        stacked([f"experts.{e}.down.weight" for e in range(3)], "down", TRANSPOSED),
        same("norm.weight", "scale", plus(1.0)),
        tied("norm_again.weight", "norm.weight"),
        ignored("*.inv_freq", "made from the config"),
    ),
    SHAPES,
)


def test_one_table_serves_both_directions():
    ours = random(SHAPES)
    theirs = {name: make() for name, shape, make in TABLE.save(ours.__getitem__)}
    assert {name: array.shape for name, array in theirs.items()} == TABLE.expected()
    assert theirs["in_proj.weight"].shape == (10, 5)
    np.testing.assert_array_equal(theirs["in_proj.weight"][:4], ours["in_z"].T)
    np.testing.assert_array_equal(theirs["in_proj.weight"][4:], (ours["in_x"] / FACTORS).T)
    np.testing.assert_array_equal(theirs["experts.1.gate_up.weight"][7:], ours["up"][1].T)
    back = load(TABLE, {**theirs, "a.inv_freq": np.zeros(3), "norm_again.weight": theirs["norm.weight"]})
    for path, array in ours.items():
        np.testing.assert_allclose(back[path], array, rtol=1e-6, atol=1e-6)


def test_all_that_is_wrong_is_said_in_one_line():
    theirs = random(TABLE.expected())
    del theirs["experts.2.down.weight"]
    theirs["norm.weight"] = np.zeros(6)
    theirs["rest.weight"] = np.zeros(2)
    with pytest.raises(ConfigError) as error:
        TABLE.check({name: array.shape for name, array in theirs.items()})
    assert str(error.value) == (
        "tensors: missing: experts.2.down.weight; left over: rest.weight; "
        "wrong shape: norm.weight has shape (6,) where the config says (5,)"
    )


def test_long_lists_are_cut():
    with pytest.raises(ConfigError, match=r"missing: in_proj.weight, .*experts.2.gate_up.weight and 4 more$"):
        TABLE.check({})


def test_a_tied_tensor_must_be_equal():
    theirs = random(TABLE.expected())
    with pytest.raises(ConfigError, match=r"norm_again.weight differs from norm.weight"):
        load(TABLE, {**theirs, "norm_again.weight": theirs["norm.weight"] + 1})
    with pytest.raises(ConfigError, match=r"wrong shape: norm_again.weight"):
        load(TABLE, {**theirs, "norm_again.weight": np.zeros(3)})


def test_a_stand_in_is_read_where_theirs_is_missing():
    table = Table(
        (same("words", "embedding"), *or_else([same("head", "kernel", TRANSPOSED)], "words")),
        {"embedding": (3, 2), "kernel": (2, 3)},
    )
    theirs = random(table.expected())
    np.testing.assert_array_equal(load(table, theirs)["kernel"], theirs["head"].T)
    np.testing.assert_array_equal(load(table, {"words": theirs["words"]})["kernel"], theirs["words"].T)
    with pytest.raises(ConfigError, match="missing: words, head"):
        table.check({})


def test_a_constant_is_made_and_must_hold():
    table = Table((constant("scale", 1.0),), {"scale": (3,)})
    np.testing.assert_array_equal(load(table, {})["scale"], np.ones(3))
    with pytest.raises(ConfigError, match="scale: must be 1 everywhere"):
        list(table.save({"scale": np.array([1.0, 1.0, 2.0])}.__getitem__))


def test_rows_that_lie_head_by_head_are_brought_together_before_the_cut():
    """Two heads, each with one row of q and two of k."""
    rule = joined("qk", ["q", "k"], TRANSPOSED, whole=(reordered([0, 3, 1, 2, 4, 5], 0),))
    table = Table((rule,), {"q": (7, 2), "k": (7, 4)})
    theirs = random(table.expected())
    assert theirs["qk"].shape == (6, 7)
    ours = load(table, theirs)
    np.testing.assert_array_equal(ours["q"], theirs["qk"][[0, 3]].T)
    np.testing.assert_array_equal(ours["k"], theirs["qk"][[1, 2, 4, 5]].T)
    (back,) = [make() for _, _, make in table.save(ours.__getitem__)]
    np.testing.assert_array_equal(back, theirs["qk"])


def test_faults_of_a_table_are_found_at_once():
    with pytest.raises(ValueError, match="leaves without a rule: b"):
        Table((same("a", "a"),), {"a": (1,), "b": (1,)})
    with pytest.raises(ValueError, match="leaves that are not there: c"):
        Table((same("c", "c"),), {})
    with pytest.raises(ValueError, match="two rules: a"):
        Table((same("x", "a"), same("y", "a")), {"a": (1,)})
    with pytest.raises(ValueError, match="x has two rules"):
        Table((same("x", "a"), same("x", "b")), {"a": (1,), "b": (1,)}).expected()
    with pytest.raises(ValueError, match="cannot stack 2"):
        Table((stacked(["x", "y"], "a"),), {"a": (3, 1)}).expected()


def test_linear_has_a_bias_where_asked():
    assert [rule.theirs for rule in linear("q_proj", "query")] == [("q_proj.weight",)]
    assert [rule.ours[0].path for rule in linear("q_proj", "query", True)] == ["query", "query_bias"]
