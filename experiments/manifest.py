"""The frozen study: manifest.json with every trial whole, then tune.json and confirm.json with the runs of each stage.

What was frozen is compared with what is asked for when the command is typed again: the same study goes on, another one
is refused with the first field that differs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config import StudyConfig, trial_from
from experiments.derived import derived
from experiments.files import read_json, write_json
from experiments.identity import identity, trial_plain
from experiments.runs import RunFolder
from experiments.study import Choice, Run, Study, choose, confirm, flat
from experiments.versions import changes, versions
from hybrid.validation import ConfigError, build, plain

Warn = Callable[[str], None]

OURS = {"manifest.json", "tune.json", "confirm.json", "trials", "report", "lock", "sweep.yaml"}


def run_folder(folder: Path, run_id: str) -> RunFolder:
    return RunFolder(folder / "trials" / run_id)


def read(folder: Path) -> dict[str, Any] | None:
    """manifest.json, None where no study was frozen; ConfigError where it cannot be read."""
    try:
        return read_json(folder / "manifest.json")
    except (ValueError, OSError) as error:
        raise ConfigError("--workdir", f"{folder / 'manifest.json'} cannot be read ({error})") from None


def check_folder(folder: Path) -> None:
    """ConfigError unless `folder` can hold a study: writable, and new, empty or a study already. Writes nothing."""
    parent = folder
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise ConfigError("--workdir", f"{str(folder)!r} is not allowed; {str(parent)!r} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError("--workdir", f"{str(folder)!r} cannot be written; no permission in {str(parent)!r}")
    if folder.is_dir() and read(folder) is None:
        strange = sorted({path.name for path in folder.iterdir() if not path.name.startswith(".")} - OURS)
        if strange:
            problem = f"{str(folder)!r} holds {strange[0]!r} and no study; must be new, empty or the folder of a study"
            raise ConfigError("--workdir", problem)


def make_folder(folder: Path) -> None:
    """The folder and, in it, the one for runs; ConfigError where the system refuses."""
    try:
        (folder / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("--workdir", f"{str(folder)!r} cannot be written ({error.strerror})") from None


# --- the study --------------------------------------------------------------------------------------------------------


def _entry(run: Run) -> dict[str, Any]:
    about = {"id": run.id, "group": run.group, "arm": run.arm, "seed": run.trial.seed, "changed": dict(run.changed)}
    return {**plain(about), "fingerprint": run.fingerprint, "trial": trial_plain(run.trial)}


def describe(study: Study, command: str) -> dict[str, Any]:
    """manifest.json, as this study is today."""
    return {
        "study": study.settings.name,
        "command": command,
        "baseline": study.baseline,
        "settings": plain(study.settings),
        "versions": versions(),
        "config": plain(study.values),
        "duplicates": [{"changed": plain(d.changed), "of": d.of.id} for d in study.duplicates],
        "trials": [_entry(run) for run in study.runs],
    }


def freeze(
    folder: Path, study: Study, command: str, *, threads: int, workers: int, population: int = 1, warn: Warn
) -> Study:
    """Writes the study down, or compares it with what was written; the study as it was written goes on.

    A study may grow: trials that are new join those that are there (a third learning rate, one more arm), and so do
    seeds of the second stage. None leaves.

    threads: of each worker (results are bit-equal for equal numbers only); workers: how many there are; population: how
    many runs train side by side (0: as many as fit), which moves results by about 1e-5.
    """
    machine = {"threads": str(threads)}
    written = read(folder)
    if written is None:
        written = {**describe(study, command), "machine": machine, "workers": workers, "population": population}
        write_json(folder / "manifest.json", written)
    else:
        grown = _grown(folder, written, describe(study, command))
        if grown != written:
            warn(f"the study grows: {_growth(written, grown)}")
            write_json(folder / "manifest.json", written := grown)
        if any(run_folder(folder, about["id"]).result is None for _, runs in stages(folder) for about in runs):
            _flag_changes(folder, written, machine, warn)
    study = restore(folder)
    for run in study.runs:
        create(folder, run, study.settings.name)
    runs = [{"id": run.id, "arm": run.arm, "changed": plain(run.changed)} for run in study.runs]
    tune = {"stage": "tune", "runs": runs}
    if read_json(folder / "tune.json") != tune:
        write_json(folder / "tune.json", tune)
    return study


def create(folder: Path, run: Run, study: str) -> None:
    """config.json of a run that has none yet."""
    there = run_folder(folder, run.id)
    if (there.path / "config.json").exists():
        return
    about = {"id": run.id, "arm": run.arm, "study": study, "stage": run.stage, "group": run.group}
    details = {"trial": trial_plain(run.trial), "derived": derived(run.trial, run.fingerprint), "versions": versions()}
    there.create({**about, **details})


GROWING = ("seeds", "tune_seeds")
"""Settings of which a study may get more."""


def _grown(folder: Path, written: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was written, with the trials that are asked for beside it; ConfigError where it is another study."""

    def refuse(name: str, before: Any, now: Any, of: str = "") -> ConfigError:
        before, now, where = _first_difference(before, now)
        problem = f"{str(folder)!r} holds another study: {name}{where}{of} is {before!r} there and {now!r} here"
        return ConfigError("--workdir", f"{problem}; choose another --workdir, or give the config it was made with")

    for name, before in written["settings"].items():
        now = asked["settings"].get(name)
        if before != now and not (name in GROWING and now > before):
            raise refuse(f"study.{name}", before, now)
    there, here = ({(entry["id"], entry["arm"]): entry for entry in each["trials"]} for each in (written, asked))
    gone, new = ([one[key] for key in one if key not in other] for one, other in ((there, here), (here, there)))
    for old, entry in zip(gone, new, strict=False):
        before, now = _identity(old), _identity(entry)
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                of = "" if name == "arm" else f" of {old['arm']}"
                raise refuse(name, before.get(name), now.get(name), of)
    if gone:
        raise refuse("the number of trials", len(there), len(here))
    if not new and all(written["settings"].get(name, now) == now for name, now in asked["settings"].items()):
        return written
    return {**written, **{name: asked[name] for name in ("config", "duplicates", "trials", "settings")}}


