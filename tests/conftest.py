"""Settings that every test shares: the flags of the commands, the compilation cache, float64 where a test asks."""

from __future__ import annotations

import gc
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
# Compiling is most of what tests cost, for programs that run once or twice. Without LLVM's optimisations and without a
# pipeline of passes for each fused loop it takes a quarter to two fifths of the time, and what tests start has it from
# here too. Operators and their memory are tested as users have them: `make unit` runs those in a session of their own.
QUICKLY = os.environ.get("HYBRID_TESTS_COMPILED", "quickly") == "quickly"
if QUICKLY:
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a background job; what tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

from experiments import environment  # noqa: E402

if QUICKLY:
    plain = environment.XlaFlag("xla_cpu_use_fusion_emitters", "false", (0, 10, 0), (0, 11))
    environment.FLAGS = (*environment.FLAGS, plain)  # goes where the commands' own flags go: into the environment
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
EVERY = 8
"""Tests from one look at the maps to the next: the kernel writes a list of that length in a hundredth of a second."""

_since: list[None] = []


@pytest.fixture(autouse=True)
def few_maps():
    """Worksteal gives one process a thousand tests."""
    yield
    _since.append(None)
    maps = Path("/proc/self/maps")
    if len(_since) % EVERY == 0 and "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True)
def own_garbage(request):
    """What a test may leave behind with a complaint (a future that nobody asked) is collected here, not in another."""
    yield
    marks = [str(given) for mark in request.node.iter_markers("filterwarnings") for given in mark.args]
    if any("Unraisable" in given for given in marks):
        gc.collect()


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process ends with such a one while the other has nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """A million objects of libraries are there for good: the collector need not look at them again at every trace."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def x64():
    """float64 in this test alone."""
    import jax

    with jax.enable_x64(True):
        yield
