"""Worker processes for the runs of a study: who trains what, and what happens when one fails, dies or is told to stop.

The controller is one thread that waits for answers, deaths and signals; it never imports jax. A run that fails is
written down and the others go on. Deaths are met by the same rule always: the run is begun again from its checkpoint,
until three starts in a row reached no new step.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.failures import is_out_of_memory
from experiments.runs import RunFolder
from experiments.versions import code
from experiments.worker import TRAINER

STARTS = 3
"""Starts of a run without a new checkpoint after which it is given up."""

GRACE = 120.0
"""Seconds that workers have for saving when they are told to stop."""

AGAIN = 2.0
"""Seconds between two tellings."""

LOG_LINES = 20


@dataclass(frozen=True)
class Task:
    """A run to train. Tasks of one `group` share a compiled program; `size` (FLOPs) puts long ones first."""

    run: RunFolder
    group: str
    size: float = 1.0
    width: int = 1
    """Of its group: how many a worker trains side by side (experiments.population), 0: as many as fit."""


@dataclass(eq=False)
class Worker:
    """A process, what it is training and which groups it has compiled."""

    process: subprocess.Popen
    tasks: dict[str, Task] = field(default_factory=dict)
    """By the paths of their runs; several where they train side by side."""
    reached: dict[str, int] = field(default_factory=dict)
    """The last checkpoint of each run before this start."""
    groups: dict[str, None] = field(default_factory=dict)
    unread: bytes = b""
    leaving: bool = False
    """It said that it ends, and takes no more tasks."""

    @property
    def answers(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()


class Queue:
    """Tasks by group. A worker stays with the groups it has compiled; with none left it helps the longest one."""

    def __init__(self, tasks: Sequence[Task]):
        self.groups: dict[str, collections.deque[Task]] = {}
        for task in sorted(tasks, key=lambda task: -task.size):
            self.groups.setdefault(task.group, collections.deque()).append(task)

    def __len__(self) -> int:
        return sum(map(len, self.groups.values()))

    def take(self, mine: Mapping[str, None], of_others: set[str]) -> Task | None:
        """The next task for a worker that has compiled `mine`, while other workers are at `of_others`."""
        left = {name: sum(task.size for task in tasks) for name, tasks in self.groups.items() if tasks}
        if not left:
            return None

        def preference(name: str) -> tuple[int, float]:
            return (0 if name in mine else 2 if name in of_others else 1, -left[name])

        return self.groups[min(left, key=preference)].popleft()

    def beside(self, task: Task) -> list[Task]:
        """The others of its group, where they train side by side with it: those that fit wait in the worker."""
        if task.width == 1:
            return []
        others = list(self.groups[task.group])
        self.groups[task.group].clear()
        return others

    def back(self, task: Task) -> None:
        self.groups.setdefault(task.group, collections.deque()).appendleft(task)


class Pool:
    """`run(tasks)` trains them all, with workers that live from one call to the next."""

    def __init__(self, workers: int, *, trainer: str = TRAINER, environment: Mapping[str, str] | None = None):
        self.size = workers
        self.trainer = trainer
        self.environment = dict(os.environ if environment is None else environment)
        self.workers: list[Worker] = []
        self.starts: dict[Path, int] = {}
        self.signal: int | None = None
        """The signal that asked to stop, if one did."""
        self._selector = selectors.DefaultSelector()
        self._queue = Queue([])
        self._deadline: float | None = None
        self._told = float("-inf")
        self._oom_kills = _oom_kills()

    def __enter__(self) -> Pool:
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._handlers = {number: signal.signal(number, self._noted) for number in (signal.SIGINT, signal.SIGTERM)}
        self._descriptor = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            assert worker.process.stdin is not None
            with contextlib.suppress(OSError):
                worker.process.stdin.close()  # an idle worker ends by itself
            if worker.tasks:
                worker.process.kill()
        for worker in self.workers:
            try:
                worker.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            assert worker.process.stdout is not None
            worker.process.stdout.close()
        signal.set_wakeup_fd(self._descriptor)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._selector.close()
        self._wake.close()
        self._waker.close()

    # ------------------------------------------------------------------------------------------------------ the loop
    def run(self, tasks: Sequence[Task], tick: Callable[[], None] = lambda: None, every: float = 1.0) -> None:
        """Trains all tasks; returns when they have ended or, with `self.signal` set, when all have saved.

        `tick` is called about `every` seconds and after each answer.
        """
        self._queue = Queue(tasks)
        self._fill()
        while any(worker.tasks for worker in self.workers):
            for key, _ in self._selector.select(timeout=every):
                if key.fileobj is self._wake:
                    with contextlib.suppress(BlockingIOError):
                        self._wake.recv(4096)
                else:
                    self._hear(key.data)
            if self.signal is not None:
                self._stop()
            else:
                self._fill()
            tick()

    def _fill(self) -> None:
        """Gives work to idle workers and starts missing ones, while there is work."""
        staying = [worker for worker in self.workers if not worker.leaving]
        idle = [worker for worker in staying if not worker.tasks]
        while self.signal is None and len(self._queue) and (idle or len(staying) < self.size):
            worker = idle.pop() if idle else None
            others = {task.group for each in self.workers for task in each.tasks.values()}
            task = self._queue.take(worker.groups if worker else {}, others)
            assert task is not None
            if worker is None:
                worker = self._start(task)
                staying.append(worker)
            self._give(worker, [task, *self._queue.beside(task)])

    def _start(self, task: Task) -> Worker:
        command = [sys.executable, "-m", "experiments.worker", f"--parent={os.getpid()}", f"--trainer={self.trainer}"]
        task.run.path.mkdir(parents=True, exist_ok=True)
        with open(task.run.log, "ab") as log:  # until it takes its first task
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                process_group=0,  # Ctrl-C of the terminal is the controller's alone
            )
        worker = Worker(process)
        self.workers.append(worker)
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)
        return worker

    def _give(self, worker: Worker, tasks: Sequence[Task]) -> None:
        worker.tasks = {str(task.run.path): task for task in tasks}
        worker.reached = {path: task.run.reached() for path, task in worker.tasks.items()}
        worker.groups[tasks[0].group] = None
        paths, width = list(worker.tasks), tasks[0].width
        line = {"run": paths[0]} if width == 1 else {"runs": paths, "width": width}
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps(line).encode() + b"\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: noticed as the end of its answers

    # --------------------------------------------------------------------------------------------- answers and deaths
    def _hear(self, worker: Worker) -> None:
        data = os.read(worker.answers, 65536)
        if not data:
            return self._died(worker)
        *lines, worker.unread = (worker.unread + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            task = worker.tasks.pop(answer["run"], None)
            if task is None:
                continue
            worker.leaving |= answer.get("phase") == "oom" or answer.get("outcome") == "stopped"
            self.starts.pop(task.run.path, None)
            if "error" in answer:
                self._failed(task, answer["phase"], answer["error"])
            elif answer["outcome"] == "stopped" and self.signal is None:  # somebody told this worker alone
                self._queue.back(task)

    def _died(self, worker: Worker) -> None:
        status = worker.process.wait()
        self._selector.unregister(worker.answers)
        for stream in (worker.process.stdin, worker.process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        self.workers.remove(worker)
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        kills, self._oom_kills = self._oom_kills, _oom_kills()
        for task in worker.tasks.values() if self.signal is None else ():
            if task.run.result is None:
                self._left(worker, task, how, of_memory=self._oom_kills > kills)

    def _left(self, worker: Worker, task: Task, how: str, *, of_memory: bool) -> None:
        """A run that its worker was training, or was going to, when it died."""
        if of_memory or is_out_of_memory("\n".join(last_lines(task.run.log, LOG_LINES))):
            return self._failed(task, "oom", f"the worker was {how}: memory was not enough")
        progressed = task.run.reached() > worker.reached[str(task.run.path)]
        starts = self.starts[task.run.path] = 0 if progressed else self.starts.get(task.run.path, 0) + 1
        task.run.event("died", how=how, starts=starts)
        if starts < STARTS:
            self._queue.back(task)
        else:
            self._failed(task, "no progress", f"no progress in {starts} starts: the worker was {how}")

    def _failed(self, task: Task, phase: str, error: str) -> None:
        run = task.run
        run.event("error", phase=phase, error=error)
        run.fail(phase, error, log=last_lines(run.log, LOG_LINES), command=command_for(run), code=code())

    # ---------------------------------------------------------------------------------------------------------- stop
    def _noted(self, number: int, _frame: Any) -> None:
        if self.signal is not None:  # the second time: at once
            for worker in self.workers:
                worker.process.kill()
            os._exit(128 + number)
        self.signal = number

    def _stop(self) -> None:
        """Tells the workers to save, and kills those that have not within the grace."""
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + GRACE
        if now > self._deadline:
            for worker in self.workers:
                worker.process.kill()
        elif now > self._told + AGAIN:  # again and again: one that was just loading its libraries did not hear
            self._told = now
            for worker in self.workers:
                worker.process.terminate()


def command_for(run: RunFolder) -> str:
    """The command that trains this one run again."""
    return f"python -m experiments.train --trial={run.path / 'config.json'}"


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, at most the end of it that fits 64 KiB."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


def _oom_kills() -> int:
    """Processes that the kernel killed for memory in this control group, 0 where that is not told."""
    for name in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError):
            rows = dict(line.split() for line in Path(name).read_text().splitlines())
            return int(rows.get("oom_kill", 0))
    return 0


RETRIED = ("no progress", "files", "held", "start")
"""Phases of failures that the same command takes up again: not (or not surely) the run's own fault."""


def to_retry(run: RunFolder, *, everything: bool) -> bool:
    """Whether a failed run is begun again: a fault from outside, other code since then, or all are asked for."""
    failure = run.failure or {}
    return everything or failure.get("phase") in RETRIED or failure.get("code") != code()
