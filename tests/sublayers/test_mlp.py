"""The MLP's activations against scipy, and its widths."""

from __future__ import annotations

from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit

from hybrid.accounting import parameters
from hybrid.sublayers import KINDS
from hybrid.sublayers.mlp import ACTIVATIONS, REFERENCES, ActivationName
from hybrid.testing import example

X = np.linspace(-6, 6, 41)
EXACT_GELU = X * (1 + erf(X / np.sqrt(2))) / 2
TANH_GELU = X * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3))) / 2


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("relu", np.maximum(X, 0)),
        ("relu2", np.maximum(X, 0) ** 2),
        ("gelu", EXACT_GELU),
        ("gelu_tanh", TANH_GELU),
        ("silu", X * expit(X)),
    ],
)
def test_activations(x64, name, wanted):
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X)), wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "of_gate"), [("swiglu", X * expit(X)), ("geglu", EXACT_GELU), ("geglu_tanh", TANH_GELU)]
)
def test_gated_units_gate_by_the_second_product(x64, name, of_gate):
    up, gate = np.cos(X), X
    np.testing.assert_allclose(
        ACTIVATIONS[name](jnp.asarray(up), jnp.asarray(gate)), up * of_gate, rtol=1e-9, atol=1e-14
    )


def test_both_gelus_differ_by_their_known_distance(x64):
    """The approximation is at most 5e-4 away, and not the same thing."""
    x = jnp.asarray(X)
    distance = np.abs(np.asarray(ACTIVATIONS["gelu"](x) - ACTIVATIONS["gelu_tanh"](x))).max()
    assert 1e-4 < distance < 5e-4


def test_tables_have_every_activation():
    assert set(ACTIVATIONS) == set(REFERENCES) == set(get_args(ActivationName))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_widths(activation):
    into = 2 if ACTIVATIONS[activation].gated else 1
    config = example("-", d_ff=5, mlp={"activation": activation})
    assert {param.shape for param in KINDS["-"].spec(config).values()} == {(8, 5), (5, 8)}
    assert parameters(config).without_embeddings == (into + 1) * 40 + 2 * 8  # and two norms
    assert KINDS["-"].spec(example("-"))["up"].shape == (8, 32)
    biased = example("-", d_ff=5, mlp={"activation": activation, "bias": True})
    assert parameters(biased).total - parameters(config).total == into * 5 + 8
