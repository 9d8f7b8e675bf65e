"""A study: a config and its sweep become runs with identities, arms and groups; stages follow from results. No jax.

Two stages. `tune`: every point of the sweep on `study.tune_seeds` seeds. `confirm`: each arm again at the point that
had the best validation score, on `study.seeds` seeds in all (the tuning runs are among them: they have the same
identity).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.config import DataConfig, Placed, StudyConfig, Trial, trial_from
from experiments.configfile import ConfigFile, Point, hint_of
from experiments.identity import group_id, identity, run_id
from experiments.scores import SCORES, End, rank
from hybrid.pattern import compact
from hybrid.validation import ConfigError, nearest

Fingerprint = Callable[[DataConfig], str | None]

SHARED = ("study", "tracking", "checkpoint", "seed")
"""Groups and fields that are the same for a whole study."""

PLACING = {"pattern", "match", *(f.name for f in dataclasses.fields(Placed))}
"""Fields of the model whose outcome an arm's pattern already tells."""


@dataclass(frozen=True)
class Run:
    """One run of a study. `changed` holds the fields that its point of the sweep sets."""

    id: str
    group: str
    trial: Trial
    fingerprint: str | None
    changed: Mapping[str, Any]
    stage: str = "tune"

    @property
    def arm(self) -> str:
        return self.trial.arm


@dataclass(frozen=True)
class Refused:
    """A point of the sweep that no trial can be made of."""

    number: int
    changed: Mapping[str, Any]
    error: ConfigError


@dataclass(frozen=True)
class Duplicate:
    """A point that gives the same trial as an earlier run."""

    number: int
    changed: Mapping[str, Any]
    of: Run


@dataclass(frozen=True)
class Study:
    """What a config asks for: the runs of the first stage, and what came of the other points."""

    settings: StudyConfig
    values: Mapping[str, Any]
    runs: tuple[Run, ...]
    duplicates: tuple[Duplicate, ...] = ()
    refused: tuple[Refused, ...] = ()

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(run.arm for run in self.runs))

    @property
    def baseline(self) -> str:
        return self.settings.baseline or self.arms[0]

    def of_arm(self, arm: str) -> list[Run]:
        return [run for run in self.runs if run.arm == arm]


# --- from a config to runs --------------------------------------------------------------------------------------------


def plan(file: ConfigFile, overrides: Sequence[tuple[str, Any]], fingerprint: Fingerprint) -> Study:
    """The study that a config file states; raises ConfigError for what cannot be a study at all."""
    points = file.points()
    if points is None:
        points = [{}]
    elif not points:
        raise ConfigError("sweep", f"sweep() of {file.path} is empty; must list at least one point")
    _check_points(points, overrides)
    made: list[tuple[int, Point, Trial]] = []
    refused: list[Refused] = []
    for number, point in enumerate(points):
        try:
            made.append((number, point, trial_from(file.values([*overrides, *point.items()]))))
        except ConfigError as error:
            refused.append(Refused(number, point, error))
    if not made:
        raise _of_point(refused[0], len(points))
    settings = made[0][2].study
    for name in settings.tune:
        try:
            hint_of(name)
        except ConfigError as error:
            raise ConfigError("study.tune", f"{name!r}: {error.problem}") from None
    runs: dict[str, Run] = {}
    duplicates = []
    for number, point, trial in made:
        for n in range(settings.tune_seeds):
            run = _run(dataclasses.replace(trial, seed=trial.seed + n), point, settings.tune, fingerprint)
            if run.id not in runs:
                runs[run.id] = run
            elif n == 0:
                duplicates.append(Duplicate(number, point, runs[run.id]))
    study = Study(settings, file.values(overrides), tuple(runs.values()), tuple(duplicates), tuple(refused))
    _check_arms(study)
    return study


def _check_points(points: Sequence[Point], overrides: Sequence[tuple[str, Any]]) -> None:
    fixed = {name for name, _ in overrides}
    for number, point in enumerate(points):
        for name in point:
            if not isinstance(name, str):
                raise ConfigError("sweep", f"point {number} sets {name!r}; must be the dotted name of a field")
            try:
                hint_of(name)
            except ConfigError as error:
                raise ConfigError(name, f"{error.problem} (set by point {number} of sweep())") from None
            if name.split(".")[0] in SHARED:
                advice = "set study.seeds" if name == "seed" else "set it in get_config()"
                raise ConfigError(name, f"cannot be swept (point {number} of sweep()); {advice}")
            if name in fixed:
                raise ConfigError(f"--config.{name}", "is set by sweep() for each point; change sweep() instead")
        for earlier in range(number):
            if dict(points[earlier]) == dict(point):
                what = describe(point) or "nothing changed"
                raise ConfigError("sweep", f"points {earlier} and {number} are the same ({what}); list each once")


def _of_point(refused: Refused, count: int) -> ConfigError:
    if count == 1 and not refused.changed:
        return refused.error
    where = f"point {refused.number} of sweep(): {describe(refused.changed)}"
    return ConfigError(refused.error.field, f"{refused.error.problem} ({where})")


