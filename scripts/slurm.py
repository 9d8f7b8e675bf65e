"""Hands a study, or one run over several nodes, to SLURM. Type it again to go on.

    python scripts/slurm.py sweep --config=configs/quickstart.py --workdir=/shared/study --at_once=8 \
        --sbatch="--partition=gpu --gres=gpu:1"
    python scripts/slurm.py run --nodes=4 --config=configs/quickstart.py --workdir=/shared/one --config.mesh.fsdp=32

`sweep` freezes the study, submits an array of jobs with a run each, and a job that comes after them and submits the
next: the second stage, then the report. `run` submits one job of one process a node, which are one training
(experiments/hosts.py). The project and --workdir must be seen by all nodes at the same path.
Exit codes: 0 submitted, or all done; 1 some run failed; 2 something was given wrongly.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import manifest, slurm
from experiments.commandline import FLAGS, Flag, count_of, main, need, split, text_of
from experiments.configfile import read_overrides
from hybrid.validation import ConfigError, unknown


def words_of(name: str, text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text_of(name, text)))


def rounds_of(name: str, text: str) -> int:
    return 0 if text == "0" else count_of(name, text)


TABLE = {
    "config": FLAGS["config"],
    "workdir": FLAGS["workdir"],
    "nodes": Flag("N", count_of, "of `run`"),
    "threads": Flag("N", count_of, "of `sweep`: cores of each run (1)"),
    "at_once": Flag("N", count_of, "of `sweep`: runs that train at the same time (all)"),
    "rounds": Flag("N", rounds_of, "of `sweep`: how often what was cut off is submitted again (5)"),
    "sbatch": Flag("OPTIONS", words_of, "further options of sbatch, as one word"),
}
USED = {"run": ("config", "workdir", "nodes", "sbatch"), "sweep": [name for name in TABLE if name != "nodes"]}


def command(argv: list[str]) -> int:
    words, given = split(argv, __doc__, TABLE, words=True)
    if len(words) != 1 or words[0] not in USED:
        raise unknown("command", " ".join(words), tuple(USED), f"{' '.join(words)!r} is not one of run, sweep")
    for name in given:
        if name in TABLE and name not in USED[words[0]]:
            raise ConfigError(f"--{name}", f"is not a flag of {words[0]!r}")
    need(given, TABLE, "workdir")
    folder: Path = given["workdir"].absolute()
    changed = {name: text for name, text in given.items() if name.startswith("config.")}
    if words[0] == "run":
        need(given, TABLE, "config", "nodes")
        arguments = [f"--config={given['config'].absolute()}", f"--workdir={folder}"]
        arguments += [f"--{name}={text}" for name, text in changed.items()]
        print(f"job {slurm.train(arguments, folder, given['nodes'], given.get('sbatch', ()))}")
        return 0
    fields = {name: given[name] for name in ("threads", "at_once", "sbatch", "rounds") if name in given}
    asked = slurm.Asked(**fields)
    overrides = read_overrides([(name.removeprefix("config."), text) for name, text in changed.items()])
    typed = shlex.join(["python", "scripts/slurm.py", *argv])
    study = slurm.frozen(folder, given.get("config"), overrides, typed, asked.threads)
    jobs = slurm.advance(folder, study, asked)
    for what, number in jobs.items():
        print(f"job {number}: {what}")
    return 0 if jobs else ended(folder)


def ended(folder: Path) -> int:
    """The report of a study in which nothing is left to do."""
    from experiments.report import show, write

    write(folder)
    show(folder)
    runs = [run for _, stage in manifest.stages(folder) for run in stage]
    failed = [run["id"] for run in runs if manifest.run_folder(folder, run["id"]).result is None]
    for run in failed:
        print(f"failed: {run}; again: python -m experiments.train --workdir={folder} --trial={run}")
    return 1 if failed else 0


if __name__ == "__main__":
    main(command)