def _first_difference(before: Any, now: Any) -> tuple[Any, Any, str]:
    """The innermost values that differ, and where they stand: 1, 2, "[0].rows" of [{"rows": 1}] and [{"rows": 2}]."""
    where = ""
    while True:
        if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
            key = next(i for i, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
            before, now, where = before[key], now[key], f"{where}[{key}]"
        elif isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
            name = next(name for name in before if before[name] != now[name])
            before, now, where = before[name], now[name], f"{where}.{name}"
        else:
            return before, now, where


def _growth(written: Mapping[str, Any], grown: Mapping[str, Any]) -> str:
    """What is new, in words."""
    sizes = [{"trials": len(each["trials"]), "seeds": each["settings"]["seeds"]} for each in (written, grown)]
    return ", ".join(f"{sizes[1][name]} {name} instead of {n}" for name, n in sizes[0].items() if n != sizes[1][name])


def _identity(entry: Mapping[str, Any]) -> dict[str, Any]:
    trial = trial_from(entry["trial"])
    whole = plain(flat(identity(trial, entry["fingerprint"])))
    whole["data fingerprint"] = whole.pop("fingerprint")
    return {**whole, "arm": entry["arm"]}


def _flag_changes(folder: Path, written: dict[str, Any], machine: Mapping[str, str], warn: Warn) -> None:
    """One line, and an entry in the manifest, for versions and machine settings that are not those of before."""
    latest = {**written["versions"], **written.get("machine", {})}
    for change in written.get("changes", []):
        latest.update(change["to"])
    now = {**versions(), **machine}
    different = changes(latest, now)
    if different:
        what = ", ".join(different)
        warn(f"changed since this study began: {what}; the runs still to come may differ from the others")
        moved = {name: value for name, value in now.items() if latest.get(name) != value}
        written["changes"] = [*written.get("changes", []), {"to": moved}]
        write_json(folder / "manifest.json", written)


def restore(folder: Path) -> Study:
    """The study that a folder holds, without running any config file."""
    written = read(folder)
    if written is None:
        raise ConfigError("--workdir", f"{str(folder)!r} holds no study; give --config=FILE to begin one")
    runs = []
    for entry in written["trials"]:
        trial = trial_from(entry["trial"])
        runs.append(Run(entry["id"], entry["group"], trial, entry["fingerprint"], entry["changed"]))
    return Study(build(StudyConfig, written["settings"], "study"), written["config"], tuple(runs))


# --- the second stage -------------------------------------------------------------------------------------------------


def freeze_confirm(folder: Path, study: Study, warn: Warn) -> list[Run]:
    """The runs of the second stage. The choice is written once; only a score that came later makes it anew."""
    choices = choose(study, lambda run_id: run_folder(folder, run_id).result)
    runs = confirm(study, choices)
    content: dict[str, Any] = {
        "stage": "confirm",
        "score": f"{study.settings.select_on}/{study.settings.score}",
        "choices": {choice.arm: _chosen(choice) for choice in choices},
        "runs": [{"id": r.id, "arm": r.arm, "seed": r.trial.seed, "changed": plain(r.changed)} for r in runs],
    }
    written = read_json(folder / "confirm.json")
    if written is not None and written != content:
        moved = [arm for arm, choice in content["choices"].items() if written["choices"].get(arm) != choice]
        if moved:
            warn(f"tuning runs finished since the second stage began: chosen again for {', '.join(moved)}")
    for run in runs:
        create(folder, run, study.settings.name)
    if written != content:
        write_json(folder / "confirm.json", content)
    return runs


def _chosen(choice: Choice) -> dict[str, Any]:
    changed = plain(dict(choice.run.changed)) if choice.run else None
    return {"run": choice.run.id if choice.run else None, "changed": changed, "scores": dict(choice.scores)}


def stages(folder: Path) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    """[(stage, its runs as they were written)] of the stages that were frozen."""
    found = [(stage, read_json(folder / f"{stage}.json")) for stage in ("tune", "confirm")]
    return [(stage, content["runs"]) for stage, content in found if content]


def say(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
