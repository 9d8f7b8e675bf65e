"""W&B as a mirror of the run folder: it may be away, slow or broken, and training does not notice.

    mirror = tracking.open(trial.tracking, run.record, run)     # never raises, at most START_SECONDS
    mirror.log(row)                                             # after run.append(row)
    mirror.close(result)                                        # result: as in done.json, or None when stopped

The run folder is the truth. What W&B missed is replayed when the run is opened again, or by
`python -m experiments.sync`; W&B's native step is the training step, so a row that it has is never sent twice.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from experiments import wandb_run
from experiments.runs import RunFolder

log = logging.getLogger(__name__)

START_SECONDS = 9.0
"""All that `open` may take, importing wandb included."""
ANSWER_SECONDS = 4.0
"""How long the server has to answer at the start."""
FINISH_SECONDS = 9.0
"""How long `close` waits for the last rows to be uploaded; the rest is for sync."""

T = TypeVar("T")


class Target(Protocol):
    """Where runs are mirrored (TrackingConfig)."""

    @property
    def mode(self) -> str: ...
    @property
    def project(self) -> str: ...
    @property
    def entity(self) -> str: ...
    @property
    def tags(self) -> tuple[str, ...]: ...


class _Server:
    """What this process knows of the W&B server. After one failure its later runs start offline, without waiting."""

    failure: str | None = None


def open(target: Target, record: Mapping[str, Any], run: RunFolder) -> Mirror:
    """The mirror of a run, with all its rows so far already sent. Never raises, waits START_SECONDS at most."""
    if target.mode == "off":
        return Mirror(None, record, run)
    begun = time.monotonic()
    try:
        handle, mode = _start(target, record, run, begun + START_SECONDS)
    except Exception as error:
        log.warning("W&B is left out of this run: %s", _line(error))
        return Mirror(None, record, run)
    mirror = Mirror(handle, record, run)
    mirror.begin()
    log.info("W&B %s, run %s, %.1f s", mode, handle.id, time.monotonic() - begun)
    return mirror


def replay(target: Target, record: Mapping[str, Any], run: RunFolder) -> None:
    """Mirrors a run that is over: what a W&B agent gets for a trial that was trained before."""
    open(target, record, run).close(run.result or {"status": "failed"})


class Mirror:
    """One run at W&B, or nothing at all (`handle` None). No method raises or blocks for long."""

    def __init__(self, handle: Any, record: Mapping[str, Any], run: RunFolder):
        self._handle, self._record, self._run = handle, record, run
        self._next = handle.starting_step if handle is not None else 0  # W&B has the steps before it
        self._pending: wandb_run.Row = {}

    @property
    def is_on(self) -> bool:
        """Whether rows reach W&B or its offline files."""
        return self._handle is not None

    def begin(self) -> None:
        """Axes, the table of layers, and the rows that W&B has missed."""
        self._guard(lambda: prepare(self._handle, self._record))
        for row in wandb_run.by_step(self._run.rows()):
            self.log(row)

    def log(self, row: Mapping[str, Any]) -> None:
        """Sends a row of metrics.jsonl. Rows of one step become one; a step is sent when the next one begins."""
        if self._handle is None or row["step"] < self._next:
            return
        if self._pending and row["step"] > self._pending["step"]:
            self._send()
        self._pending.update(row)

    def close(self, result: Mapping[str, Any] | None = None) -> None:
        """Ends the run at W&B with its summary. `result` as in done.json, {"status": "failed"}, or None: it goes on."""
        if self._handle is None:
            return
        status = str((result or {}).get("status", "stopped"))
        if self._pending and (status in wandb_run.FINAL or wandb_run.is_whole(self._pending, self._record["trial"])):
            self._send()
        self._guard(lambda: self._finish(result, status))
        self._handle = None

    def _finish(self, result: Mapping[str, Any] | None, status: str) -> None:
        try:
            end(self._handle, self._run, result, status, FINISH_SECONDS)
        except Exception as error:
            _Server.failure = _line(error)
            raise

    def _send(self) -> None:
        row, self._pending = self._pending, {}
        self._next = row["step"] + 1
        self._guard(lambda: self._handle.log(wandb_run.values(row), step=row["step"]))

    def _guard(self, action: Callable[[], None]) -> None:
        if self._handle is None:
            return
        try:
            action()
        except Exception as error:
            log.warning("W&B has lost this run (python -m experiments.sync uploads it later): %s", _line(error))
            self._handle = None


# --- the client, shared with sync -------------------------------------------------------------------------------------
def client() -> Any:
    """The wandb module: silent, without its own error reports, and never asking for a key."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


