"""Trains one tiny model on several meshes of 8 simulated devices and prints what came of it: for test_sharding.py.

    python -m tests.sharded_training FOLDER        (with the XLA flag for 8 devices)

A line of JSON a mesh: {"mesh", "dtype", "losses", "collectives", ...}. FOLDER gets a checkpoint of each mesh. Then a
line a mesh and set of a synthetic task (sharded_tasks.py).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from experiments import environment
from tests import sharded_tasks

STEPS = 50
MESHES = {
    "1": {},
    "8,1,1": {"data": 8},
    "2,4,1": {"data": 2, "fsdp": 4},
    "2,2,2": {"data": 2, "fsdp": 2, "tensor": 2},
}
GATHERED = re.compile(r" = (.*?) all-gather(?:-start)?\(")
SHAPE = re.compile(r"\w+\[([\d,]*)\]")


def trial_on(mesh: dict[str, int], dtype: str) -> Any:
    from tests.experiments.training import trial

    return trial(
        model__pattern="AMH-",
        model__param_dtype=dtype,
        model__compute_dtype=dtype,
        data__batch_size=8,
        train__steps=STEPS,
        optimizer__learning_rate=1e-3,
        mesh=mesh,
    )


def train(trial: Any, start: Any) -> tuple[Any, Any, list[float]]:
    """(program, state, loss of every step). start: the state before, in the form of checkpoints."""
    import jax

    from experiments.states import live
    from experiments.step import Program
    from tests.experiments.training import data_of

    program, data = Program(trial), data_of(trial)
    values = program.values(trial)
    state, losses = live(program.model, program.shapes, program.shardings, start), []
    for step in range(STEPS):
        state, metrics = program.train_step(state, program.put(data.batch(step)), values)
        losses.append(float(jax.device_get(metrics["loss"])))
    return program, state, losses


def report(name: str, dtype: str, folder: Path, start: Any) -> dict[str, Any]:
    import jax

    from experiments.checkpoint import Checkpoints
    from experiments.states import host, saved
    from hybrid.traffic import by_kind, traffic

    program, state, losses = train(trial_on(MESHES[name], dtype), start)
    text = program.compiled("train").as_text()
    said = by_kind(traffic(text))
    with Checkpoints(folder / dtype / name, keep=1) as checkpoints:
        checkpoints.save(STEPS, saved(host(state)), {})
        checkpoints.wait()
    here = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, state)
    return {
        "mesh": name,
        "dtype": dtype,
        "losses": losses,
        "collectives": {kind: line.count for kind, line in said.items()},
        "received": {kind: line.bytes for kind, line in said.items()},
        "summed": summed(program),
        "gathered": gathered(text),
        "tokens": here.params["embedding"]["tokens"].shape,
        "moments of up": optax_mu(here)["layers"]["3"]["sublayer"]["up"].shape,
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(here)),
        "aliased": program.compiled("train").memory_analysis().alias_size_in_bytes,
    }


def gathered(text: str) -> list[list[int]]:
    """Shapes of what the devices of a program of this text gather."""
    found = [shape for shapes in GATHERED.findall(text) for shape in SHAPE.findall(shapes)]
    return [[int(size) for size in shape.split(",") if size] for shape in found]


def summed(program: Any) -> int:
    """Bytes of the gradients that devices with their own rows add up."""
    import jax

    trial, size = program.trial, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.shapes.params):
        name = jax.tree_util.keystr(path)
        size += 0 if "filter" in name or "features" in name else leaf.size * leaf.dtype.itemsize
    tied = program.shapes.params["embedding"]["tokens"].size  # XLA adds up the lookup's and the head's by themselves
    return size + (trial.model.d_model * trial.data.seq_len + tied) * leaf.dtype.itemsize


def optax_mu(state: Any) -> Any:
    import optax

    return optax.tree.get(state.optimizer, "mu")


def initial(dtype: str, mesh: dict[str, int]) -> Any:
    """Initial values made on a mesh, in the form of checkpoints."""
    from experiments.states import host, saved
    from experiments.step import Program

    program = Program(trial_on(mesh, dtype))
    return saved(host(program.init(program.values(program.trial))))


def moved(before: str, after: str, dtype: str, folder: Path) -> dict[str, Any]:
    """Whether a checkpoint of one mesh is the same on another, and where it lies there."""
    import jax
    import numpy as np

    from experiments.checkpoint import Checkpoints
    from experiments.states import host, live, saved, saved_shapes
    from experiments.step import Program

    def restored(name: str) -> tuple[Any, Any]:
        program = Program(trial_on(MESHES[name], dtype))
        with Checkpoints(folder / dtype / before, keep=None) as checkpoints:
            found = checkpoints.newest(saved_shapes(program.model, program.shapes, program.mesh))
        assert found is not None
        return program, live(program.model, program.shapes, program.shardings, found.tree)

    _, kept = restored(before)
    program, state = restored(after)
    leaves = (jax.tree.leaves(saved(host(tree))) for tree in (kept, state))
    equal = all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))
    placed = jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, state, program.shardings)
    return {"before": before, "after": after, "equal": equal, "placed": all(jax.tree.leaves(placed))}


def main(folder: Path) -> None:
    environment.prepare(devices=8)
    import jax

    for dtype in ("float64", "float32"):
        with jax.enable_x64(dtype == "float64"):
            start = initial(dtype, {})
            for name in MESHES:
                print(json.dumps(report(name, dtype, folder, start)), flush=True)
    made = (jax.tree.leaves(tree) for tree in (start, initial("float32", MESHES["2,2,2"])))
    print(json.dumps({"initial": max(float(abs(a - b).max()) for a, b in zip(*made, strict=True))}), flush=True)
    for before, after in (("1", "2,2,2"), ("2,2,2", "2,4,1"), ("2,4,1", "1")):
        print(json.dumps(moved(before, after, "float32", folder)), flush=True)
    for line in sharded_tasks.reports(gathered):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