def refuse(study: Study) -> None:
    """ConfigError for the first point that was refused, if any was."""
    if study.refused:
        raise _of_point(study.refused[0], len(study.runs) + len(study.duplicates) + len(study.refused))


def _run(trial: Trial, point: Point, tune: Sequence[str], fingerprint: Fingerprint) -> Run:
    if not trial.arm:
        trial = dataclasses.replace(trial, arm=_arm(trial, point, tune))
    data = fingerprint(trial.data)
    return Run(run_id(trial, data), group_id(trial, data), trial, data, dict(point))


def _arm(trial: Trial, point: Point, tune: Sequence[str]) -> str:
    """The compact pattern, and what else the point changes that is compared."""
    told = [f"model.{name}" for name in PLACING]
    others = {
        n: v for n, v in point.items() if n not in tune and not any(n == t or n.startswith(t + ".") for t in told)
    }
    return " ".join([compact(trial.model.sequence), *([describe(others)] if others else [])])


def told(run: Run) -> str:
    """What a tuning run changes, and its seed where each setting has several."""
    several = run.trial.study.tune_seeds > 1
    return " ".join(filter(None, (describe(run.changed), f"seed={run.trial.seed}" if several else "")))


def describe(changed: Mapping[str, Any]) -> str:
    """`ratio=1/4 learning_rate=0.001`: last parts of the names, whole where two would look the same."""
    short = [name.split(".")[-1] for name in changed]
    names = [last if short.count(last) == 1 else name for name, last in zip(changed, short, strict=True)]
    return " ".join(f"{name}={show(value)}" for name, value in zip(names, changed.values(), strict=True))


def show(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(show(item) for item in value) if isinstance(value, tuple | list) else str(value)


def _check_arms(study: Study) -> None:
    """One arm is one thing to compare: its runs differ in tuned fields and the seed only, and the baseline is one of
    the arms."""
    first: dict[str, dict[str, Any]] = {}
    free = (*study.settings.tune, "seed")
    for run in study.runs:
        compared = {k: v for k, v in flat(identity(run.trial, run.fingerprint)).items() if k not in free}
        same = first.setdefault(run.arm, compared)
        name = next((n for n in {**same, **compared} if same.get(n) != compared.get(n)), None)
        if name is not None:
            problem = f"{run.arm!r} names two things: {name} is {same.get(name)!r} in one and {compared.get(name)!r} in"
            raise ConfigError("arm", f"{problem} another; give them two names, or add {name!r} to study.tune")
    if study.settings.baseline and study.settings.baseline not in study.arms:
        problem = f"{study.settings.baseline!r} is none of the arms{nearest(study.settings.baseline, study.arms)}"
        raise ConfigError("study.baseline", f"{problem} (allowed: {', '.join(study.arms)})")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    rows: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows |= flat(value, f"{prefix}{name}.")
        else:
            rows[prefix + name] = value
    return rows


# --- from results to the second stage ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What tuning chose for an arm: `run`, the first of its setting, None where no run of the arm gave a score.
    `scores`: run id -> score or None."""

    arm: str
    run: Run | None
    scores: Mapping[str, float | None]


def choose(study: Study, result: Callable[[str], Mapping[str, Any] | None]) -> list[Choice]:
    """The best setting of each arm by its final scores on `study.select_on`, or by how early it knew its task
    (`scores.rank`); diverged and failed runs have none.

    `result(id)` is the done.json of a run, or None.
    """
    return [_choice(study, arm, result) for arm in study.arms]


def _choice(study: Study, arm: str, result: Callable[[str], Mapping[str, Any] | None]) -> Choice:
    runs = study.of_arm(arm)
    ends = {run.id: _end(study, run, result(run.id) or {}) for run in runs}
    settings: dict[str, list[Run]] = {}
    for run in runs:
        settings.setdefault(_setting(run), []).append(run)
    down = SCORES[study.settings.score].smaller_is_better
    scored = [seeds for seeds in settings.values() if any(ends[run.id].score is not None for run in seeds)]
    best = min(scored, key=lambda seeds: rank([ends[run.id] for run in seeds], down), default=[None])
    return Choice(arm, best[0], {name: end.score for name, end in ends.items()})  # the first of equals


def _setting(run: Run) -> str:
    """What a run shares with those of other seeds: the identity that it would have on seed 0."""
    return run_id(dataclasses.replace(run.trial, seed=0), run.fingerprint)


def _end(study: Study, run: Run, result: Mapping[str, Any]) -> End:
    done = result.get("status") == "done"
    score = (result.get(study.settings.select_on) or {}).get(study.settings.score) if done else None
    return End(score, result.get("step"), run.trial.train.steps)


def confirm(study: Study, choices: Iterable[Choice]) -> list[Run]:
    """The runs of the second stage, those of the first that it uses again left out."""
    tuned = {run.id for run in study.runs}
    runs = []
    for choice in choices:
        if choice.run is None:
            continue
        for n in range(1, study.settings.seeds):
            trial = dataclasses.replace(choice.run.trial, seed=choice.run.trial.seed + n)
            data = choice.run.fingerprint
            again = Run(run_id(trial, data), group_id(trial, data), trial, data, choice.run.changed, "confirm")
            if again.id not in tuned:
                runs.append(again)
    return runs
