"""A worker: one long-lived process that trains runs one after another, so that a group's program is compiled once.

    python -m experiments.worker --parent=PID [--trainer=MODULE:FUNCTION]

One JSON line a task on stdin, {"run": path}, or {"runs": [paths], "width": n} for runs that train side by side. One
JSON line an answer on stdout for each run, {"run", "outcome"} or {"run", "phase", "error"}. What it prints goes to the
log.txt of the (first) run. It ends with its controller: at the end of stdin, or by the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.environment import keep_memory
from experiments.failures import one_line, phase_of
from experiments.runs import RunFolder

Trainer = Callable[..., str]
"""train(trial, run, programs) -> "done" | "diverged" | "stopped"."""

TRAINER = "experiments.loop:train"

KEPT_PROGRAMS = 8
"""Compiled groups that a worker keeps; older ones are compiled again from the cache on disk."""


def trainer_named(name: str) -> Trainer:
    """The function `MODULE:FUNCTION`."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def train_run(run: RunFolder, trainer: Trainer, programs: dict) -> dict[str, Any]:
    """Trains one run under its claim and says how it ended: {"outcome"} or {"phase", "error"}. Never raises.

    Phases are those of experiments.failures.
    """
    phase = "start"
    try:
        with claimed(run) as trial:
            phase = "train"
            outcome = str(trainer(trial, run, programs))
            if outcome != "stopped" and run.result is None:
                raise RuntimeError(f"training ended as {outcome!r} without a result")
            while len(programs) > KEPT_PROGRAMS:
                programs.pop(next(iter(programs)))
            return {"outcome": outcome}
    except Exception as error:
        traceback.print_exc()
        return {"phase": phase_of(error, phase), "error": one_line(error)}


def train_runs(
    runs: Sequence[RunFolder], width: int, programs: dict, tell: Callable[[RunFolder, dict[str, Any]], None]
) -> None:
    """Trains runs of one group side by side (experiments.population) and tells how each ended. Never raises."""
    from experiments.population import train_population

    told: set[Path] = set()

    def ended(run: RunFolder, outcome: str | Exception) -> None:
        told.add(run.path)
        if isinstance(outcome, Exception):
            tell(run, {"phase": phase_of(outcome, "train"), "error": one_line(outcome)})
        else:
            tell(run, {"outcome": str(outcome)})

    try:
        train_population(runs, programs, width, begin=claimed, ended=ended)
    except Exception as error:  # of all of them
        traceback.print_exc()
        for run in runs:
            if run.path not in told:
                ended(run, error)


@contextlib.contextmanager
def claimed(run: RunFolder) -> Iterator[Any]:
    """The trial of a run, which nobody else trains while the block runs."""
    with run.claim():
        run.retry()
        yield _begin(run)


def _begin(run: RunFolder) -> Any:
    """The trial of the folder."""
    from experiments.config import trial_from
    from experiments.versions import code

    record = run.record
    changed = {"code_changed": True} if record["versions"].get("code") != code() else {}
    run.event("start", pid=os.getpid(), host=socket.gethostname(), code=code(), **changed)
    return trial_from(record["trial"])


# --- the process ------------------------------------------------------------------------------------------------------


def die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent dies (Linux); elsewhere the end of stdin does it."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


class Inbox:
    """Lines of stdin, read by a thread: the end of it is noticed during training too, and ends the process."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._tasks.put(line)
        os._exit(0)

    def __iter__(self) -> Iterator[tuple[list[RunFolder], int]]:
        """(runs, how many of them side by side; 0: as many as fit)."""
        while (line := self._tasks.get()) is not None:
            task = json.loads(line)
            yield [RunFolder(path) for path in task.get("runs") or [task["run"]]], task.get("width", 1)

    def close(self) -> None:
        self._tasks.put(None)


@contextlib.contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Everything that the process prints, libraries in C too, is added to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main(arguments: dict[str, str]) -> int:
    die_with(int(arguments["parent"]))
    keep_memory()  # before the inbox has its thread
    answers = os.dup(1)
    os.dup2(2, 1)
    inbox = Inbox()
    stop = threading.Event()

    def stop_soon(signum: int, _frame: Any) -> None:
        stop.set()
        inbox.close()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's; it sends SIGTERM
    signal.signal(signal.SIGTERM, stop_soon)
    trainer: Trainer | None = None
    programs: dict = {}
    answers_of: list[dict[str, Any]] = []

    def tell(run: RunFolder, answer: dict[str, Any]) -> None:
        answers_of.append(answer)
        os.write(answers, (json.dumps({"run": str(run.path), **answer}) + "\n").encode())

    for runs, width in inbox:
        answers_of.clear()
        with printing_to(runs[0].log):
            try:
                if trainer is None:
                    from experiments.environment import prepare

                    prepare()
                    trainer = trainer_named(arguments.get("trainer", TRAINER))
                if stop.is_set():
                    ended = [{"outcome": "stopped"} for _ in runs]
                elif width == 1 or len(runs) == 1:
                    ended = [train_run(run, trainer, programs) for run in runs]
                else:
                    ended = []
                    train_runs(runs, width, programs, tell)
            except Exception as error:  # the trainer itself cannot be imported
                traceback.print_exc()
                ended = [{"phase": "start", "error": one_line(error)} for _ in runs]
            signal.signal(signal.SIGTERM, stop_soon)
        for run, answer in zip(runs, ended, strict=False):
            tell(run, answer)
        if stop.is_set() or any(answer.get("outcome") == "stopped" for answer in answers_of):
            return 143
        if any(answer.get("phase") == "oom" for answer in answers_of):  # the next gets a process with all its memory
            return 1
    return 143 if stop.is_set() else 0


if __name__ == "__main__":
    given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    code = main(given)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without waiting for threads of libraries