def has_key(wandb: Any) -> bool:
    """Whether a key is configured (environment, netrc or settings). Asks neither a person nor a server."""
    return bool(wandb.login(prompt=False, verify=False))


def start(
    target: Target,
    record: Mapping[str, Any],
    run: RunFolder,
    mode: str,
    seconds: float,
    *,
    folder: Path,
    live: bool,
    finish: float,
) -> Any:
    """A run of wandb, resumed where the server knows it; files go to `folder`/wandb.

    Raises in `seconds` at most, and its later `finish` in `finish` seconds. `live`: with statistics of the machine.
    """
    wandb = client()
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_stats=not live or mode == "offline",
        x_disable_meta=not live,
        x_save_requirements=False,
        init_timeout=max(seconds - 1, 0.5),
        finish_timeout=finish,
        finish_timeout_raises=True,
        reinit="create_new",  # members of a population have a run each, in one process
    )
    who = wandb_run.identity(record, run.path, target.tags)
    place = {"project": target.project, "entity": target.entity or None, "dir": str(folder)}
    handle = within(seconds, lambda: wandb.init(mode=mode, settings=settings, **place, **who), late=_abandon)
    wandb_run.remember(run.path, record, handle.id)
    return handle


def prepare(handle: Any, record: Mapping[str, Any]) -> None:
    """What every run says once: its axes and its layers."""
    wandb_run.axes(handle)
    table = wandb_run.layers(record) if handle.starting_step == 0 else None
    if table is not None:
        import wandb

        columns, rows = table
        handle.summary["layers"] = wandb.Table(columns=[*columns], data=rows)


def end(handle: Any, run: RunFolder, result: Mapping[str, Any] | None, status: str, seconds: float) -> None:
    """The summary, then the end of the run; raises where the upload has not ended in `seconds`."""
    handle.summary.update(wandb_run.summary(run, result, status))
    within(seconds, lambda: handle.finish(exit_code=wandb_run.exit_code(status)))


def within(seconds: float, action: Callable[[], T], late: Callable[[T], None] | None = None) -> T:
    """The value of `action`, or TimeoutError after `seconds`: it then ends alone, and `late` gets its value."""
    answer: list[T] = []
    error: list[BaseException] = []
    given_up = threading.Event()

    def work() -> None:
        try:
            value = action()
        except BaseException as failure:
            error.append(failure)
            return
        answer.append(value)
        if given_up.is_set() and late is not None:
            late(value)

    thread = threading.Thread(target=work, daemon=True, name="wandb")
    thread.start()
    thread.join(max(seconds, 0.0))
    if error:
        raise error[0]
    if not answer:
        given_up.set()
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    return answer[0]


def _start(target: Target, record: Mapping[str, Any], run: RunFolder, deadline: float) -> tuple[Any, str]:
    wandb = client()
    if _may_go_online(target.mode):
        try:
            if has_key(wandb):
                seconds = min(_left(deadline, reserve=2.0), ANSWER_SECONDS + 1)
                return _live(target, record, run, "online", seconds), "online"
        except Exception as error:
            _Server.failure = _line(error)
            log.warning("W&B cannot be reached, going on offline: %s", _Server.failure)
            within(_left(deadline), wandb.teardown)  # its service still holds the id of this run
            client()
    return _live(target, record, run, "offline", _left(deadline)), "offline"


def _live(target: Target, record: Mapping[str, Any], run: RunFolder, mode: str, seconds: float) -> Any:
    return start(target, record, run, mode, seconds, folder=run.path, live=True, finish=FINISH_SECONDS - 1)


def _may_go_online(asked: str) -> bool:
    wanted = os.environ.get("WANDB_MODE", "online") if asked == "auto" else asked
    return _Server.failure is None and wanted not in ("offline", "dryrun", "disabled")


def _left(deadline: float, reserve: float = 0.0) -> float:
    return max(deadline - reserve - time.monotonic(), 0.5)


def _abandon(handle: Any) -> None:
    """Ends a run that began after nobody waited for it any more."""
    handle.finish(exit_code=1)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
