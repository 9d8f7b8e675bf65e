"""The MLP's activations against scipy, and its widths."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit

from hybrid.accounting import parameters
from hybrid.sublayers import KINDS
from hybrid.sublayers.mlp import ACTIVATIONS
from hybrid.testing import example

X = np.linspace(-6, 6, 41)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("relu", np.maximum(X, 0)), ("gelu", X * (1 + erf(X / np.sqrt(2))) / 2)],
)
def test_activations(x64, name, wanted):
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X)), wanted, rtol=1e-9, atol=1e-14)


def test_swiglu_gates_by_the_second_product(x64):
    up, gate = X[::-1], X
    np.testing.assert_allclose(
        ACTIVATIONS["swiglu"](jnp.asarray(up), jnp.asarray(gate)), up * gate * expit(gate), rtol=1e-9
    )


@pytest.mark.parametrize(("activation", "matrices"), [("relu", 2), ("gelu", 2), ("swiglu", 3)])
def test_widths(activation, matrices):
    config = example("-", d_ff=5, mlp={"activation": activation})
    assert {param.shape for param in KINDS["-"].spec(config).values()} == {(8, 5), (5, 8)}
    assert parameters(config).without_embeddings == matrices * 40 + 2 * 8  # and two norms
    assert KINDS["-"].spec(example("-"))["up"].shape == (8, 32)
