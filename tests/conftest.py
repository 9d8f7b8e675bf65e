"""Settings that every test shares: the flags of the commands, the compilation cache, float64 where a test asks."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HYBRID_CACHE", str(ROOT / ".cache" / "tests"))
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "agg")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        from experiments import environment

        environment.prepare()
    except ImportError:
        flag = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import pytest  # noqa: E402


@pytest.fixture
def x64():
    """float64 in this test alone."""
    import jax

    with jax.enable_x64(True):
        yield
