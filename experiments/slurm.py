"""Batch scripts and job numbers of SLURM: a study as arrays of jobs, or one run over several nodes. No jax.

A study under SLURM is the same frozen study as anywhere: a task of an array trains one run of the manifest in its
folder (`experiments.train --workdir=STUDY --trial=ID`), and the run folders say how it went; SLURM's own accounts are
not asked. When an array has ended, a small job of its own types the command again: it submits what is left, then the
second stage, and writes the report.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import manifest
from experiments.configfile import ConfigFile
from experiments.study import Run, Study, plan, refuse
from hybrid.validation import ConfigError

ROOT = Path(__file__).resolve().parents[1]

HEAD = """#!/bin/bash
cd {root}
"""
ARRAY = """export NPROC={threads}
run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {names})
exec srun {python} -m experiments.train --workdir={folder} --trial="$run"
"""
RUN = """first=$(hostname -I | cut -d' ' -f1)
export HYBRID_COORDINATOR="${{HYBRID_COORDINATOR:-$first:$((20000 + SLURM_JOB_ID % 20000))}}"
exec srun --kill-on-bad-exit=1 {python} -m experiments.train {arguments}
"""
AGAIN = """exec {python} scripts/slurm.py {arguments}
"""
SIGNAL = ("--signal=TERM@60", "--requeue")
"""A job that must end is told a minute before, saves, and goes on when it is started again."""


@dataclass(frozen=True)
class Asked:
    """What every job of a study is submitted with."""

    threads: int = 1
    """Cores of each task; results are bit-equal for equal numbers only."""
    at_once: int | None = None
    """Tasks of an array that run at the same time."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, such as --partition=gpu."""
    rounds: int = 5
    """How often runs that were cut off are submitted again."""

    def again(self, folder: Path) -> list[str]:
        """The arguments of scripts/slurm.py that go on with the study."""
        words = ["sweep", f"--workdir={folder}", f"--threads={self.threads}", f"--rounds={self.rounds - 1}"]
        words += [f"--at_once={self.at_once}"] if self.at_once else []
        return words + ([f"--sbatch={shlex.join(self.sbatch)}"] if self.sbatch else [])


def submit(script: Path, text: str, options: Sequence[str]) -> str:
    """Writes a batch script and hands it to sbatch; the number of the job. Raises ConfigError where it is refused."""
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(HEAD.format(root=shlex.quote(str(ROOT))) + text)
    command = ["sbatch", "--parsable", f"--job-name={script.stem}", f"--output={script.parent}/%x-%A_%a.txt", *options]
    try:
        done = subprocess.run([*command, str(script)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError("sbatch", "is not there: SLURM's commands must be installed where this is typed") from None
    if done.returncode:
        raise ConfigError("sbatch", " ".join(done.stderr.split()))
    return done.stdout.strip().partition(";")[0]


def train(arguments: Sequence[str], folder: Path, nodes: int, options: Sequence[str]) -> str:
    """Submits one run over several nodes, a process each; the number of the job."""
    text = RUN.format(python=shlex.quote(sys.executable), arguments=shlex.join(arguments))
    # Beside the run's folder, which must be empty before its first start.
    script = folder.parent / f"{folder.name}.slurm" / "run.sh"
    return submit(script, text, [f"--nodes={nodes}", "--ntasks-per-node=1", *SIGNAL, *options])


# --- a study ----------------------------------------------------------------------------------------------------------


def frozen(folder: Path, config: Path | None, overrides: Any, command: str, threads: int) -> Study:
    """The study in its folder, frozen now if it was not."""
    from experiments import data

    manifest.check_folder(folder)
    if config is None:
        if manifest.read(folder) is None:
            raise ConfigError("--config", "must be given, as --config=FILE")
        return manifest.restore(folder)
    study = plan(ConfigFile(config), overrides, data.fingerprint)
    refuse(study)
    for trial in {run.trial.data: run.trial for run in study.runs}.values():
        data.check(trial.data, trial.evaluate.sequences)
        data.prepare(trial.data, print)
        data.check(trial.data, trial.evaluate.sequences)
    study = plan(ConfigFile(config), overrides, data.fingerprint)
    manifest.make_folder(folder)
    return manifest.freeze(folder, study, command, threads=threads, workers=1, warn=manifest.say)


def left(folder: Path, runs: Sequence[Run]) -> list[Run]:
    """Those that have neither ended nor failed."""
    there = {run.id: manifest.run_folder(folder, run.id) for run in runs}
    return [run for run in runs if there[run.id].result is None and there[run.id].failure is None]


def advance(folder: Path, study: Study, asked: Asked) -> Mapping[str, str]:
    """Submits what the study needs next; the jobs by what they do, none where all is done."""
    stage, runs = "tune", left(folder, study.runs)
    if not runs:
        stage, runs = "confirm", left(folder, manifest.freeze_confirm(folder, study, manifest.say))
    if not runs:
        return {}
    if asked.rounds < 1:
        manifest.say(f"{len(runs)} runs have not ended, and no round is left; the same command goes on")
        return {}
    place = folder.resolve() / "slurm"
    names = place / f"{stage}-{asked.rounds}.txt"
    place.mkdir(parents=True, exist_ok=True)
    names.write_text("".join(f"{run.id}\n" for run in runs))
    python, quoted = shlex.quote(sys.executable), shlex.quote(str(folder.resolve()))
    text = ARRAY.format(threads=asked.threads, names=shlex.quote(str(names)), python=python, folder=quoted)
    limit = f"%{asked.at_once}" if asked.at_once else ""
    options = [f"--array=0-{len(runs) - 1}{limit}", f"--cpus-per-task={asked.threads}", *SIGNAL, *asked.sbatch]
    array = submit(names.with_suffix(".sh"), text, options)
    text = AGAIN.format(python=python, arguments=shlex.join(asked.again(folder.resolve())))
    after = submit(place / f"after-{stage}-{asked.rounds}.sh", text, [f"--dependency=afterany:{array}", *asked.sbatch])
    return {f"{stage} ({len(runs)} runs)": array, "what comes after": after}
