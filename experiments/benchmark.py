"""Time and memory of a study's arms against length, on this machine: a table (CSV) and a figure (PNG).

    python -m experiments.benchmark --config=configs/lengths.py --lengths=1024,4096,16384 --workdir=runs/lengths

Three works for each arm: `prefill` reads a prompt, `decode` appends a token to a full state, `train` is the gradient of
the loss. A curve stops where a point would take longer than --seconds, by the points before it, or more memory than
there is, by its compiled program; the table says which. What the table has of works that --work leaves out is kept. The
config is asked for each length again with data.seq_len set, so that fields which refer to it follow. Exit code 0: all
was measured or stopped; 2: something was given wrongly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.commandline import FLAGS as COMMON
from experiments.commandline import Flag, count_of, main, need, split, text_of
from hybrid.validation import ConfigError, unknown

if TYPE_CHECKING:
    from experiments.config import Trial
    from experiments.curves import Point

WORKS = ("prefill", "decode", "train")


def _lengths(name: str, text: str) -> tuple[int, ...]:
    found = [count_of(name, part.strip()) for part in text_of(name, text).split(",")]
    if sorted(set(found)) != found:
        raise ConfigError(name, f"{text!r} is not allowed; must rise, such as 1024,4096,16384")
    return tuple(found)


def _works(name: str, text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text_of(name, text).split(","))
    for work in found:
        if work not in WORKS:
            raise unknown(name, work, WORKS, f"{work!r} is not a work")
    return found


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ConfigError(name, f"{text!r} is not allowed; must be a number above 0")
    return value


FLAGS = {
    "config": COMMON["config"],
    "lengths": Flag("N,N,...", _lengths, "tokens, rising; each is a point of every curve"),
    "workdir": Flag("FOLDER", COMMON["workdir"].read, "where benchmark.csv and benchmark.png are written"),
    "work": Flag("NAME,...", _works, f"of {', '.join(WORKS)} (default: all)"),
    "seconds": Flag("N", _number, "a curve stops where one call would take longer (default: 60)"),
    "memory": Flag("GIB", _number, "a curve stops where a program would need more (default: what is free now)"),
}


def command(argv: list[str]) -> int:
    _, given = split(argv, __doc__, FLAGS)
    need(given, FLAGS, "config", "lengths", "workdir")
    from experiments.configfile import ConfigFile

    file = ConfigFile(given["config"])
    overrides = [(name.removeprefix("config."), text) for name, text in given.items() if name.startswith("config.")]
    if any(name == "data.seq_len" for name, _ in overrides):
        raise ConfigError("--config.data.seq_len", "is not allowed; --lengths sets it")
    arms = trials(file, overrides, given["lengths"])
    from experiments import environment

    environment.prepare()
    from experiments.curves import Limits, available

    limits = Limits(given.get("seconds", 60.0), int(given["memory"] * 2**30) if "memory" in given else available())
    folder: Path = given["workdir"]
    measure(arms, given.get("work", WORKS), limits, folder, given["config"])
    print(f"figure: {folder / 'benchmark.png'}")
    return 0


def trials(file: Any, overrides: Sequence[tuple[str, str]], lengths: Sequence[int]) -> dict[str, list]:
    """Arm -> [(length, its trial at that length, or why there is none)]. No jax."""
    from experiments.configfile import read_overrides
    from experiments.study import plan

    arms: dict[str, list[tuple[int, Trial | str]]] = {}
    for length in lengths:
        study = plan(file, read_overrides([*overrides, ("data.seq_len", str(length))]), lambda data: None)
        for run in study.runs:
            if all(at != length for at, _ in arms.get(run.arm, [])):
                arms.setdefault(run.arm, []).append((length, run.trial))
        for refused in study.refused:
            name = str(refused.changed.get("arm", f"point {refused.number}"))
            arms.setdefault(name, []).append((length, str(refused.error)))
    return arms


def measure(arms: dict[str, list], works: Sequence[str], limits: Any, folder: Path, config: Path) -> list[Point]:
    """All curves. The table is written anew after each point and the figure after each curve, so that what was measured
    is there if this is stopped."""
    import jax

    from experiments.curves import curve
    from experiments.curves_figure import table, write, written

    stacks = {(arm, trial.model.pattern) for arm, of in arms.items() for _, trial in of if not isinstance(trial, str)}
    kept = [point for point in written(folder) if point.work not in works and (point.arm, point.pattern) in stacks]
    found: list[Point] = []
    tty = sys.stderr.isatty()

    def say(message: str) -> None:
        if tty:
            print(f"\r\x1b[2K{message}", end="", file=sys.stderr, flush=True)

    for work in works:
        for arm, listed in arms.items():
            batch = next((trial.data.batch_size for _, trial in listed if not isinstance(trial, str)), 1)
            for point in curve(arm, work, listed, limits, batch, say):
                say("")
                print(line(point), flush=True)
                found.append(point)
                table(folder, in_order(kept + found))
            jax.clear_caches()
            write(folder, in_order(kept + found), config)
    return found


def in_order(points: Sequence[Point]) -> list[Point]:
    """Work by work; within one as they are."""
    return sorted(points, key=lambda point: WORKS.index(point.work))


def line(point: Point) -> str:
    """A point as a line of the terminal."""
    head = f"{point.arm:<18} {point.work:<8} {point.length:>9,}"
    if point.seconds is None:
        return f"{head}  stops: {point.stopped}"
    each = "a token" if point.work == "decode" else "a call"
    return f"{head}  {point.seconds:>10.4g} s {each}  {(point.peak_bytes or 0) / 2**20:>10,.0f} MiB"


if __name__ == "__main__":
    main(command)
