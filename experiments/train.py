"""Trains one run. Type it again to go on from the last checkpoint.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/one --config.model.pattern="(M-)3A-"
    python -m experiments.train --trial=runs/quickstart/trials/0123456789ab/config.json
    python -m experiments.train --workdir=runs/quickstart --trial=0123456789ab

The first trains the config of a file, without its sweep. The others train a run of a study again as it was frozen, in
its own folder, and run no config file.
Exit codes: 0 done (or diverged, which is a result), 1 failed, 2 something was given wrongly, 130 and 143 stopped (all
is saved).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import hosts
from experiments.checkpoint import refuse_other
from experiments.commandline import Options, main, parse
from experiments.config import Trial, trial_from
from experiments.configfile import ConfigFile, read_overrides
from experiments.derived import derived
from experiments.identity import group_id, identity, run_id, trial_plain
from experiments.runs import RunFolder
from experiments.signals import Stop
from experiments.versions import code, versions
from hybrid.pattern import compact
from hybrid.validation import ConfigError, nearest

PLAIN_SECONDS = 30.0
"""Between two lines of progress where there is no terminal."""


def command(argv: list[str]) -> int:
    options = parse(argv, __doc__, ("config", "workdir", "trial"))
    there = hosts.asked()
    if there is None:
        return _command(options, None)
    from experiments.environment import prepare

    prepare()
    with hosts.joined(there):
        return _command(options, there)


def _command(options: Options, there: hosts.Hosts | None) -> int:
    find = functools.partial(_frozen if options.trial is not None else _configured, options)
    trial, run = hosts.first_makes(there, find)
    if run.result is not None:
        print(f"{run.path} was done already: {describe(run.result)}")
        return 0
    with run.claim(), Stop() as stop, progress(trial if run.writes else None) as watch:
        outcome = _train(trial, run, stop, watch)
    if outcome == "stopped":
        if not run.writes:
            return stop.exit_code or 143
        print(f"stopped and saved; the same command goes on ({run.path})", file=sys.stderr)
        return stop.exit_code or 143  # another process was told to stop
    if run.writes:
        assert run.result is not None
        print(f"{run.path}: {describe(run.result)}")
    return 0


def _train(trial: Trial, run: RunFolder, stop: Stop, watch: Callable[[Mapping[str, Any]], None]) -> str:
    from experiments.environment import prepare

    prepare()
    run.retry()
    run.event("start", pid=os.getpid(), host=socket.gethostname(), code=code())
    try:
        from experiments.loop import train

        return train(trial, run, {}, stop=stop, watch=watch)
    except Exception as error:
        run.fail("train", " ".join(f"{type(error).__name__}: {error}".split())[:500])
        raise


# --- which run --------------------------------------------------------------------------------------------------------


def _configured(options: Options) -> tuple[Trial, RunFolder]:
    """The run of a config file, its folder made where it is new. Nothing is written before all is checked."""
    from experiments import data

    options.need("config", "workdir")
    assert options.config is not None and options.workdir is not None
    trial = trial_from(ConfigFile(options.config).values(read_overrides(options.overrides)))
    if not trial.arm:
        trial = dataclasses.replace(trial, arm=compact(trial.model.sequence))
    data.check(trial.data, trial.evaluate.sequences)
    run = _folder(options.workdir)
    data.prepare(trial.data, lambda text: print(text, file=sys.stderr, flush=True))
    data.check(trial.data, trial.evaluate.sequences)
    fingerprint = data.fingerprint(trial.data)
    if (run.path / "config.json").exists():
        record = run.record
        before = identity(trial_from(record["trial"]), record["derived"]["fingerprint"])
        refuse_other(before, identity(trial, fingerprint), run.path)
        return trial, run
    about = {"id": run_id(trial, fingerprint), "arm": trial.arm, "study": trial.study.name, "stage": "single"}
    details = {"trial": trial_plain(trial), "derived": derived(trial, fingerprint), "versions": versions()}
    with _writable(run.path):
        run.create({**about, "group": group_id(trial, fingerprint), **details})
    return trial, run


def _folder(path: Path) -> RunFolder:
    """A run folder, or one that can become it: new or empty."""
    if path.is_dir():
        strange = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        if strange and "config.json" not in strange:
            problem = f"{str(path)!r} holds {strange[0]!r} and no run; must be new, empty or the folder of a run"
            raise ConfigError("--workdir", problem)
    elif path.exists():
        raise ConfigError("--workdir", f"{str(path)!r} is not allowed; it is no folder")
    return RunFolder(path)


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError("--workdir", f"{str(path)!r} cannot be written ({error.strerror})") from None


def _frozen(options: Options) -> tuple[Trial, RunFolder]:
    """The run that a config.json describes, by its file or by its id in the study --workdir."""
    assert options.trial is not None
    if options.config is not None or options.overrides:
        raise ConfigError("--config", "is not allowed beside --trial: a frozen run is not changed")
    file = options.trial
    if options.workdir is not None:
        trials = options.workdir / "trials"
        file = trials / str(options.trial) / "config.json"
        if not file.is_file():
            known = sorted(entry.name for entry in trials.iterdir()) if trials.is_dir() else []
            problem = (
                f"{str(options.trial)!r} is no run of {str(options.workdir)!r}{nearest(str(options.trial), known)}"
            )
            raise ConfigError("--trial", problem)
    elif file.is_dir():
        file = file / "config.json"
    try:
        run = RunFolder(file.parent)
        if file.name != "config.json":
            raise FileNotFoundError
        return trial_from(run.record["trial"]), run
    except FileNotFoundError:
        raise ConfigError("--trial", f"{str(file)!r} is not the config.json of a run") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("--trial", f"{str(file)!r} cannot be read ({error})") from None


# --- what is shown ----------------------------------------------------------------------------------------------------


def describe(result: Mapping[str, Any]) -> str:
    """One line of a done.json."""
    parts = [f"{result['status']} at step {result['step']}"]
    for split in ("validation", "test"):
        scores = result.get(split) or {}
        if scores.get("loss") is not None:
            parts.append(f"{split} {_scores(scores)}")
    return ", ".join([*parts, f"{result['seconds']:.1f} s"])


def _scores(scores: Mapping[str, Any]) -> str:
    bits = [f"{value:.4f} {name.replace('_', ' ')}" for name, value in scores.items() if name != "loss" and value]
    return f"loss {scores['loss']:.4f}" + (f" ({bits[0]})" if bits else "")


@contextlib.contextmanager
def progress(trial: Trial | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A line that moves on a terminal; elsewhere a plain line now and then; None: nothing."""
    if trial is None:
        yield lambda row: None
        return
    if not sys.stderr.isatty():
        yield _plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} tokens/s")
    columns = (TextColumn(trial.arm), BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=trial.train.steps, loss=float("nan"), speed=0.0)

        def show(row: Mapping[str, Any]) -> None:
            bar.update(task, completed=row["step"], loss=row["loss"], speed=row["tokens_per_second"])

        yield show


def _plain() -> Callable[[Mapping[str, Any]], None]:
    last = time.monotonic()

    def show(row: Mapping[str, Any]) -> None:
        nonlocal last
        if time.monotonic() - last < PLAIN_SECONDS:
            return
        last = time.monotonic()
        line = f"step {row['step']} of {row['steps']}, loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s"
        print(line, file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    main(command)
