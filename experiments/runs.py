"""The folder of one run: the truth on disk, append-only. No jax, and no clock decides anything here.

config.json     what the run is (written once; its `derived` part may be completed later)
metrics.jsonl   deterministic rows only: the same bytes however often the run was killed
events.jsonl    times, speeds, starts, checkpoints
checkpoints/    what training resumes from
lock            held for life by the process that trains; names it
log.txt         what that process printed
done.json       the commit point: a run counts when this file is there
failed.json     why it stopped for good; a retry removes it
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from experiments.files import Held, Lines, is_locked, lock, read_json, write_json

__all__ = ["Held", "RunFolder", "Status"]

Status = Literal["queued", "running", "done", "diverged", "failed", "stopped"]


class RunFolder:
    """One run on disk. Reading is free for all; only the holder of the claim writes rows."""

    writes = True
    """False in a process that only reads what another one writes (experiments.hosts.Follower)."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._metrics = Lines(self.path / "metrics.jsonl")
        self._events = Lines(self.path / "events.jsonl")

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    # ------------------------------------------------------------------------------------------------ what the run is
    def create(self, record: Mapping[str, Any]) -> RunFolder:
        """Writes config.json (again: its derived values may have been counted since)."""
        write_json(self.path / "config.json", record)
        return self

    @property
    def record(self) -> dict[str, Any]:
        """config.json; FileNotFoundError where there is none."""
        record = read_json(self.path / "config.json")
        if record is None:
            raise FileNotFoundError(f"{self.path / 'config.json'}: not a run folder")
        return record

    @contextlib.contextmanager
    def claim(self) -> Iterator[RunFolder]:
        """Holds the run for as long as the block (or the process) lives; `Held` names who has it."""
        with lock(self.path / "lock"):
            try:
                yield self
            finally:
                self._metrics.close()
                self._events.close()

    # ----------------------------------------------------------------------------------------------------------- rows
    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one deterministic row {"step": ..., ...}; a row replayed after a resume is written once."""
        self._metrics.append(row, once=True)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a torn last line is left out."""
        return self._metrics.rows()

    def cut(self, step: int) -> None:
        """Drops the rows after `step` and a torn tail: what training does when it resumes at `step`."""
        self._metrics.cut(lambda row: row.get("step", 0) <= step)

    def sync(self) -> None:
        """Brings the rows to the disk: before a checkpoint is committed, so that no checkpoint is ahead of them."""
        self._metrics.sync()

    def event(self, name: str, **values: Any) -> None:
        """Adds {"time": now, "event": name, ...} to events.jsonl."""
        self._events.append({"time": round(time.time(), 3), "event": name, **values})

    def events(self) -> list[dict[str, Any]]:
        return self._events.rows()

    def reached(self) -> int:
        """The highest step that a checkpoint was committed at, 0 before the first."""
        return max((int(event.get("step", 0)) for event in self.events() if event["event"] == "checkpoint"), default=0)

    # ------------------------------------------------------------------------------------------------------- the end
    def finish(self, result: Mapping[str, Any]) -> None:
        """Commits the result {"status": "done" | "diverged", ...}: the rows reach the disk first."""
        if result.get("status") not in ("done", "diverged"):
            raise ValueError(f"a result needs the status 'done' or 'diverged', not {result.get('status')!r}")
        self._metrics.sync()
        write_json(self.path / "done.json", result)
        (self.path / "failed.json").unlink(missing_ok=True)

    @property
    def result(self) -> dict[str, Any] | None:
        """done.json, None before it is there."""
        return read_json(self.path / "done.json")

    def fail(self, phase: str, error: str, **values: Any) -> None:
        """Records why the run stopped for good, and how often it was started in all."""
        attempts = sum(event["event"] == "start" for event in self.events())
        write_json(self.path / "failed.json", {"phase": phase, "error": error, "attempts": attempts, **values})

    @property
    def failure(self) -> dict[str, Any] | None:
        return read_json(self.path / "failed.json")

    def retry(self) -> None:
        """Forgets the failure, so that the run is taken up again."""
        (self.path / "failed.json").unlink(missing_ok=True)

    def status(self) -> Status:
        """Read from the disk alone: the result, then who holds the lock, then what was left behind."""
        result = self.result
        if result is not None:
            return "diverged" if result.get("status") == "diverged" else "done"
        if is_locked(self.path / "lock"):
            return "running"
        if (self.path / "failed.json").exists():
            return "failed"
        begun = any((self.path / name).exists() for name in ("metrics.jsonl", "events.jsonl", "checkpoints"))
        return "stopped" if begun else "queued"
