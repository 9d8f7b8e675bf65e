"""Trains a whole study: tunes every arm, confirms it on more seeds, writes the report. Type it again to go on.

    python -m experiments.sweep --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.sweep --config=configs/quickstart.py --workdir=runs/quickstart --dry_run
    python -m experiments.sweep --status --workdir=runs/quickstart

A study that was begun goes on without its config too: --workdir alone takes what was frozen there, and runs no config.
Exit codes: 0 all done, 1 some run failed, 2 something was given wrongly, 130 and 143 stopped (all is saved).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import manifest
from experiments.commandline import Options, main, parse
from experiments.config import MeshConfig, Trial
from experiments.configfile import ConfigFile, read_overrides
from experiments.files import is_locked, lock
from experiments.study import Run, Study, describe, plan, refuse
from experiments.tally import shares, tally
from hybrid.validation import ConfigError, unknown

COMMAND_FLAGS = ("config", "workdir", "dry_run", "workers", "status", "retry", "report", "stage")

TRAINER = "HYBRID_TRAINER"
"""Environment variable: another training function (MODULE:FUNCTION), for tests of everything around training."""


def command(argv: list[str]) -> int:
    options = parse(argv, __doc__, COMMAND_FLAGS)
    if options.stage not in (None, "tune", "confirm"):
        raise unknown("--stage", str(options.stage), ("tune", "confirm"), f"{options.stage!r} is not allowed")
    options.need("workdir")
    assert options.workdir is not None
    if options.status:
        return _status(options.workdir)
    study = _study(options)
    threads, workers = _machine(study, options.workers)
    if options.dry_run:
        from experiments.listing import show

        show(study, options.workdir, workers=workers, threads=threads)
        return 2 if study.refused else 0
    refuse(study)
    if is_locked(options.workdir / "lock"):
        with lock(options.workdir / "lock"):  # raises Held with who has it
            pass
    study = _with_data(study, options)
    manifest.make_folder(options.workdir)
    with lock(options.workdir / "lock"):
        words = shlex.join(["python", "-m", "experiments.sweep", *argv])
        about = {"threads": threads, "workers": workers, "population": _width(study.runs[0].trial)}
        study = manifest.freeze(options.workdir, study, words, **about, warn=manifest.say)
        return run(options.workdir, study, options, workers=workers, threads=threads)


def _status(folder: Path) -> int:
    if manifest.read(folder) is None:
        raise ConfigError("--workdir", f"{str(folder)!r} holds no study")
    from experiments.progress import show

    show(folder)
    return 0


def _study(options: Options) -> Study:
    """The study that is asked for; nothing is written."""
    from experiments import data

    assert options.workdir is not None
    manifest.check_folder(options.workdir)
    if options.config is None:
        if options.overrides:
            raise ConfigError(
                f"--config.{options.overrides[0][0]}", "needs --config=FILE; a frozen study is not changed"
            )
        if manifest.read(options.workdir) is None:
            options.need("config")
        return manifest.restore(options.workdir)
    study = plan(ConfigFile(options.config), read_overrides(options.overrides), data.fingerprint)
    for run in _by_data(study):
        data.check(run.trial.data, run.trial.evaluate.sequences)
    return study


def _by_data(study: Study) -> list[Run]:
    """One run for each data set that the study reads."""
    return list({run.trial.data: run for run in study.runs}.values())


def _with_data(study: Study, options: Options) -> Study:
    """The study with its data prepared, so that all fingerprints and with them all identities are known."""
    from experiments import data

    for run in _by_data(study):
        data.prepare(run.trial.data, lambda text: print(text, flush=True))
        data.check(run.trial.data, run.trial.evaluate.sequences)
    if options.config is None or all(run.fingerprint is not None for run in study.runs):
        return study
    return plan(ConfigFile(options.config), read_overrides(options.overrides), data.fingerprint)


def _machine(study: Study, workers: int | None) -> tuple[int, int]:
    """(threads of each worker, workers)."""
    from experiments.environment import accelerator, threads

    cores = threads()
    if workers is None:
        workers = 1 if accelerator() else max(1, min(cores, len({run.group for run in study.runs})))
    return max(1, cores // workers), workers


def _width(trial: Trial) -> int:
    """How many runs of a group train side by side: what the trial asks for, else by platform. 0: as many as fit."""
    from experiments.environment import accelerator

    alone = trial.mesh != MeshConfig() or trial.data.mix  # on a mesh, or of several lengths
    return trial.train.population or (0 if accelerator() and not alone else 1)


# --- training ---------------------------------------------------------------------------------------------------------


def run(folder: Path, study: Study, options: Options, *, workers: int, threads: int) -> int:
    """Both stages, the summary and the report; the exit code."""
    from experiments.environment import of_workers
    from experiments.pool import Pool
    from experiments.progress import Display
    from experiments.worker import TRAINER as LOOP

    environment = of_workers(workers, threads)
    done_before = _count_done(folder, study.runs)
    _drive_by_wandb(folder, study, study.runs)
    with Pool(workers, trainer=os.environ.get(TRAINER, LOOP), environment=environment) as pool:
        runs: Sequence[Run] = study.runs
        with Display(folder, workers) as display:
            _train(pool, folder, runs, options, display.update)
            if pool.signal is None and options.stage != "tune":
                more = manifest.freeze_confirm(folder, study, manifest.say)
                _drive_by_wandb(folder, study, [*study.runs, *more])
                done_before += _count_done(folder, more)
                runs = [*study.runs, *more]
                _train(pool, folder, more, options, display.update)
        if pool.signal is not None:
            print(f"stopped; all is saved, and the same command goes on ({_headline(folder)})", file=sys.stderr)
            return 128 + pool.signal
    if done_before == len(runs):
        print(f"all {len(runs)} runs were done already")
    _keep_rate(folder, runs, threads)
    failed = _summary(folder, runs)
    reported = not options.report or _report(folder, fresh=done_before < len(runs))
    return 0 if reported and not failed else 1


def _drive_by_wandb(folder: Path, study: Study, runs: Sequence[Run]) -> None:
    """Writes sweep.yaml, so that `wandb sweep` and `wandb agent` can drive the same runs."""
    from experiments.wandb_sweep import NAME, write_sweep_yaml

    ids = [each.id for each in runs]
    there = (folder / NAME).read_text() if (folder / NAME).is_file() else ""
    if any(run_id not in there for run_id in ids):
        tracking = study.runs[0].trial.tracking
        about = {"name": study.settings.name, "score": study.settings.score}
        write_sweep_yaml(folder, ids, **about, project=tracking.project, entity=tracking.entity)


def _count_done(folder: Path, runs: Sequence[Run]) -> int:
    return sum(manifest.run_folder(folder, run.id).result is not None for run in runs)


def _headline(folder: Path) -> str:
    from experiments.progress import Reader, headline

    return headline(Reader(folder).snapshot())


def _train(pool: Any, folder: Path, runs: Sequence[Run], options: Options, tick: Any) -> None:
    from experiments.derived import look_up, total_flops
    from experiments.pool import Task, to_retry

    tasks = []
    for each in runs:
        there = manifest.run_folder(folder, each.id)
        if there.result is not None:
            continue
        if there.failure is not None:
            if not to_retry(there, everything=options.retry):
                continue
            there.retry()
        counts = look_up(each.trial) or {"flops_per_token": 1}
        size = total_flops(each.trial, counts["flops_per_token"])
        tasks.append(Task(there, each.group, size, _width(each.trial)))
    pool.run(tasks, tick)


def _keep_rate(folder: Path, runs: Sequence[Run], threads: int) -> None:
    """Remembers the FLOPs a second that the runs reached, for later estimates."""
    from experiments.progress import Reader
    from experiments.rates import keep

    sizes: dict[float, list[float]] = {}
    for line in Reader(folder).snapshot().lines:
        if line.rate and line.flops_per_token:
            sizes.setdefault(line.flops_per_token, []).append(line.rate * line.flops_per_token)
    for size, rates in sizes.items():
        keep(sum(rates) / len(rates), size, threads)


def _summary(folder: Path, runs: Sequence[Run]) -> int:
    """Prints what failed and how to run it again; how many did."""
    failed = 0
    for each in runs:
        there = manifest.run_folder(folder, each.id)
        failure = there.failure if there.result is None else None
        if failure is None:
            continue
        failed += 1
        what = f"{each.arm} {describe(each.changed)} seed={each.trial.seed}"
        print(f"\nfailed: {each.id} ({what}) in phase {failure['phase']}, starts: {failure['attempts']}")
        print(f"  {failure['error']}")
        for line in failure.get("log", [])[-5:]:
            print(f"  | {line}")
        print(f"  log: {there.log}\n  again: {failure.get('command', '')}")
    diverged = [each for each in runs if manifest.run_folder(folder, each.id).status() == "diverged"]
    if diverged:
        print("diverged: " + ", ".join(f"{each.id} ({each.arm} {describe(each.changed)})" for each in diverged))
    print(f"{_headline(folder)}; in {folder}")
    events = [event for each in runs for event in manifest.run_folder(folder, each.id).events()]
    for line in (tally(events), shares(events)):
        if line:
            print(line)
    return failed


def _report(folder: Path, *, fresh: bool) -> bool:
    """Writes the report (again, where runs were added) and prints its table; False where it could not be made."""
    try:
        from experiments.report import show, write

        path = folder / "report" / "report.md"
        if fresh or not path.exists():
            path = write(folder)
        show(folder)
    except Exception as error:  # the runs are safe: the report can be made again
        text = " ".join(f"{type(error).__name__}: {error}".split())
        manifest.say(f"the report could not be written ({text}); again: python -m experiments.report {folder}")
        return False
    print(f"report: {path}")
    return True


if __name__ == "__main__":
    main(command)
