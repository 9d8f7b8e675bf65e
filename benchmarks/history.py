"""Figures as JSON, a file a commit: benchmarks/history/COMMIT.json."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "history"
LIBRARIES = ("jax", "jaxlib", "torch", "transformers", "mambapy", "numpy")


def keep(suite: str, rows: list[dict[str, Any]], seconds: float) -> Path:
    """Puts the rows of a suite into the file of this commit, in the place of older ones of that suite."""
    commit = _git("rev-parse", "--short=10", "HEAD") or "unknown"
    path = FOLDER / f"{commit}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"commit": commit, "suites": {}}
    when = _git("show", "-s", "--format=%cI", "HEAD") or ""
    changed = bool(_git("status", "--porcelain", "--", "hybrid", "experiments", "benchmarks/*.py"))
    found |= {"committed": when, "versions": versions(), "machine": machine()}
    found["suites"][suite] = {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "seconds": round(seconds, 1),
        "changed": changed,
        "rows": rows,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


def all_kept() -> list[dict[str, Any]]:
    """What was kept, oldest commit first."""
    return sorted(
        (json.loads(path.read_text()) for path in FOLDER.glob("[!.]*.json")), key=lambda one: one["committed"]
    )


def versions() -> dict[str, str]:
    there = {}
    for name in LIBRARIES:
        try:
            there[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **there}


def machine() -> dict[str, Any]:
    """The processor in words (Linux), and how many cores this process may use."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    features = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    wide = [name for name in ("avx2", "avx512f", "amx_bf16") if name in features]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": model or platform.processor(), "features": wide, "cores": cores}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
