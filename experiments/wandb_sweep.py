"""W&B's own sweeps on a study's runs: the study writes sweep.yaml, `wandb sweep` and `wandb agent` drive the trials.

    wandb sweep runs/NAME/sweep.yaml        prints an id
    wandb agent ENTITY/PROJECT/ID           on as many machines as share the folder

The one parameter is the run: arms are sets of fields that change together, so a grid over fields would make trials that
the study does not have. The fields themselves are in every run's config, where W&B's panels find them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from experiments.files import write_text

NAME = "sweep.yaml"


def write_sweep_yaml(
    study: Path, ids: Iterable[str], *, name: str, project: str, entity: str = "", score: str = "bits_per_byte"
) -> Path:
    """Writes `study`/sweep.yaml: a grid over these runs, each as `python -m experiments.train --trial=FILE`."""
    trials = [str((study / "trials" / run / "config.json").resolve()) for run in ids]
    about = {"name": name, "project": project, **({"entity": entity} if entity else {})}
    lines = [
        f"# wandb sweep {study / NAME}, then wandb agent with the id that it prints (docs/wandb.md)",
        *(f"{key}: {json.dumps(value)}" for key, value in about.items()),
        "program: experiments/train.py",
        'command: ["${env}", "${interpreter}", "-m", "experiments.train", "${args}"]',
        "method: grid",
        f"metric: {{name: validation/{score}, goal: minimize}}",
        "parameters:",
        "  trial:",
        "    values:",
        *(f"      - {json.dumps(trial)}" for trial in trials),
    ]
    path = study / NAME
    write_text(path, "\n".join(lines) + "\n")
    return path
