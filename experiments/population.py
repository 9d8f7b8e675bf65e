"""Members of a group side by side: one program trains as many runs as fit, each with its own seed, rates and data.

    train_population(runs, programs, asked, begin=..., ended=...)

The states of the members are the rows of a stack that one step moves on (`vmap`). Everything else of a member is its
own, as if it trained alone: run folder, rows, evaluations, checkpoints, resume. Members need not stand at the same
step. One that has ended or diverged leaves its row to the next that waits. A member's results are those of the run
alone to about 1e-5: sums are taken in another order.

On a CPU nothing is won by it (a step is already as wide as the machine), so there runs train one after another unless
`train.population` asks for it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import Trial
from experiments.failures import is_out_of_memory
from experiments.loop import Outcome, Source, Training, begun
from experiments.runs import RunFolder
from experiments.signals import Stop
from experiments.step import Program

Begin = Callable[[RunFolder], contextlib.AbstractContextManager[Trial]]
"""Claims a run while its block runs, and gives its trial."""

Ended = Callable[[RunFolder, "Outcome | Exception"], None]
"""Told of each member how it ended."""

SHARE = 0.9
"""Of the memory that is free: what a compiled step may take."""


def train_population(
    runs: Sequence[RunFolder],
    programs: dict[str, Program],
    asked: int,
    *,
    begin: Begin,
    ended: Ended,
    data: Callable[[Trial], Source] | None = None,
) -> None:
    """Trains `runs`, which are of one group, at most `asked` of them side by side (0: as many as fit in memory).

    Each is `ended` exactly once. Where memory is not enough the width is halved and the members go on from their
    checkpoints; where it is not enough for one, that one has ended by the error.
    """
    waiting = collections.deque(runs)
    width = asked or len(runs)
    with Stop() as stop:
        while waiting and not stop.asked:
            population = _Population(waiting, programs, min(width, len(waiting)), stop, begin, ended, data)
            try:
                population.train()
            except Exception as error:
                if not is_out_of_memory(str(error)) or population.width == 1:
                    raise
                waiting.extendleft(reversed(population.left))
                width = population.width // 2
        for run in waiting:
            ended(run, "stopped")


class Member(Training):
    """A run whose state is a row of a stack, as soon as it has been placed."""

    row: Callable[[], Any] | None = None
    batches: Any = None
    ready: Any = None
    """Its next batch, on the host."""

    @property
    def state(self) -> Any:
        return self._own if self.row is None else self.row()

    @state.setter
    def state(self, value: Any) -> None:
        self._own = value

    def place(self, row: Callable[[], Any]) -> None:
        self.row, self._own = row, None

    def fetch(self) -> None:
        with self.recorder.waiting_for_data():
            self.ready = next(self.batches)


class _Population:
    """Members in the rows of one stack, from the first step to a stop, to the end of all, or to an error of all."""

    def __init__(
        self,
        waiting: collections.deque[RunFolder],
        programs: dict[str, Program],
        width: int,
        stop: Stop,
        begin: Begin,
        ended: Ended,
        data: Callable[[Trial], Source] | None,
    ):
        self.waiting, self.programs, self.width, self.stop = waiting, programs, width, stop
        self.begin, self.ended, self.data = begin, ended, data
        self.members: dict[int, tuple[Member, ExitStack]] = {}
        self.states: Any = None
        self.values: list[Any] = []
        self.idle: Mapping[str, np.ndarray] = {}
        """What rows without a member read."""

    @property
    def left(self) -> list[RunFolder]:
        """Members that have not ended, at an error of all."""
        return [member.run for member, _ in self.members.values()]

    def train(self) -> None:
        try:
            self._fill(range(self.width))
            while self.members and not self.stop.asked:
                self._step()
            for row in list(self.members):
                self._leave(row, True)
        finally:
            for member, stack in self.members.values():
                with contextlib.suppress(Exception):
                    member.recorder.close(None)
                stack.close()

    # ------------------------------------------------------------------------------------------------------- the rows
    def _fill(self, rows: Sequence[int]) -> None:
        """Gives free rows to runs that wait."""
        for row in rows:
            while self.waiting and not self.stop.asked and row < self.width and row not in self.members:
                self._enter(row, self.waiting.popleft())

    def _enter(self, row: int, run: RunFolder) -> None:
        """A run begins in a row; one that cannot, or has nothing left to do, ends here."""
        with ExitStack() as stack:
            try:
                trial = stack.enter_context(self.begin(run))
                if run.result is not None:
                    return self.ended(run, run.result["status"])
                data = self.data(trial) if self.data else None
                member: Member = stack.enter_context(
                    begun(trial, run, self.programs, stop=self.stop, data=data, kind=Member)
                )
                member.recorder.open()
                if member.is_over():
                    self.members[row] = member, stack.pop_all()
                    return self._leave(row, True)
                member.batches = stack.enter_context(member.data.batches(member.step))
                member.fetch()
                self._place(row, member)
            except Exception as error:
                if is_out_of_memory(str(error)):
                    self.waiting.appendleft(run)
                    raise
                traceback.print_exc()
                return self.ended(run, error)
            self.members[row] = member, stack.pop_all()

    def _place(self, row: int, member: Member) -> None:
        program = member.program
        if self.states is None:
            self.width = fitting(program, member.ready, self.width)
            self.states = program.empty(self.width)
            self.values = [member.values] * self.width
            self.idle = member.ready
        member.run.create({**member.run.record, "population": self.width})
        member.run.event("population", width=self.width, row=row)
        self.states = program.placed(self.states, row, member.state)
        self.values[row] = member.values
        self.stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.values)
        member.place(lambda: program.row(self.states, row))

    def _leave(self, row: int, finite: bool) -> None:
        """A member commits its result or saves, and its row is free. finite: all steps that were looked at."""
        member, stack = self.members[row]
        outcome: Outcome | Exception
        result: dict[str, Any] | None = {"status": "failed"}
        with stack:
            try:
                result = member.end(finite and member.look())
                outcome = "stopped" if result is None else result["status"]
            except Exception as error:
                if is_out_of_memory(str(error)):
                    raise
                traceback.print_exc()
                outcome = error
            member.recorder.close(result)
        del self.members[row]
        self.ended(member.run, outcome)

    # ------------------------------------------------------------------------------------------------------- the steps
    def _step(self) -> None:
        """One step of every row, then what each member does after it."""
        program = next(iter(self.members.values()))[0].program
        given = {row: member.ready for row, (member, _) in self.members.items()}
        rows = [given.get(row, self.idle) for row in range(self.width)]
        batch = {name: np.stack([each[name] for each in rows]) for name in self.idle}
        for member, _ in self.members.values():
            member.recorder.dispatched(member.device_waits)
        self.states, metrics = program.train_population(self.states, program.put_population(batch), self.stacked)
        numbers = functools.cache(functools.partial(jax.device_get, metrics))
        for row, (member, _) in list(self.members.items()):
            self._after(row, member, given[row].get("labels"), functools.partial(_of_row, numbers, row))
            member.device_waits = metrics["finite"].is_ready
        self._fill([row for row in range(self.width) if row not in self.members])

    def _after(self, row: int, member: Member, labels: np.ndarray | None, metrics: Callable[[], Any]) -> None:
        try:
            member.step += 1
            finite = member.took(metrics, labels)
            if finite and member.step < member.last:
                return member.fetch()
        except Exception as error:
            if is_out_of_memory(str(error)):
                raise
            traceback.print_exc()
            _, stack = self.members.pop(row)
            member.recorder.close({"status": "failed"})
            with contextlib.suppress(Exception):
                stack.close()
            return self.ended(member.run, error)
        self._leave(row, finite)


def _of_row(numbers: Callable[[], Mapping[str, np.ndarray]], row: int) -> dict[str, Any]:
    return {name: values[row] for name, values in numbers().items()}


# --- how many ---------------------------------------------------------------------------------------------------------


def fitting(program: Program, batch: Mapping[str, Any], width: int, limit: int | None = None) -> int:
    """The most members, up to `width`, whose compiled step takes no more memory than is free.

    A member takes its state at least, so the first program that is compiled is not wider than that allows. limit:
    bytes, instead of what the device says; where neither is known it is `width`.
    """
    limit = free_bytes() if limit is None else limit
    if limit is None:
        return width
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.shapes))
    width = max(1, min(width, int(limit // max(state, 1))))
    while width > 1:
        needed = program.bytes_of_population(batch, width)
        if needed is None or needed <= limit:
            break
        width = max(1, min(width - 1, int(width * limit / needed)))
    return width


def free_bytes() -> int | None:
    """Of the device, as far as it says; None on a CPU, whose width is asked for."""
    about = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in about:
        return None
    return int(SHARE * (about["bytes_limit"] - about.get("bytes_in_use", 0)))
