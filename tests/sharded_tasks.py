"""Trains a synthetic task on one device and on 8 simulated ones: a part of tests.sharded_training, for
test_sharding.py. Its rows are made in the compiled step, each on the device that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

STEPS = 12
MESHES = {"1": {}, "4,2,1": {"data": 4, "fsdp": 2}}
EXAMPLES = {"generated": 0, "fixed": 20}
"""Set -> its rows; 0: fresh ones at every step. Batches of 8 run over the ends of a set of 20."""
SPLITS = ("validation", "slices/longer")


def trial_on(mesh: dict[str, int], examples: int) -> Any:
    from tests.experiments.training import trial

    mqar = {"source": "mqar", "seq_len": 16, "batch_size": 8, "task": {"vocab_size": 16, "num_kv_pairs": 2}}
    slices = {"longer": {"seq_len": 32, "sequences": 5}}  # one device scores 4 rows at a time, a mesh of 8 scores 8
    return trial(
        model__pattern="A-", model__vocab_size=None, data={**mqar, "examples": examples, "slices": slices},
        study={"score": "accuracy"}, train__steps=STEPS, mesh=mesh,
    )  # fmt: skip


def reports(gathered: Callable[[str], list]) -> Iterator[dict[str, Any]]:
    """A line a mesh and set. gathered: shapes of what is gathered in a program of this text."""
    from experiments.identity import group_id
    from experiments.states import host, saved
    from experiments.step import Program

    start = None
    for name, mesh in MESHES.items():
        program = Program(trial_on(mesh, 0))
        start = start or saved(host(program.init(program.values(program.trial))))
        for kind, examples in EXAMPLES.items():
            trial = trial_on(mesh, examples)
            assert group_id(trial, None) == program.group  # both sets are read by one program
            yield {"task": kind, "mesh": name, **trained(program, trial, start), "gathered": gathered(
                program.compiled("train").as_text()
            )}  # fmt: skip


def trained(program: Any, trial: Any, start: Any) -> dict[str, Any]:
    """{"losses", and the scores of each of SPLITS}. start: the state before, in the form of checkpoints."""
    import jax

    from experiments.data import load
    from experiments.loop import answered
    from experiments.states import live

    together = trial.mesh.data * trial.mesh.fsdp
    data = load(trial.data, seed=0, evaluation_sequences=6, rows_together=together)
    state, values, losses = live(program.model, program.shapes, program.shardings, start), program.values(trial), []
    for step in range(STEPS):
        state, metrics = program.train_step(state, program.put(data.batch(step)), values)
        losses.append(float(jax.device_get(metrics["loss"])))
    return {"losses": losses, **{split: answered(trial, program, data, split, state.params) for split in SPLITS}}
