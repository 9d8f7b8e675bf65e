"""The selective scan in C (limits.c), compiled when it is asked for with the machine's compiler: a CPU's limit."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

STATES = 16
"""d_state of the kernel."""
SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
Pair = tuple[Callable[[], object], Callable[[], object]]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None where there is no C compiler or it does not take the source."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "limits.so"
        done = subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(path)], capture_output=True, check=False)
        return ctypes.CDLL(str(path)) if done.returncode == 0 else None


def scan(arrays: Mapping[str, np.ndarray], threads: int) -> tuple[Pair, dict[str, np.ndarray]]:
    """(forward, forward and gradient) of the scan on that many threads, and the arrays that they fill.

    arrays: x, dt (1, length, channels), A (channels, 16), B, C (1, length, 16), dy like x; channels a multiple of 16.
    """
    kernel = library()
    if kernel is None:
        raise RuntimeError("there is no C compiler")
    given = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    given["A"] = np.ascontiguousarray(given["A"].T)
    length, channels = given["x"].shape[1:]
    if channels % 16 or given["A"].shape[0] != STATES:
        raise ValueError(f"{channels} channels of {given['A'].shape[0]} states: must be 16 n channels of {STATES}")
    filled = {"y": np.zeros_like(given["x"])}
    filled |= {f"d{name}": np.zeros_like(given[name]) for name in ("x", "dt", "A", "B", "C")}

    def call(name: str, *buffers: np.ndarray) -> None:
        pointers = [buffer.ctypes.data_as(ctypes.c_void_p) for buffer in buffers]
        getattr(kernel, name)(threads, length, channels, *pointers)

    inputs = [given[name] for name in ("x", "dt", "A", "B", "C")]
    return (
        lambda: call("scan_forward", *inputs, filled["y"]),
        lambda: call("scan_gradient", *inputs, given["dy"], *filled.values()),
    ), filled
