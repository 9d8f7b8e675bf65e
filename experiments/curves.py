"""Time and memory of arms against length: which points are measured, and when a curve stops.

A curve is one arm at one work (hybrid/memory.py: prefill, decode, train). Each point is compiled first; what the
program will take is then known, and it runs only where that fits and where the points before let expect that it is
quick enough.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config import Trial
from hybrid.lazy import jax, jnp

ROUNDS = 3
ENOUGH = 5.0
"""Seconds after which a point is not measured again."""
TOKENS = 16
"""That are appended, for the time of one."""


@dataclass(frozen=True)
class Limits:
    seconds: float
    """For one point."""
    bytes: int


@dataclass(frozen=True)
class Point:
    """One point of a curve; numbers that were not measured are None, and `stopped` says why."""

    arm: str
    pattern: str
    work: str
    length: int
    batch: int
    parameters: int
    seconds: float | None = None
    """Of one call: of all tokens (prefill, train), or of one token (decode). The median of up to three."""
    peak_bytes: int | None = None
    """Arguments, results and temporaries of the compiled program, as the compiler says."""
    compile_seconds: float | None = None
    stopped: str = ""

    def row(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def available() -> int:
    """Bytes of memory that are free on this machine for use (Linux; elsewhere 8 GiB)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 8 * 2**30
    found = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines)}
    return int(found["MemAvailable"]) * 1024


def expected(lengths: Sequence[int], seconds: Sequence[float], length: int) -> float:
    """Seconds at `length` by the slope of the last two points on logarithmic axes, no less steep than linear; 0 while
    there is no point."""
    if not seconds:
        return 0.0
    slope = 1.0
    if len(seconds) > 1 and lengths[-1] > lengths[-2]:
        slope = max(1.0, math.log(seconds[-1] / seconds[-2]) / math.log(lengths[-1] / lengths[-2]))
    return seconds[-1] * (length / lengths[-1]) ** slope


def curve(
    arm: str,
    work: str,
    trials: Sequence[tuple[int, Trial | str]],
    limits: Limits,
    batch: int,
    say: Callable[[str], None] = lambda message: None,
) -> Iterator[Point]:
    """The points of one curve, by rising length. trials: (length, the trial made for it, or why there is none).

    After the first point that would take too long or too much, nothing longer is tried.
    """
    from hybrid.accounting import parameters

    lengths: list[int] = []
    calls: list[float] = []
    for length, trial in trials:
        if isinstance(trial, str):
            yield Point(arm, "", work, length, batch, 0, stopped=trial)
            return
        at: dict[str, Any] = {
            "arm": arm, "pattern": trial.model.pattern, "work": work, "length": length, "batch": batch,
            "parameters": parameters(trial.model).total,
        }  # fmt: skip
        guess = expected(lengths, calls, length)
        if guess > limits.seconds:
            yield Point(**at, stopped=f"would take about {guess:.0f} s of {limits.seconds:.0f}")
            return
        say(f"{arm}: {work} at {length:,} (about {guess:.1f} s)" if guess else f"{arm}: {work} at {length:,}")
        point, call = measured(at, trial, limits)
        yield point
        if point.seconds is None:
            return
        lengths.append(length)
        calls.append(call)


def measured(at: dict[str, Any], trial: Trial, limits: Limits) -> tuple[Point, float]:
    """Compiles; runs where it fits. Beside the point: the seconds of the longest call that it took, which for a token
    is that of the prompt before it."""
    from hybrid.memory import lowered, of_compiled
    from hybrid.validation import ConfigError

    work, length, batch = at["work"], at["length"], at["batch"]
    begun = time.perf_counter()
    try:
        program = lowered(work, trial.model, length, batch).compile()
        reader = lowered("prefill", trial.model, length, batch).compile() if work == "decode" else program
    except ConfigError as error:
        return Point(**at, stopped=str(error)), 0.0
    compiling = time.perf_counter() - begun
    peak = of_compiled(program).peak
    needed = max(peak, of_compiled(reader).peak)
    if needed > limits.bytes:
        text = f"would need {needed / 2**30:.1f} GiB of {limits.bytes / 2**30:.1f}"
        return Point(**at, peak_bytes=peak, compile_seconds=compiling, stopped=text), 0.0
    times, longest = _times(work, program, reader, trial, length, batch)
    return Point(**at, seconds=statistics.median(times), peak_bytes=peak, compile_seconds=compiling), longest


def _times(work: str, program: Any, reader: Any, trial: Trial, length: int, batch: int) -> tuple[list[float], float]:
    """Seconds of calls, the first of which is left out where it is quick, and of the longest of all."""
    from hybrid.params import init

    params = jax.jit(init, static_argnums=0)(trial.model, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (batch, length), 0, trial.model.vocab_size)
    if work == "decode":
        return _decoding(program, reader, params, tokens)
    times: list[float] = []
    while len(times) <= ROUNDS and sum(times) < ENOUGH:
        begun = time.perf_counter()
        jax.block_until_ready(program(params, tokens))
        times.append(time.perf_counter() - begun)
    return times[1:] or times, max(times)


def _decoding(program: Any, reader: Any, params: Any, tokens: Any) -> tuple[list[float], float]:
    """Seconds of a token each, written over and over at the last place of a full state: each costs what the last token
    of the length costs. And the seconds of the prompt."""
    begun = time.perf_counter()
    _, state = jax.block_until_ready(reader(params, tokens))  # or the first token would wait for the prompt
    reading = time.perf_counter() - begun
    last = tokens[:, -1:]
    times: list[float] = []
    while len(times) <= ROUNDS and sum(times) * TOKENS < ENOUGH:
        begun = time.perf_counter()
        for _ in range(TOKENS):
            state = dataclasses.replace(state, room=jnp.ones_like(state.room))
            out, state = program(params, last, state)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - begun) / TOKENS)
    return times[1:] or times, max(reading, *times)
