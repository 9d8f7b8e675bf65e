"""Recurrences but the scan of Mamba (selective_scan.py): SSD, the gated delta rule, RG-LRU's; batch 1, float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from benchmarks import peers_scans
from benchmarks.machine import bandwidth, matmul_rate
from benchmarks.measure import paired
from benchmarks.passes import PASSES, float32, programs
from benchmarks.rows import Row, faster, of_limit
from experiments.environment import threads

ENVIRONMENT: dict[str, str] = {"NPROC": "2"}

LENGTH = 2048
TILES = "products of matrices of 64 reach a third of the rate of large ones, and on one thread each"


def ssd() -> Iterator[Row]:
    """Mamba-2's operator, 8 heads of 64, d_state 64, one group."""
    from hybrid.ops.ssd import ssd as ours

    work, heads, size = f"SSD, 8 heads of 64, N 64, L {LENGTH}", 8, 64
    draw = np.random.default_rng(0)
    arrays = {
        "x": draw.normal(size=(1, LENGTH, heads, size)),
        "dt": np.log1p(np.exp(draw.normal(size=(1, LENGTH, heads)) - 3)),
        "A": -np.exp(draw.normal(size=heads)),
        "B": draw.normal(size=(1, LENGTH, 1, size)),
        "C": draw.normal(size=(1, LENGTH, 1, size)),
    }
    arrays = float32(arrays)
    pieces = programs(lambda x, dt, A, B, C: ours(x, dt, A, B, C)[0], arrays)
    if peers_scans.there():
        candidates = {chunk: peers_scans.mamba2_chunk_scan(arrays, chunk) for chunk in (32, 64, 128, 256)}
        for i, (name, bar) in enumerate(zip(PASSES, (">= 2", ">= 1.25"), strict=True)):
            tried = paired({str(chunk): runs[i] for chunk, runs in candidates.items()}, rounds=3)
            best = min((min(times.wall), chunk) for chunk, times in tried.items())[1]
            pair = paired({"ours": pieces[name], "theirs": candidates[int(best)][i]}, rounds=11, warm=2)
            against = f"transformers' Mamba-2 chunk scan, chunks of {best} (its best), {_threads()}"
            yield faster(f"{work}, {name}", against, pair["ours"], pair["theirs"], bar)
    # Scores, what they read, what is put into the states and read from them: 2 (1 + 3 heads) products of 64 cubed.
    operations = 2 * LENGTH * size * size * (1 + 3 * heads)
    yield from _of_products(work, pieces, operations)


def gated_delta_rule() -> Iterator[Row]:
    """Gated DeltaNet's operator, 4 heads, d_key and d_value 64."""
    from hybrid.ops.delta import gated_delta_rule as ours

    work, heads, size = f"gated delta rule, 4 heads of 64 x 64, L {LENGTH}", 4, 64
    draw = np.random.default_rng(0)
    q, k, v = draw.normal(size=(3, 1, LENGTH, heads, size))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    decay, beta = draw.normal(size=(2, 1, LENGTH, heads))
    arrays = float32(
        {"q": q / 8, "k": k, "v": v, "decay": -np.log1p(np.exp(decay - 3)), "beta": 1 / (1 + np.exp(-beta))}
    )
    pieces = programs(lambda *a: ours(*a)[0], arrays)
    loops = programs(lambda *a: ours(*a, form="sequential")[0], arrays)
    for name in PASSES:
        pair = paired({"ours": pieces[name], "theirs": loops[name]}, rounds=5)
        yield faster(f"{work}, {name}", "position after position, in jax", pair["ours"], pair["theirs"])
    # By the recurrence itself: S'k, the outer product and S'q.
    yield from _of_products(work, pieces, 2 * LENGTH * heads * 3 * size * size)


def linear_recurrence() -> Iterator[Row]:
    """RG-LRU's operator, 512 channels."""
    from hybrid.ops.linear_recurrence import linear_recurrence as ours

    work, channels = f"gated linear recurrence, 512 channels, L {LENGTH}", 512
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 1, LENGTH, channels))
    arrays = float32({"a": 1 / (1 + np.exp(-a - 2)), "b": b})
    pieces = programs(lambda *a: ours(*a)[0], arrays)
    times = paired(pieces, rounds=11, warm=2)
    trees = programs(lambda *a: ours(*a, form="associative")[0], arrays)
    for name, arrays_moved in zip(PASSES, (3, 9), strict=True):  # a, b, h; then a, h, dh and da, db, and dh once more
        pair = paired({"ours": pieces[name], "theirs": trees[name]}, rounds=5)
        yield faster(f"{work}, {name}", "jax.lax.associative_scan", pair["ours"], pair["theirs"])
        seconds = arrays_moved * 4 * LENGTH * channels / bandwidth()
        note = "one thread, a few small operations a position"
        yield of_limit(f"{work}, {name}", "its bytes over the measured bandwidth", times[name], seconds, note=note)


def short_convolution() -> Iterator[Row]:
    """The convolution before a recurrence, 512 channels, 4 taps."""
    from hybrid.ops.short_conv import causal_conv as ours

    work = f"short convolution, 512 channels, 4 taps, L {LENGTH}"
    draw = np.random.default_rng(0)
    arrays = float32({"x": draw.normal(size=(1, LENGTH, 512)), "weight": draw.normal(size=(4, 512))})
    times = paired(programs(lambda *a: ours(*a)[0], arrays), rounds=11, warm=2)
    for name, moved in zip(PASSES, (2, 5), strict=True):  # x, y; then x, dy and dx
        seconds = moved * 4 * LENGTH * 512 / bandwidth()
        yield of_limit(f"{work}, {name}", "its bytes over the measured bandwidth", times[name], seconds)


def _of_products(work: str, pieces: Mapping[str, Callable[[], object]], operations: float) -> Iterator[Row]:
    """Against products at the rate of large ones; the backward pass has twice the operations of the forward."""
    times = paired(pieces, rounds=9, warm=2)
    for name, factor in zip(PASSES, (1, 3), strict=True):
        seconds = factor * operations / matmul_rate()
        yield of_limit(f"{work}, {name}", "its products at the measured rate", times[name], seconds, note=TILES)


def _threads() -> str:
    return f"{threads()} threads"


FUNCTIONS = {function.__name__: function for function in (ssd, gated_delta_rule, linear_recurrence, short_convolution)}
