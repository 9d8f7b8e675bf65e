"""The kernel in C that scans are compared with computes the same values and gradients."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from benchmarks import limits
from hybrid.ops.scan import selective_scan


@pytest.mark.skipif(limits.library() is None, reason="there is no C compiler")
@pytest.mark.parametrize("threads", [1, 3])
def test_kernel_equals_the_operator(threads):
    draw = np.random.default_rng(0)
    length, channels = 70, 64  # neither a multiple of the kernel's chunks nor as many ranges as threads
    shapes = {"x": (1, length, channels), "dt": (1, length, channels), "A": (channels, limits.STATES)}
    shapes |= dict.fromkeys(("B", "C"), (1, length, limits.STATES))
    arrays = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["dt"], arrays["A"] = np.abs(arrays["dt"]), -np.exp(arrays["A"])
    dy = draw.normal(size=shapes["x"]).astype(np.float32)

    (forward, gradient), filled = limits.scan({**arrays, "dy": dy}, threads)
    y, pull = jax.vjp(lambda *a: selective_scan(*a)[0], *arrays.values())
    forward()
    np.testing.assert_allclose(filled["y"], y, rtol=1e-4, atol=1e-4)
    filled["y"][:] = 0
    gradient()
    np.testing.assert_allclose(filled["y"], y, rtol=1e-4, atol=1e-4)
    for name, wanted in zip(arrays, pull(dy), strict=True):
        got = filled[f"d{name}"].T if name == "A" else filled[f"d{name}"]
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * float(np.abs(wanted).max()))


def test_sizes_that_the_kernel_does_not_have_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "library", lambda: object())
    arrays = {"x": np.zeros((1, 3, 8)), "A": np.zeros((8, 16)), "dt": np.zeros((1, 3, 8))}
    with pytest.raises(ValueError, match="8 channels of 16 states"):
        limits.scan(arrays, 1)


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(limits, "library", lambda: None)
    with pytest.raises(RuntimeError, match="no C compiler"):
        limits.scan({}, 1)
