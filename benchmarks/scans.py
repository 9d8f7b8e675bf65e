"""Recurrences: the selective scan, SSD, the gated delta rule and the gated linear recurrence, batch 1, float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks import limits, peers_scans
from benchmarks.machine import bandwidth, exp_rate, matmul_rate
from benchmarks.measure import Times, paired, temporaries
from benchmarks.rows import Row, faster, of_limit
from experiments.environment import threads

ENVIRONMENT: dict[str, str] = {"NPROC": "2"}

LENGTH = 2048
PASSES = ("forward", "forward+backward")
LOOP = "the loop over positions runs on one thread, and its states go through the second cache between its operations"
TILES = "products of matrices of 64 reach a third of the rate of large ones, and on one thread each"


def selective_scan() -> Iterator[Row]:
    """Mamba's operator, d_inner 512, d_state 16."""
    from hybrid.ops.scan import selective_scan as ours

    work = f"selective scan, d_inner 512, N 16, L {LENGTH}"
    arrays = _scan_arrays(LENGTH)
    programs = _programs(lambda x, dt, A, B, C: ours(x, dt, A, B, C)[0], arrays)
    pieces = {f"ours {name}": program for name, program in programs.items()}
    kernels = [1, 2] if limits.library() is not None else []
    for count in kernels:
        for name, run in zip(PASSES, limits.scan(arrays, count)[0], strict=True):
            pieces[f"C {count} {name}"] = run
    times = paired(pieces, rounds=11, warm=2)
    if peers_scans.there():
        associative = "transformers' associative scan, torch.compile"
        for name, run, bar in zip(PASSES, peers_scans.associative_scan(arrays), (">= 10", ">= 5"), strict=True):
            pair = paired({"ours": programs[name], "theirs": run}, rounds=9, warm=2)
            yield faster(f"{work}, {name}", f"{associative}, {_threads()}", pair["ours"], pair["theirs"], bar)
        run = peers_scans.mambapy_scan(arrays)[1]
        pair = paired({"ours": programs[PASSES[1]], "theirs": run}, rounds=5)
        yield faster(
            f"{work}, {PASSES[1]}", f"mambapy's parallel scan, {_threads()}", pair["ours"], pair["theirs"], ">= 15"
        )
    for name in PASSES:
        for count in kernels:
            kernel = times[f"C {count} {name}"]
            yield _ratio(f"{work}, {name}", f"a kernel in C, {_threads(count)}", times[f"ours {name}"], kernel, LOOP)
        if not kernels:
            yield _alone(f"{work}, {name}", times[f"ours {name}"], "no C compiler here: not compared with one in C")
    yield of_limit(
        f"{work}, {PASSES[0]}", "its exponentials at the measured rate", times[f"ours {PASSES[0]}"],
        LENGTH * 512 * 16 / exp_rate(), note=LOOP,
    )  # fmt: skip
    for length, most in ((LENGTH, 20), (65536, 400)):
        compiled = _lower(lambda x, dt, A, B, C: ours(x, dt, A, B, C)[0], _scan_shapes(length), gradient=True)
        yield Row(
            f"selective scan, d_inner 512, N 16, L {length}, {PASSES[1]}", "temporaries", temporaries(compiled), "MiB",
            f"<= {most}",
        )  # fmt: skip


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
    arrays = _float32(arrays)
    programs = _programs(lambda x, dt, A, B, C: ours(x, dt, A, B, C)[0], arrays)
    if peers_scans.there():
        candidates = {chunk: peers_scans.mamba2_chunk_scan(arrays, chunk) for chunk in (32, 64, 128, 256)}
        for i, (name, bar) in enumerate(zip(PASSES, (">= 2", ">= 1.25"), strict=True)):
            tried = paired({str(chunk): runs[i] for chunk, runs in candidates.items()}, rounds=3)
            best = min((min(times.wall), chunk) for chunk, times in tried.items())[1]
            pair = paired({"ours": programs[name], "theirs": candidates[int(best)][i]}, rounds=11, warm=2)
            against = f"transformers' Mamba-2 chunk scan, chunks of {best} (its best), {_threads()}"
            yield faster(f"{work}, {name}", against, pair["ours"], pair["theirs"], bar)
    # Scores, what they read, what is put into the states and read from them: 2 (1 + 3 heads) products of 64 cubed.
    operations = 2 * LENGTH * size * size * (1 + 3 * heads)
    yield from _of_products(work, programs, operations)


def gated_delta_rule() -> Iterator[Row]:
    """Gated DeltaNet's operator, 4 heads, d_key and d_value 64."""
    from hybrid.ops.delta import gated_delta_rule as ours

    work, heads, size = f"gated delta rule, 4 heads of 64 x 64, L {LENGTH}", 4, 64
    draw = np.random.default_rng(0)
    q, k, v = draw.normal(size=(3, 1, LENGTH, heads, size))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    decay, beta = draw.normal(size=(2, 1, LENGTH, heads))
    arrays = _float32(
        {"q": q / 8, "k": k, "v": v, "decay": -np.log1p(np.exp(decay - 3)), "beta": 1 / (1 + np.exp(-beta))}
    )
    programs = _programs(lambda *a: ours(*a)[0], arrays)
    loops = _programs(lambda *a: ours(*a, form="sequential")[0], arrays)
    for name in PASSES:
        pair = paired({"ours": programs[name], "theirs": loops[name]}, rounds=5)
        yield faster(f"{work}, {name}", "position after position, in jax", pair["ours"], pair["theirs"])
    # By the recurrence itself: S'k, the outer product and S'q.
    yield from _of_products(work, programs, 2 * LENGTH * heads * 3 * size * size)


