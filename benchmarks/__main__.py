"""Measures all suites, each in a process of its own, and keeps the figures.

    python -m benchmarks                       all suites
    python -m benchmarks scans decoding        some of them
    python -m benchmarks scans --only scan  the rows of one function of a suite
    python -m benchmarks --page                the page alone, from what was kept

Rows go to benchmarks/history/COMMIT.json (with versions and the machine; figures of one commit are merged suite by
suite) and the newest of them to docs/performance.md. Peers need the extra `parity`; without it their rows are left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time

SUITES = ("machine", "selective_scan", "scans", "attention", "convolution", "training", "decoding", "sweeps", "devices")
"""Modules of this package. Each has ENVIRONMENT (variables of its process) and FUNCTIONS, whose values give rows."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all by default")
    parser.add_argument("--only", metavar="FUNCTION", help="of the functions of the suite; nothing is kept")
    parser.add_argument("--page", action="store_true", help="renew docs/performance.md from what was kept")
    parser.add_argument("--inside", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for suite in options.suites:
        if suite not in SUITES:
            parser.error(f"{suite!r} is not one of {', '.join(SUITES)}")
    if options.inside:
        return _inside(options.suites[0], options.only, options.inside)
    from benchmarks import history, page

    if options.page:
        page.renew()
        return 0
    failed = [suite for suite in options.suites or SUITES if not _measure(suite, options.only, history)]
    if not options.only:
        page.renew()
    return 1 if failed else 0


def _measure(suite: str, only: str | None, history) -> bool:
    """Runs a suite in its own process, whose settings must not be those of the others."""
    started = time.monotonic()
    result = history.FOLDER / f".{suite}.{os.getpid()}.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"benchmarks.{suite}")
    command = [sys.executable, "-m", "benchmarks", suite, "--inside", str(result)]
    code = subprocess.call(
        command + (["--only", only] if only else []), env={**os.environ, **module.ENVIRONMENT}, cwd=history.ROOT
    )
    if code == 0 and not only:
        history.keep(suite, json.loads(result.read_text()), seconds=time.monotonic() - started)
    result.unlink(missing_ok=True)
    return code == 0


def _inside(suite: str, only: str | None, result: str) -> int:
    from pathlib import Path

    from rich.console import Console

    from benchmarks.rows import table
    from experiments import environment

    environment.prepare()  # what the commands set, before jax is loaded
    module = importlib.import_module(f"benchmarks.{suite}")
    functions = module.FUNCTIONS
    if only is not None and only not in functions:
        print(f"error: --only: {only!r} is not one of {', '.join(functions)}", file=sys.stderr)
        return 2
    rows = []
    for name in [only] if only else functions:
        begun = time.monotonic()
        found = list(functions[name]())
        title = f"{suite}: {name}, {time.monotonic() - begun:.0f} s"
        Console(width=None if sys.stdout.isatty() else 200).print(table(title, found))
        rows += [{"function": name, **row.record()} for row in found]
    Path(result).write_text(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
