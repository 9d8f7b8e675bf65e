"""Settings that every test shares: the flags of the commands, the compilation cache, float64 where a test asks."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HYBRID_CACHE", str(ROOT / ".cache" / "tests"))
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")  # tests make thousands of small programs

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a background job; what tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

from experiments import environment  # noqa: E402

environment.prepare()

from jaxtyping import install_import_hook  # noqa: E402

# The shapes in annotations are checked when the functions run. hybrid.ops is left out: its custom derivatives are
# called with placeholders.
CHECKED = ["hybrid.decoding", "hybrid.losses", "hybrid.model", "hybrid.norms", "hybrid.positions"]
install_import_hook(CHECKED, "beartype.beartype")

import pytest  # noqa: E402

MAPS = 25_000
"""Regions of memory that a process may have mapped before its compiled programs are let go: each takes some ten, and
Linux ends a process that wants more than 65,530 (vm.max_map_count)."""


@pytest.fixture(autouse=True)
def few_maps():
    """Worksteal gives one process a thousand tests."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        sys.modules["jax"].clear_caches()


@pytest.fixture
def x64():
    """float64 in this test alone."""
    import jax

    with jax.enable_x64(True):
        yield