def linear_recurrence() -> Iterator[Row]:
    """RG-LRU's operator, 512 channels."""
    from hybrid.ops.linear_recurrence import linear_recurrence as ours

    work, channels = f"gated linear recurrence, 512 channels, L {LENGTH}", 512
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 1, LENGTH, channels))
    arrays = _float32({"a": 1 / (1 + np.exp(-a - 2)), "b": b})
    programs = _programs(lambda *a: ours(*a)[0], arrays)
    times = paired(programs, rounds=11, warm=2)
    trees = _programs(lambda *a: ours(*a, form="associative")[0], arrays)
    for name, arrays_moved in zip(PASSES, (3, 9), strict=True):  # a, b, h; then a, h, dh and da, db, and dh once more
        pair = paired({"ours": programs[name], "theirs": trees[name]}, rounds=5)
        yield faster(f"{work}, {name}", "jax.lax.associative_scan", pair["ours"], pair["theirs"])
        seconds = arrays_moved * 4 * LENGTH * channels / bandwidth()
        note = "one thread, a few small operations a position"
        yield of_limit(f"{work}, {name}", "its bytes over the measured bandwidth", times[name], seconds, note=note)


def short_convolution() -> Iterator[Row]:
    """The convolution before a recurrence, 512 channels, 4 taps."""
    from hybrid.ops.short_conv import causal_conv as ours

    work = f"short convolution, 512 channels, 4 taps, L {LENGTH}"
    draw = np.random.default_rng(0)
    arrays = _float32({"x": draw.normal(size=(1, LENGTH, 512)), "weight": draw.normal(size=(4, 512))})
    times = paired(_programs(lambda *a: ours(*a)[0], arrays), rounds=11, warm=2)
    for name, moved in zip(PASSES, (2, 5), strict=True):  # x, y; then x, dy and dx
        seconds = moved * 4 * LENGTH * 512 / bandwidth()
        yield of_limit(f"{work}, {name}", "its bytes over the measured bandwidth", times[name], seconds)


def _scan_arrays(length: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes = _scan_shapes(length)
    arrays = {name: draw.normal(size=shape.shape) for name, shape in shapes.items()}
    arrays["dt"] = np.log1p(np.exp(arrays["dt"] - 3))
    arrays["A"] = -np.exp(arrays["A"])
    return _float32({**arrays, "dy": draw.normal(size=arrays["x"].shape)})


def _scan_shapes(length: int) -> dict[str, Any]:
    import jax

    wide, narrow = (1, length, 512), (1, length, 16)
    shapes = {"x": wide, "dt": wide, "A": (512, 16), "B": narrow, "C": narrow}
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}


def _float32(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def _lower(function: Callable[..., Any], arrays: Mapping[str, Any], gradient: bool) -> Any:
    """The compiled function of all arrays but dy, or its gradient, for the cotangent dy or one like the output."""
    import jax

    def pulled(*given: jax.Array) -> Any:
        y, pull = jax.vjp(function, *given)
        return pull(jax.lax.stop_gradient(y))

    given = [array for name, array in arrays.items() if name != "dy"]
    return jax.jit(pulled if gradient else function).lower(*given).compile()


def _programs(function: Callable[..., Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Callable[[], object]]:
    """Forward, and forward with all gradients, as pieces of work."""
    import jax
    import jax.numpy as jnp

    given = [jnp.asarray(array) for name, array in arrays.items() if name != "dy"]

    def piece(gradient: bool) -> Callable[[], object]:
        compiled = _lower(function, arrays, gradient)
        return lambda: jax.block_until_ready(compiled(*given))

    return {name: piece(name != "forward") for name in PASSES}


def _of_products(work: str, programs: Mapping[str, Callable[[], object]], operations: float) -> Iterator[Row]:
    """Against products at the rate of large ones; the backward pass has twice the operations of the forward."""
    times = paired(programs, rounds=9, warm=2)
    for name, factor in zip(PASSES, (1, 3), strict=True):
        seconds = factor * operations / matmul_rate()
        yield of_limit(f"{work}, {name}", "its products at the measured rate", times[name], seconds, note=TILES)


def _ratio(work: str, limit: str, ours: Times, kernel: Times, note: str) -> Row:
    ratio = kernel.faster_than(ours)
    return Row(work, limit, ratio.median, "x the limit", "", ratio.low, ratio.high, ours.ms(), kernel.ms(), note)


def _alone(work: str, ours: Times, note: str) -> Row:
    return Row(work, "", ours.ms()["wall"], "ms", ours=ours.ms(), note=note)


def _threads(count: int | None = None) -> str:
    count = count or threads()
    return f"{count} thread{'s' if count > 1 else ''}"


FUNCTIONS = {
    function.__name__: function
    for function in (selective_scan, ssd, gated_delta_rule, linear_recurrence, short_convolution)
}
