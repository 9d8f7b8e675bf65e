"""The suite `decoding`: where curves cross, contexts that are set, and rows that become a figure."""

from __future__ import annotations

import csv

import jax
import numpy as np
import pytest

from benchmarks.decoding import CONTEXTS, JAMBA, PATTERNS, Decoder, config, crossing, label, matched, size
from benchmarks.decoding_figure import draw, points
from hybrid import generate, init
from hybrid.accounting import parameters


def test_curves_cross_where_lines_between_logarithms_do():
    contexts = [100, 1000, 10000]
    assert crossing(contexts, [2.0, 2.0, 2.0], [1.0, 4.0, 16.0]) == pytest.approx(100 * 10**0.5)
    assert crossing(contexts, [2.0, 2.0, 2.0], [3.0, 4.0, 16.0]) is None  # below from the start
    assert crossing(contexts, [2.0, 2.0, 2.0], [1.0, 1.0, 1.5]) is None  # never


def test_models_have_the_same_number_of_parameters_within_a_percent():
    totals = [parameters(matched(pattern)).total for pattern in PATTERNS.values()]
    assert max(totals) <= 1.01 * min(totals)


def test_a_context_that_is_set_costs_what_one_that_is_read_costs(monkeypatch):
    """The loop goes on at the context that was set, and reads the slots up to it."""
    model = config("A-S-M-", d_ff=16)
    decoder = Decoder(model, 2, 64)
    decoder.at(40, 5)()
    np.testing.assert_array_equal(decoder.state.length, [45, 45])
    np.testing.assert_array_equal(decoder.state.layers[0].filled, [45, 45])
    assert int(decoder.state.room) == 64 - 45
    decoder.at(10, 3)()  # set anew
    np.testing.assert_array_equal(decoder.state.length, [13, 13])


def test_rows_become_points_and_points_a_figure(tmp_path):
    rows = [
        {
            "work": f"decode, {name}, batch 1, context {label(context)}, state {size(context * 16384)}",
            "unit": "tokens/s",
            "figure": 1e6 / context,
        }
        for name in PATTERNS
        for context in CONTEXTS
    ]
    found = points([*rows, {"work": "decode, mamba, batch 1, slowest over fastest", "unit": "x", "figure": 1.0}])
    assert len(found) == len(PATTERNS) * len(CONTEXTS)
    assert found[-1][1:4] == (131072, 1, pytest.approx(1e6 / 131072))
    assert found[-1].state_mib == 2048
    draw(found, "a footer", tmp_path)
    with (tmp_path / "decoding.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found)
    assert (tmp_path / "decoding.png").stat().st_size > 10_000


def test_the_same_weights_in_transformers_make_the_same_tokens(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    import jax.numpy as jnp

    from benchmarks import peers_decoding

    model = config("M-A-", d_ff=16, positions="none", mamba=JAMBA)
    params = init(model, jax.random.key(0))
    theirs = peers_decoding.load(model, params, str(tmp_path / "model"), "jamba")
    prompt = np.random.default_rng(0).integers(0, 256, (2, 5))
    made = peers_decoding.generate(theirs, prompt, 6)
    np.testing.assert_array_equal(made, generate(model, params, jnp.asarray(prompt), 6))
