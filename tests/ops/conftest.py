"""Fixtures of the operator tests."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture
def float64():
    """Arrays made in the test are float64, as the references ask for."""
    with jax.enable_x64(True):
        yield
