"""How fast this machine trains: FLOPs a second of one worker, kept from the studies it made. For estimates only."""

from __future__ import annotations

import functools
import math
import platform
from pathlib import Path

from experiments.environment import accelerator, cache_folder, threads
from experiments.files import read_json, write_json
from experiments.identity import digest

SMALL_MODELS = 0.1
"""Share of a large matrix product's rate that a small model is assumed to reach."""


def _file(worker_threads: int) -> Path:
    about = {"machine": platform.machine(), "node": platform.node(), "gpu": accelerator(), "threads": worker_threads}
    return cache_folder() / "speeds" / f"{digest(about)}.json"


def _scale(flops_per_token: float) -> int:
    """Models within a factor of about four share a rate: small ones keep a machine less busy."""
    return round(math.log(max(1.0, flops_per_token), 4))


def keep(flops_per_second: float, flops_per_token: float, worker_threads: int) -> None:
    """Remembers what the runs of a model of this size reached."""
    write_json(_file(worker_threads), {**_kept(worker_threads), str(_scale(flops_per_token)): flops_per_second})


def _kept(worker_threads: int) -> dict[str, float]:
    try:
        return read_json(_file(worker_threads)) or {}
    except ValueError:
        return {}


def rate(flops_per_token: float, worker_threads: int) -> tuple[float, str]:
    """(FLOPs a second of one worker, where the figure comes from)."""
    kept = {int(scale): value for scale, value in _kept(worker_threads).items()}
    wanted = _scale(flops_per_token)
    if wanted in kept:
        return kept[wanted], "as models of this size trained here"
    if kept:
        nearest = min(kept, key=lambda scale: abs(scale - wanted))
        return kept[nearest], f"as {'smaller' if nearest < wanted else 'larger'} models trained here"
    measured = _matrix_product() * worker_threads / threads()
    words = f"guessed: {SMALL_MODELS:.0%} of a matrix product here, {measured / 1e9:,.0f} GFLOP/s; no study ran yet"
    return measured * SMALL_MODELS, words


@functools.cache
def _matrix_product(n: int = 768, times: int = 5) -> float:
    """FLOPs a second of n x n float32 products by numpy, the best of `times`."""
    import time

    import numpy as np

    a = np.ones((n, n), np.float32)
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best
