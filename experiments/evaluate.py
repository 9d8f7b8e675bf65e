"""Scores the newest checkpoint of a run, and prints one line of JSON.

    python -m experiments.evaluate runs/quickstart/trials/0123456789ab --split=validation
    python -m experiments.evaluate runs/one --split=test --sequences=1024

The model and its data are those of the run's config.json. Nothing is written; a run that is training can be looked at.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

from experiments.commandline import Flag, count_of, main, path_of, split
from experiments.config import trial_from
from experiments.runs import RunFolder
from hybrid.validation import ConfigError, unknown

SPLITS = ("validation", "test")
SLICES = "slices/"
"""Before the name of a slice of a synthetic task."""


def _split(name: str, text: str) -> str:
    if text not in SPLITS and not text.startswith(SLICES):
        raise unknown(name, text, SPLITS, f"{text!r} is not allowed")
    return text


FLAGS = {
    "split": Flag("SPLIT", _split, "test (default), validation, or slices/NAME of a synthetic task"),
    "sequences": Flag("N", count_of, "rows that are scored (default: as many as the run's own evaluations read)"),
    "workdir": Flag("FOLDER", path_of, "the run's folder, instead of the plain word"),
}


class Asked(NamedTuple):
    folder: Path
    split: str = "test"
    sequences: int | None = None


def command(argv: list[str]) -> int:
    asked = parse(argv)
    from experiments.environment import prepare

    prepare()
    print(json.dumps(evaluate(RunFolder(asked.folder), asked.split, asked.sequences)))
    return 0


def parse(argv: list[str]) -> Asked:
    """The folder, given plainly or as --workdir=FOLDER, and the flags."""
    words, given = split(argv, __doc__, FLAGS, words=True)
    folders = [*map(Path, words), *([given.pop("workdir")] if "workdir" in given else [])]
    if len(folders) != 1:
        raise ConfigError("FOLDER", "must be given once: python -m experiments.evaluate FOLDER")
    if not (folders[0] / "config.json").is_file():
        raise ConfigError("FOLDER", f"{str(folders[0])!r} is not the folder of a run; it has no config.json")
    return Asked(folders[0], **given)


def evaluate(run: RunFolder, split: str, sequences: int | None = None, data: Any = None) -> dict[str, Any]:
    """{"run", "step", "split", "loss", "bits_per_byte" or "bits_per_base", ...} of the newest checkpoint that verifies.

    data: instead of what the run's config names. Raises ConfigError where there is no such checkpoint, or other data.
    """
    import jax

    from experiments.checkpoint import Checkpoints, refuse_other
    from experiments.recorder import amount
    from experiments.states import live, saved_shapes
    from experiments.step import Program

    record = run.record
    trial = trial_from(record["trial"])
    if data is None:
        from experiments.data import load

        count = sequences or trial.evaluate.sequences
        together = trial.mesh.data * trial.mesh.fsdp
        data = load(trial.data, seed=trial.seed, evaluation_sequences=count, rows_together=together)
    refuse_other({"fingerprint": record["derived"]["fingerprint"]}, {"fingerprint": data.fingerprint}, run.path)
    if split.startswith(SLICES):
        known = [each.name for each in trial.data.slices]
        if split.removeprefix(SLICES) not in known:
            raise unknown("--split", split.removeprefix(SLICES), known, f"{split!r} is no slice of this run")
    program = Program(trial)

    def passed_over(step: int, reason: str) -> None:
        print(f"the checkpoint of step {step} is passed over: {reason}", file=sys.stderr)

    if not run.checkpoints.is_dir():
        raise ConfigError("FOLDER", f"{str(run.path)!r} has no checkpoint yet")
    with Checkpoints(run.checkpoints, None, passed_over) as checkpoints:
        found = checkpoints.newest(saved_shapes(trial.model, program.shapes, program.mesh))
    if found is None:
        raise ConfigError("FOLDER", f"{str(run.path)!r} has no checkpoint that verifies")
    params = live(trial.model, program.shapes, program.shardings, found.tree).params
    about = {"run": record["id"], "arm": record["arm"], "pattern": trial.model.pattern, "seed": trial.seed}
    if trial.data.is_task:
        from experiments.loop import answered

        return {**about, "step": found.step, "split": split, **(answered(trial, program, data, split, params) or {})}
    nats, scored, size = 0.0, 0, 0
    for batch in data.evaluation(split):
        total, number = jax.device_get(program.eval_step(params, program.put(batch)))
        nats, scored = nats + float(total), scored + int(number)
        size += amount(batch["labels"], data.token_bytes)[1]
    scores: dict[str, Any] = {"loss": nats / max(scored, 1)}
    if trial.data.bits:
        scores[trial.data.bits] = nats / (math.log(2) * size) if size else None
    return {**about, "step": found.step, "split": split, **scores, "tokens": scored}


if __name__ == "__main__":
    main(command)
