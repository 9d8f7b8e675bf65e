"""Times the forms of the operators against each other, in one process and in turns.

    python -m benchmarks.forms                      all operators
    python -m benchmarks.forms scan --repeats 9     one of them
    python -m benchmarks.forms --json forms.json

A round runs every form once, so that a busy machine slows all of them; the table has medians over the rounds, the
median of the ratios to the first form within a round, CPU time (all threads) and the temporaries of the compiled
program, which do not depend on how busy the machine is. XLA flags are read from the environment as given: set
XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-reduce to time what the commands of `experiments` use on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from hybrid.ops.attention import attention
from hybrid.ops.delta import gated_delta_rule
from hybrid.ops.experts import grouped_linear
from hybrid.ops.fftconv import fft_conv, fft_conv_reference
from hybrid.ops.linear_recurrence import linear_recurrence
from hybrid.ops.scan import selective_scan
from hybrid.ops.short_conv import causal_conv
from hybrid.ops.ssd import ssd

Case = tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def scan(length: int) -> dict[str, Case]:
    """Selective scan, batch 1, d_inner 512, d_state 16."""
    d_inner, d_state = 512, 16
    x, dt = normal(1, length, d_inner), jax.nn.softplus(normal(1, length, d_inner) - 3)
    arrays = (x, dt, -jnp.exp(normal(d_inner, d_state)), normal(1, length, d_state), normal(1, length, d_state))

    def form(name: str, chunk: int | None) -> Case:
        return lambda *a: selective_scan(*a, form=name, chunk=chunk)[0], arrays

    return {
        "chunked 32": form("chunked", 32),
        "chunked 64": form("chunked", 64),
        "sequential": form("sequential", None),
        "associative 64": form("associative", 64),
        "associative, whole": form("associative", length),
    }


def short(length: int) -> dict[str, Case]:
    """Short convolution, batch 1, 512 channels, kernel 4."""

    def grouped(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, weight[:, None], (1,), [(3, 0)], feature_group_count=512, dimension_numbers=("NWC", "WIO", "NWC")
        )

    arrays = (normal(1, length, 512), normal(4, 512))
    return {"shifted sums": (lambda *a: causal_conv(*a)[0], arrays), "grouped convolution": (grouped, arrays)}


def convolution(length: int) -> dict[str, Case]:
    """Long convolution, batch 1, 128 channels, as many taps as positions."""
    arrays = (normal(1, 128, length), normal(128, length))

    def by_jax(u: jax.Array, kernel: jax.Array) -> jax.Array:
        n = 2 * length
        return jnp.fft.irfft(jnp.fft.rfft(u, n) * jnp.fft.rfft(kernel, n), n)[..., :length]

    cases: dict[str, Case] = {"fft_conv": (fft_conv, arrays), "differentiated by jax": (by_jax, arrays)}
    if length <= 128:
        cases["direct sum"] = (fft_conv_reference, arrays)
    return cases


def attend(length: int) -> dict[str, Case]:
    """Causal attention, batch 1, 4 heads of 64."""
    arrays = tuple(normal(1, length, 4, 64) + i for i in range(3))

    def form(name: str, window: int | None = None) -> Case:
        return lambda q, k, v: attention(q, k, v, form=name, window=window), arrays

    cases = {"chunked": form("chunked"), "chunked, window 512": form("chunked", 512)}
    if length <= 4096:
        cases |= {"plain": form("plain"), "fused": form("fused")}
    return cases


def window(length: int) -> dict[str, Case]:
    """Causal attention to the last 128 positions, batch 1, 4 heads of 64."""
    arrays = tuple(normal(1, length, 4, 64) + i for i in range(3))

    def form(name: str) -> Case:
        return lambda q, k, v: attention(q, k, v, form=name, window=128), arrays

    return {"blocks": form("blocks"), "chunked": form("chunked")}


def dual(length: int) -> dict[str, Case]:
    """SSD (Mamba-2), batch 1, 8 heads of 64, one group, d_state 64."""
    x, dt = normal(1, length, 8, 64), jax.nn.softplus(normal(1, length, 8) - 3)
    arrays = (x, dt, -jnp.exp(normal(8)), normal(1, length, 1, 64), normal(1, length, 1, 64) + 1)

    def form(name: str, chunk: int | None = None) -> Case:
        return lambda *a: ssd(*a, form=name, chunk=chunk)[0], arrays

    return {"chunked": form("chunked"), "chunked 128": form("chunked", 128), "sequential": form("sequential")}


def delta(length: int) -> dict[str, Case]:
    """Gated delta rule, batch 1, 4 heads, d_key and d_value 64."""
    q, k = (normal(1, length, 4, 64) + i for i in range(2))
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    decay, beta = -jax.nn.softplus(normal(1, length, 4) - 3), jax.nn.sigmoid(normal(1, length, 4) + 1)
    arrays = (q / 8, k, normal(1, length, 4, 64) + 2, decay, beta)

    def form(name: str, chunk: int | None = None) -> Case:
        return lambda *a: gated_delta_rule(*a, form=name, chunk=chunk)[0], arrays

    return {"chunked": form("chunked"), "chunked 32": form("chunked", 32), "sequential": form("sequential")}


def recurrence(length: int) -> dict[str, Case]:
    """Gated linear recurrence (RG-LRU), batch 1, 512 channels."""
    arrays = (jax.nn.sigmoid(normal(1, length, 512) + 2), normal(1, length, 512))

    def form(name: str) -> Case:
        return lambda *a: linear_recurrence(*a, form=name)[0], arrays

    return {name: form(name) for name in ("chunked", "sequential", "associative")}


def experts(length: int) -> dict[str, Case]:
    """Products with the weights of 8 experts, 128 by 256; beside them one dense product of as many rows."""
    x, weight = normal(length, 128), normal(8, 128, 256)
    sizes = jnp.asarray(np.bincount(np.random.default_rng(0).integers(0, 8, length), minlength=8), jnp.int32)

    def form(name: str) -> Case:
        return lambda x, w: grouped_linear(x, w, sizes, form=name), (x, weight)

    return {"dense": (lambda x, w: x @ w, (x, weight[0])), "blocks": form("blocks"), "ragged": form("ragged")}


OPERATORS: Mapping[str, tuple[Callable[[int], dict[str, Case]], int]] = {
    "scan": (scan, 2048),
    "short_conv": (short, 2048),
    "fft_conv": (convolution, 8192),
    "attention": (attend, 2048),
    "window": (window, 8192),
    "ssd": (dual, 2048),
    "delta": (delta, 2048),
    "recurrence": (recurrence, 2048),
    "experts": (experts, 4096),
}


def with_gradient(function: Callable[..., jax.Array], count: int) -> Callable[..., Any]:
    def loss(*arrays: jax.Array) -> jax.Array:
        y = function(*arrays)
        return jnp.vdot(y, jax.lax.stop_gradient(y))

    return jax.grad(loss, tuple(range(count)))


def measure(cases: Mapping[str, Case], repeats: int) -> list[dict[str, Any]]:
    """One row a form and direction ("gradient" includes the forward pass); all forms in turns, `repeats` rounds."""
    rows = []
    for direction in ("forward", "gradient"):
        programs = {}
        for name, (function, arrays) in cases.items():
            run = function if direction == "forward" else with_gradient(function, len(arrays))
            start = time.perf_counter()
            compiled = jax.jit(run).lower(*arrays).compile()
            programs[name] = (compiled, arrays, time.perf_counter() - start)
            jax.block_until_ready(compiled(*arrays))
        wall: dict[str, list[float]] = {name: [] for name in programs}
        cpu: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(repeats):
            for name, (compiled, arrays, _) in programs.items():
                start, start_cpu = time.perf_counter(), time.process_time()
                jax.block_until_ready(compiled(*arrays))
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
        first = wall[next(iter(wall))]
        for name, (compiled, _, seconds) in programs.items():
            memory = compiled.memory_analysis()  # None where the platform has no such thing
            rows.append(
                {
                    "form": name,
                    "direction": direction,
                    "wall_ms": 1e3 * statistics.median(wall[name]),
                    "cpu_ms": 1e3 * statistics.median(cpu[name]),
                    "times_first": statistics.median(a / b for a, b in zip(wall[name], first, strict=True)),
                    "temporaries_mib": memory.temp_size_in_bytes / 2**20 if memory else None,
                    "compile_s": seconds,
                }
            )
    return rows


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("form", no_wrap=True)
    table.add_column("pass", no_wrap=True)
    for heading in ("wall ms", "CPU ms", "x first", "temp MiB", "compile s"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (row["wall_ms"], row["cpu_ms"], row["times_first"], row["temporaries_mib"], row["compile_s"])
        cells = ("" if number is None else f"{number:,.1f}" for number in numbers)
        table.add_row(row["form"], row["direction"], *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"of {', '.join(OPERATORS)}; all by default")
    parser.add_argument("--length", type=int, help="positions; each operator has its own default")
    parser.add_argument("--repeats", type=int, default=5, help="rounds to take medians over")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    for name in options.operators:
        if name not in OPERATORS:
            parser.error(f"{name!r} is not one of {', '.join(OPERATORS)}")
    console = Console()
    device = jax.devices()[0]
    flags = os.environ.get("XLA_FLAGS", "")
    console.print(f"{device.platform} {device.device_kind}, {os.cpu_count()} cores, jax {jax.__version__} {flags}")
    results = []
    for name in options.operators or OPERATORS:
        build, length = OPERATORS[name]
        length = options.length or length
        rows = measure(build(length), options.repeats)
        show(console, f"{build.__doc__} Length {length}.", rows)
        results += [{"operator": name, "length": length} | row for row in rows]
    if options.json:
        machine = {"platform": device.platform, "kind": device.device_kind, "jax": jax.__version__, "xla_flags": flags}
        options.json.write_text(json.dumps({"machine": machine, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
