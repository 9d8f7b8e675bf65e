"""How often a study compiled, and how well its time was used, from the events of its runs. No jax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tally:
    """What a study compiled: distinct programs, compilations, and how often a program came from the cache."""

    programs: int
    compilations: int
    from_cache: int

    def __bool__(self) -> bool:
        return self.programs > 0

    def __str__(self) -> str:
        plural = "" if self.compilations == 1 else "s"
        return f"{self.compilations} compilation{plural} of {self.programs} programs, {self.from_cache} from the cache"


def tally(events: Iterable[Mapping[str, Any]]) -> Tally:
    """Of the events of all runs."""
    made = [event for event in events if event["event"] == "compiled" and "key" in event]
    cached = sum(bool(event["cached"]) for event in made)
    return Tally(len({event["key"] for event in made}), len(made) - cached, cached)


def shares(events: Iterable[Mapping[str, Any]]) -> str:
    """How much of the time between two speeds was lost, on average over all speeds of all runs; '' without any."""
    speeds = [event for event in events if event["event"] == "speed" and "data_wait_share" in event]
    if not speeds:
        return ""
    data, loop = (sum(e[name] for e in speeds) / len(speeds) for name in ("data_wait_share", "overhead_share"))
    return f"steps waited {data:.1%} of their time for data, and {loop:.1%} at most for the loop"
