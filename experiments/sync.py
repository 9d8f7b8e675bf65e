"""Uploads to W&B what its mirror has missed: python -m experiments.sync FOLDER

FOLDER is a study (runs/NAME) or one run (runs/NAME/trials/ID). Every row goes up once, however often the command is
typed or killed: a run that is wholly there is marked in its folder (wandb-synced.json), and of any other the rows up to
the last step that the server has are left out. Needs a key (`wandb login`, or WANDB_API_KEY); WANDB_BASE_URL names
another server. Exit code 1 if something could not be uploaded.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import commandline, tracking, wandb_run
from experiments.files import Held, lock, read_json, write_json
from experiments.runs import RunFolder
from hybrid.validation import ConfigError

MARKER = "wandb-synced.json"
CONNECT_SECONDS = 10.0
SETTLE_SECONDS = 20.0
"""How long the server may take to count the rows that it has accepted."""


class Unreachable(RuntimeError):  # noqa: N818  (a state of the network rather than a fault)
    """The server does not take runs at all: no use in trying the next one."""


@dataclass(frozen=True)
class Place:
    """Where a run goes at W&B: its own TrackingConfig, or what the command line says instead."""

    project: str
    entity: str
    tags: tuple[str, ...]
    mode: str = "online"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m experiments.sync", description=__doc__, formatter_class=_Help)
    parser.add_argument("folder", type=Path, help="a study folder or a run folder")
    parser.add_argument("--entity", default="", help="the W&B user or team (default: the study's)")
    parser.add_argument("--project", default="", help="the W&B project (default: the study's)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds that one run's upload may take")
    options = parser.parse_args(argv)
    runs = run_folders(options.folder)
    os.environ.pop("WANDB_MODE", None)  # it speaks of training
    try:
        with lock(options.folder / "wandb" / "sync.lock"):
            return sync(runs, options.entity, options.project, options.timeout)
    except Held as held:
        print(f"another sync is at work: process {held.pid} on {held.host}")
        return 1


def run_folders(folder: Path) -> list[RunFolder]:
    """The runs of a study folder, or the one run that the folder is."""
    if (folder / "config.json").exists():
        return [RunFolder(folder)]
    found = [RunFolder(path.parent) for path in sorted(folder.glob("trials/*/config.json"))]
    if not found:
        raise ConfigError(
            "FOLDER", f"{str(folder)!r} is not allowed; must be a study folder with runs, or a run folder"
        )
    return found


def sync(runs: Sequence[RunFolder], entity: str, project: str, timeout: float) -> int:
    """Uploads these runs, one line each; 1 if any could not be."""
    missing, away = 0, ""
    for run in runs:
        try:
            said = f"not uploaded: {away}" if away else sync_run(run, entity, project, timeout)
            missing += bool(away)
        except ConfigError:
            raise
        except Exception as error:
            missing += 1
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            away = "the server cannot be reached" if isinstance(error, Unreachable) else ""
            said = f"not uploaded: {reason}"
        print(f"{run.id}  {said}", flush=True)
    return int(missing > 0)


def sync_run(run: RunFolder, entity: str, project: str, timeout: float) -> str:
    """Uploads one run and says in words what was done."""
    status = run.status()
    if status == "running":
        return "is training now; its own mirror uploads it"
    record = run.record
    own = record["trial"].get("tracking", {})
    place = Place(project or own.get("project", "hybrid"), entity or own.get("entity", ""), tuple(own.get("tags", ())))
    rows = wandb_run.replayable(run.rows(), record["trial"], status)
    if not rows and status not in wandb_run.FINAL:
        return "has nothing to upload yet"
    mark: dict[str, Any] = {
        "id": wandb_run.wandb_id(record, run.path),
        "project": place.project,
        "entity": place.entity,
    }
    mark |= {"rows": len(rows), "step": rows[-1]["step"] if rows else None, "status": status}
    known = read_json(run.path / MARKER) or {}
    if {key: known.get(key) for key in mark} == mark:
        return f"is there already: {known.get('url') or known['id']}"
    sent, url = upload(run, record, place, rows, status, timeout)
    write_json(run.path / MARKER, {**mark, "url": url})
    return f"{sent} of {len(rows)} rows sent: {url}"


def upload(
    run: RunFolder, record: dict[str, Any], place: Place, rows: list[wandb_run.Row], status: str, timeout: float
) -> tuple[int, str]:
    """Sends the rows after the last one that the server has, and the summary; returns once the server has them all."""
    if not tracking.has_key(tracking.client()):
        raise ConfigError("WANDB_API_KEY", "must be given to upload (or type `wandb login` once)")
    with tempfile.TemporaryDirectory(prefix="hybrid-sync-") as folder:
        try:
            handle = tracking.start(
                place, record, run, "online", CONNECT_SECONDS, folder=Path(folder), live=False, finish=timeout
            )
        except Exception as error:
            raise Unreachable(str(error)) from error
        path, url = f"{handle.entity}/{handle.project}/{handle.id}", handle.url
        tracking.prepare(handle, record)
        left = [row for row in rows if row["step"] >= handle.starting_step]
        for row in left:
            handle.log(wandb_run.values(row), step=row["step"])
        result = run.result or ({"status": status} if status == "failed" else None)
        tracking.end(handle, run, result, status, timeout + 5)
    if rows:
        _confirm(path, rows[-1]["step"])
    return len(left), url


def _confirm(path: str, step: int) -> None:
    """Asks the server for its last step: a client that has ended quietly may still have lost rows."""
    wandb = tracking.client()
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        last = wandb.Api(timeout=10).run(path).lastHistoryStep
        if last >= step:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server has rows up to step {last} of {step}")
        time.sleep(1.0)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the docstring."""


if __name__ == "__main__":
    commandline.main(main)
