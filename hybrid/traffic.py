"""What devices say to each other in a compiled program, read from its text. No jax.

    lines = traffic(jax.jit(step).lower(*arguments).compile().as_text())
    total(lines)                                        bytes that a device receives in one run
    by_kind(lines)["all-gather"].count

A collective in a loop counts as often as the loop runs. Bytes are those that a device receives, in the mean over the
devices, if each collective is done as a ring: of g devices that share an array of n bytes, an all-gather and a
reduce-scatter bring each (g - 1)/g n, an all-reduce is both one after the other, an all-to-all brings (g - 1)/g of what
a device has; a permutation brings what is sent. No way of doing them brings less.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
"""Of types whose name does not end with its bits."""


@dataclass(frozen=True)
class Traffic:
    """The collectives of one kind, and the loops that they stand in."""

    kind: str
    count: int
    bytes: float
    loops: tuple[int, ...] = ()
    """How often each loop around them runs, outermost first; 0 where the text does not say, which counts as once."""


def traffic(text: str) -> list[Traffic]:
    """Of the text of a compiled program (`compiled.as_text()`), a line for each kind and nest of loops."""
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])  # of the module, a long line
    devices = int(partitions[1]) if partitions else 1
    computations, entry = _computations(text)
    found: dict[tuple[str, tuple[int, ...]], list[float]] = defaultdict(list)
    for kind, size, loops in _walk(computations, entry, devices, ()):
        found[kind, loops].append(size)
    lines = []
    for (kind, loops), sizes in found.items():
        times = math.prod(max(trips, 1) for trips in loops)
        lines.append(Traffic(kind, times * len(sizes), times * sum(sizes), loops))
    return sorted(lines, key=lambda line: (line.loops, line.kind))


def by_kind(lines: Iterable[Traffic]) -> dict[str, Traffic]:
    """One line for each kind, whatever loops it stands in."""
    totals: dict[str, Traffic] = {}
    for line in lines:
        so_far = totals.get(line.kind, Traffic(line.kind, 0, 0.0))
        totals[line.kind] = Traffic(line.kind, so_far.count + line.count, so_far.bytes + line.bytes)
    return totals


def total(lines: Iterable[Traffic]) -> float:
    """Bytes."""
    return sum(line.bytes for line in lines)


# --- the text ---------------------------------------------------------------------------------------------------------

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the one that is run."""
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (head := _HEAD.match(line)):
            lines = found[head[2]] = []
            entry = head[2] if head[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return found, entry


def _walk(
    computations: Mapping[str, list[str]], name: str, devices: int, loops: tuple[int, ...]
) -> Iterator[tuple[str, float, tuple[int, ...]]]:
    """(kind, bytes of one run, loops) of every collective that is reached from a computation."""
    for line in computations.get(name, ()):
        if collective := _COLLECTIVE.search(line):
            yield collective[2], _received(line, collective, devices), loops
        elif loop := _LOOP.search(line):
            trips = _TRIPS.search(line)
            yield from _walk(computations, loop[2], devices, (*loops, int(trips[1]) if trips else 0))
        else:
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for inner in dict.fromkeys(called):
                yield from _walk(computations, inner, devices, loops)


def _received(line: str, collective: re.Match[str], devices: int) -> float:
    """Bytes that a device receives, the mean over the devices."""
    kind = collective[2]
    arrays = [_bytes(*shape) for shape in _SHAPE.findall(collective[1])]
    if collective[3] and kind in ("all-gather", "collective-permute"):  # of an asynchronous one: operand, result, ...
        arrays = [max(arrays)] if kind == "all-gather" else arrays[:1]
    size = sum(arrays)
    if kind == "collective-permute":
        pairs = _PAIRS.search(line)
        sent = [pair for pair in re.findall(r"(\d+),(\d+)", pairs[1] if pairs else "") if pair[0] != pair[1]]
        return size * len(sent) / devices
    group = _group(line, devices)
    share = (group - 1) / group
    return {"all-reduce": 2 * share, "reduce-scatter": group * share}.get(kind, share) * size


def _group(line: str, devices: int) -> int:
    if listed := _LISTED.search(line):
        return listed[1].count(",") + 1
    counted = _COUNTED.search(line)
    return int(counted[1]) if counted else devices


def _bytes(dtype: str, sizes: str) -> int:
    bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 8)
    return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
