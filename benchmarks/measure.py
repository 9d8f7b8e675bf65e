"""Times of pieces of work that take turns, so that a busy machine slows all of them.

    times = paired({"ours": lambda: jax.block_until_ready(f(x)), "theirs": lambda: g(y)}, rounds=9)
    times["ours"].faster_than(times["theirs"])      Ratio(median=12.1, low=11.8, high=12.5)

Each round runs every piece once. Three times are taken: the clock's (`wall`), the CPU seconds of all threads (`cpu`)
and those of the busiest thread (`busiest`), which is what the clock would say on a machine that is free.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

CLOCKS = ("wall", "cpu", "busiest")


class Ratio(NamedTuple):
    """The median of ratios within rounds, and their quartiles."""

    median: float
    low: float
    high: float


@dataclass
class Times:
    """Seconds of one piece of work, a number a round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    busiest: list[float] = field(default_factory=list)

    def faster_than(self, other: Times, clock: str = "wall") -> Ratio:
        """How many times the seconds of `other` are those of this one: above 1 this one is faster."""
        pairs = zip(getattr(other, clock), getattr(self, clock), strict=True)
        return spread([theirs / ours for theirs, ours in pairs])

    def ms(self) -> dict[str, float]:
        """Median milliseconds by each clock."""
        return {clock: 1e3 * statistics.median(getattr(self, clock)) for clock in CLOCKS}


def spread(values: list[float]) -> Ratio:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return Ratio(statistics.median(values), low, high)


def paired(
    work: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm: int = 1,
    pause: float = 0.02,
    again: Collection[str] = (),
) -> dict[str, Times]:
    """Seconds of each piece, after `warm` rounds that are not timed: programs are compiled in them, and the heap finds
    room for the arrays of all. A piece must end when its work has ended.

    pause: seconds of rest before each, in which the threads of the piece before it go to sleep; after one of gigabytes
    its memory goes back to the kernel in it, which takes a tenth of a second for each.
    again: pieces that run once more, untimed, before their time is taken: what the piece before them gave back to the
    kernel would have to be mapped anew, and what it pushed out of the cache read again.
    """
    times = {name: Times() for name in work}
    for _ in range(warm):
        for run in work.values():
            run()
    for _ in range(rounds):
        for name, run in work.items():
            time.sleep(pause)
            if name in again:
                run()
            before = _threads()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].wall.append(time.perf_counter() - wall)
            times[name].cpu.append(time.process_time() - cpu)
            times[name].busiest.append(max(ran - before.get(thread, 0) for thread, ran in _threads().items()) / 1e9)
    return times


def _threads() -> dict[str, int]:
    """Nanoseconds that each thread of this process has run (Linux; elsewhere one thread: all of them)."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return {"all": time.process_time_ns()}
    ran = {}
    for task in tasks.iterdir():
        try:
            ran[task.name] = int((task / "schedstat").read_text().split()[0])
        except OSError:  # a thread that has ended
            continue
    return ran


def temporaries(compiled: object) -> float:
    """MiB of the temporaries of a compiled program, which do not depend on how busy the machine is."""
    return compiled.memory_analysis().temp_size_in_bytes / 2**20  # type: ignore[attr-defined]
