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

from experiments.commandline import main
from experiments.config import trial_from
from experiments.runs import RunFolder
from hybrid.validation import ConfigError, unknown

SPLITS = ("validation", "test")


class Asked(NamedTuple):
    folder: Path
    split: str = "test"
    sequences: int | None = None
    """None: as many as the run's own evaluations read."""


def command(argv: list[str]) -> int:
    if any(word in ("--help", "-h") for word in argv):
        print((__doc__ or "").strip())
        return 0
    asked = parse(argv)
    from experiments.environment import prepare

    prepare()
    print(json.dumps(evaluate(RunFolder(asked.folder), asked.split, asked.sequences)))
    return 0


def parse(argv: list[str]) -> Asked:
    """The folder, given plainly or as --workdir=FOLDER, and the flags."""
    given: dict[str, str] = {}
    for word in argv:
        name, equals, text = word.partition("=") if word.startswith("--") else ("--workdir", "=", word)
        if name not in ("--workdir", "--split", "--sequences"):
            raise unknown(name, name, ("--split", "--sequences"), "unknown flag")
        if name in given or not equals or not text:
            raise ConfigError(name, "must be given once, with a value")
        given[name] = text
    if "--workdir" not in given:
        raise ConfigError("FOLDER", "must be given: python -m experiments.evaluate FOLDER")
    folder = Path(given["--workdir"])
    if not (folder / "config.json").is_file():
        raise ConfigError("FOLDER", f"{str(folder)!r} is not the folder of a run; it has no config.json")
    split, count = given.get("--split", "test"), given.get("--sequences")
    if split not in SPLITS:
        raise unknown("--split", split, SPLITS, f"{split!r} is not allowed")
    if count is not None and (not count.isdecimal() or int(count) < 1):
        raise ConfigError("--sequences", f"{count!r} is not allowed; must be an integer at least 1")
    return Asked(folder, split, int(count) if count else None)


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
        data = load(trial.data, seed=trial.seed, evaluation_sequences=count)
    refuse_other({"fingerprint": record["derived"]["fingerprint"]}, {"fingerprint": data.fingerprint}, run.path)
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
    nats, scored, size = 0.0, 0, 0
    for batch in data.evaluation(split):
        total, number = jax.device_get(program.eval_step(params, program.put(batch)))
        nats, scored = nats + float(total), scored + int(number)
        size += amount(batch["labels"], data.token_bytes)[1]
    about = {"run": record["id"], "arm": record["arm"], "pattern": trial.model.pattern, "seed": trial.seed}
    scores: dict[str, Any] = {"loss": nats / max(scored, 1)}
    if trial.data.bits:
        scores[trial.data.bits] = nats / (math.log(2) * size) if size else None
    return {**about, "step": found.step, "split": split, **scores, "tokens": scored}


if __name__ == "__main__":
    main(command)
