"""What must be in the environment before jax is loaded: XLA flags, the compilation cache, threads. No jax.

Every command calls `prepare()` first. A variable that a person has set is left as it is.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple


class XlaFlag(NamedTuple):
    """An unknown flag aborts the process, so each goes only to the versions of jaxlib that were seen to know it."""

    name: str
    value: str
    since: tuple[int, ...]
    before: tuple[int, ...]
    cpu: str = ""
    """A feature that the processor must have."""


FLAGS = (
    # Reductions by YNNPACK crash in some plain sums and cost a hand-off between threads at every step of a scan.
    XlaFlag("xla_cpu_experimental_ynn_fusion_type", "-reduce", (0, 10, 0), (0, 12)),
    # Loops bound by exp run 1.2 to 1.4 times faster with the wide vectors.
    XlaFlag("xla_cpu_prefer_vector_width", "512", (0, 10, 0), (0, 12), cpu="avx512f"),
    # By default a program makes what depends on nothing, such as the zeros of every sum, at its start and holds it:
    # the steps of configs/million.py went from 10.8, 6.1 and 8.2 GiB to 9.3, 4.7 and 6.3, and are as fast.
    XlaFlag("xla_cpu_scheduler_type", "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED", (0, 10, 0), (0, 11)),
)

COMPILE_SECONDS = 0.0
"""Programs that took longer to compile are kept on disk: all, so that no worker compiles what another has."""

MALLOC = ((-8, 1), (-4, 0), (-1, 2**31 - 1))
"""(option, value) of glibc's mallopt: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD."""

LARGE = 2**31
"""Bytes of temporaries from which on a program's memory is given back after each step (`give_back`)."""
MAPPED = ((-4, 65536), (-3, 2**25))
"""M_MMAP_MAX and M_MMAP_THRESHOLD, the most that it may be."""

_done: list[int] = []
_kept_memory: list[int] = []


def prepare(*, devices: int | None = None, threads: int | None = None) -> None:
    """Sets the variables that are not set, and how memory is kept. devices: simulated CPU devices; threads: of XLA's
    pool on a CPU.

    Must run before jax is imported; where it is too late it warns, and changes nothing.
    """
    if _done:
        return
    if "jax" in sys.modules:
        warnings.warn("experiments.environment.prepare() came after jax: its settings are not used", stacklevel=2)
        return
    _done.append(os.getpid())
    os.environ["XLA_FLAGS"] = " ".join(_flags(os.environ.get("XLA_FLAGS", ""), devices))
    for name, value in _variables(threads).items():
        os.environ.setdefault(name, value)
    keep_memory()


def of_workers(workers: int, threads: int, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the processes of a study: `given`, the threads of each, what lets them share an accelerator.

    A process takes three quarters of an accelerator's memory when it starts, and there is no second such share; so
    each of several takes what it needs, when it needs it. One worker keeps the default, which fragments less.
    """
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if workers > 1 and accelerator() else {}
    return {**shared, **given, "NPROC": str(threads)}


def accelerator() -> bool:
    """Whether training will find a GPU or TPU, as far as files tell (jax is not asked)."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    gpu = any(importlib.util.find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin"))
    tpu = importlib.util.find_spec("libtpu")
    return bool((gpu and Path("/dev/nvidia0").exists()) or (tpu and Path("/dev/accel0").exists()))


def cache_folder() -> Path:
    """Where what can be made again is kept: HYBRID_CACHE, else `hybrid` in the cache folder of the user."""
    given = os.environ.get("HYBRID_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "hybrid"


def threads() -> int:
    """Threads of XLA's pool on a CPU. Bit equality of two runs is promised for equal numbers only."""
    given = os.environ.get("NPROC", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Asks glibc to keep freed memory instead of giving it back to the kernel after every operation.

    XLA on a CPU takes its buffers anew at each step; without this each page of them is mapped and cleared again, which
    was two fifths of a step of the quick start (100 to 60 ms). One arena, because only that one grows without maps: a
    process that starts threads before `prepare` calls this before them, as each may make an arena for all later ones.
    Left alone where a person tunes malloc, and beside an accelerator.
    """
    tuned = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if _kept_memory or tuned or accelerator():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        _kept_memory.append(os.getpid())
        for option, value in MALLOC:
            mallopt(option, value)


def give_back() -> None:
    """From now on arrays above 32 MiB go back to the kernel when they are freed, against what `prepare` asked for.

    For programs of gigabytes: what such a one frees is cut up by small arrays, and its next step would find no room in
    it and take as much again.
    """
    if _kept_memory:
        for option, value in MAPPED:
            ctypes.CDLL(None).mallopt(option, value)


def _flags(given: str, devices: int | None) -> list[str]:
    """The flags that are there, and ours after them where the same flag is not there already."""
    flags = given.split()
    wanted = {flag.name: flag.value for flag in FLAGS if _is_known(flag)}
    if devices is not None:
        wanted["xla_force_host_platform_device_count"] = str(devices)
    there = {flag.lstrip("-").partition("=")[0] for flag in flags}
    return flags + [f"--{name}={value}" for name, value in wanted.items() if name not in there]


def _is_known(flag: XlaFlag) -> bool:
    return flag.since <= _jaxlib() < flag.before and (not flag.cpu or flag.cpu in _cpu_features())


def _variables(threads: int | None) -> dict[str, str]:
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder() / "xla" / _machine()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(COMPILE_SECONDS),
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    return variables | ({"NPROC": str(threads)} if threads is not None else {})


@functools.cache
def _jaxlib() -> tuple[int, ...]:
    """The version of jaxlib, from its metadata; () where there is none."""
    try:
        text = metadata.version("jaxlib")
    except metadata.PackageNotFoundError:
        return ()
    parts = [part for part in text.split(".")[:3] if part.isdecimal()]
    return tuple(int(part) for part in parts)


@functools.cache
def _cpu_features() -> frozenset[str]:
    """The features that the kernel lists; empty where it lists none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return frozenset(next((value.split() for name, _, value in lines if name.strip() in ("flags", "Features")), []))


def _machine() -> str:
    """Names machines that can run each other's compiled programs: a home folder may be shared by several kinds."""
    text = " ".join([platform.machine(), platform.processor(), *sorted(_cpu_features())])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
