"""The selective scan of Mamba, d_inner 512, d_state 16, L 2048, batch 1, float32.

On one thread each, because the loop over positions has one; and on two, with d_inner cut over two simulated devices.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import limits, peers_scans
from benchmarks.machine import exp_rate
from benchmarks.measure import Times, paired, temporaries
from benchmarks.passes import PASSES, float32, lower, programs
from benchmarks.rows import Row, faster, of_limit

ENVIRONMENT: dict[str, str] = {"NPROC": "1"}

LENGTH, CHANNELS, STATES = 2048, 512, 16
WORK = f"selective scan, d_inner {CHANNELS}, N {STATES}"
TORCH, MAMBAPY = "transformers' associative scan, torch.compile", "mambapy's parallel scan"
BARS = {"forward": ">= 10", "forward+backward": ">= 5"}
LOOP = "the states of a position go through the second cache between its operations"
HALF = "the peers put both threads into each of their operations"


EACH = ("ours", "theirs")
"""Each is timed as in a loop of its own: what a peer leaves behind would else cost ours a third more."""


def ours(x: Any, dt: Any, A: Any, B: Any, C: Any) -> Any:
    from hybrid.ops.on_mesh import selective_scan

    return selective_scan(x, dt, A, B, C)[0]


def one_thread() -> Iterator[Row]:
    given = arrays(LENGTH)
    work = {f"ours {name}": run for name, run in programs(ours, given).items()}
    kernels = limits.library() is not None
    if kernels:
        work |= {f"C {name}": run for name, run in zip(PASSES, limits.scan(given, 1)[0], strict=True)}
    yield from _against_peers("1 thread", work, given)
    times = paired(work, rounds=11, warm=2)
    for name in PASSES:
        title, own = f"{WORK}, L {LENGTH}, {name}", times[f"ours {name}"]
        if kernels:
            ratio = times[f"C {name}"].faster_than(own)
            yield Row(title, "a kernel in C, 1 thread", ratio.median, "x the limit", "", ratio.low, ratio.high,
                      own.ms(), times[f"C {name}"].ms(), LOOP)  # fmt: skip
        else:
            yield Row(title, "", own.ms()["wall"], "ms", ours=own.ms(), note="no C compiler here: no kernel in C")
    yield of_limit(f"{WORK}, L {LENGTH}, forward", "its exponentials at the measured rate", times["ours forward"],
                   LENGTH * CHANNELS * STATES / exp_rate(), note=LOOP)  # fmt: skip
    for length, most in ((LENGTH, 20), (65536, 400)):
        compiled = lower(ours, shapes(length), gradient=True)
        yield Row(f"{WORK}, L {length}, {PASSES[1]}", "temporaries", temporaries(compiled), "MiB", f"<= {most}")


def two_threads() -> Iterator[Row]:
    """In a process that has two devices of a thread each, beside torch with two threads."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.selective_scan"], env={**os.environ, "XLA_FLAGS": flags, "NPROC": "2"},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    for row in json.loads(done.stdout.splitlines()[-1]):
        yield Row(**row)


def on_two_devices() -> Iterator[Row]:
    import jax

    from hybrid.sharding import make_mesh, on, spec

    given, mesh = arrays(LENGTH), make_mesh(tensor=2)
    axes = {"x": (None, None, "inner"), "dt": (None, None, "inner"), "A": ("inner", None)}

    def lies(name: str) -> Any:
        shape = given[name].shape
        return jax.sharding.NamedSharding(mesh, spec(mesh, shape, axes.get(name, (None,) * len(shape))))

    with on(mesh):
        cut = {name: jax.device_put(array, lies(name)) for name, array in given.items()}
        work = {f"ours {name}": run for name, run in programs(ours, cut).items()}
        yield from _against_peers("2 threads", work, given, note=HALF)


def _against_peers(threads: str, work: dict[str, Any], given: dict[str, np.ndarray], note: str = "") -> Iterator[Row]:
    if not peers_scans.there():
        return
    for name, run in zip(PASSES, peers_scans.associative_scan(given), strict=True):
        times = paired({"ours": work[f"ours {name}"], "theirs": run}, rounds=9, warm=3, again=EACH)
        yield _faster(name, f"{TORCH}, {threads}", times, BARS[name], note)
    run = peers_scans.mambapy_scan(given)[1]
    times = paired({"ours": work[f"ours {PASSES[1]}"], "theirs": run}, rounds=5, warm=3, again=EACH)
    yield _faster(PASSES[1], f"{MAMBAPY}, {threads}", times, ">= 15", note)


def _faster(name: str, against: str, times: dict[str, Times], bar: str, note: str) -> Row:
    return faster(f"{WORK}, L {LENGTH}, {name}", against, times["ours"], times["theirs"], bar, note)


def arrays(length: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    made = {name: draw.normal(size=shape.shape) for name, shape in shapes(length).items()}
    made["dt"] = np.log1p(np.exp(made["dt"] - 3))
    made["A"] = -np.exp(made["A"])
    return float32({**made, "dy": draw.normal(size=made["x"].shape)})


def shapes(length: int) -> dict[str, Any]:
    import jax

    wide, narrow = (1, length, CHANNELS), (1, length, STATES)
    sizes = {"x": wide, "dt": wide, "A": (CHANNELS, STATES), "B": narrow, "C": narrow}
    return {name: jax.ShapeDtypeStruct(size, np.float32) for name, size in sizes.items()}


FUNCTIONS = {"one_thread": one_thread, "two_threads": two_threads}

if __name__ == "__main__":
    from experiments.environment import prepare

    prepare()
    print(json.dumps([vars(row) for row in on_two_devices()]))
