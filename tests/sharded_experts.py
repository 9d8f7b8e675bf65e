"""Trains a tiny mixture of experts on meshes of 8 simulated devices and prints what came of it: for test_moe.py.

    python -m tests.sharded_experts        (with the XLA flag for 8 devices)

A line of JSON a form and mesh: {"form", "mesh", "losses", "up"}, `up` being how the experts' weights lie.
"""

from __future__ import annotations

import json
import sys

from experiments import environment

STEPS = 2
MESHES = {"1": {}, "fsdp 2, tensor 2, expert 2": {"fsdp": 2, "tensor": 2, "expert": 2}}
FORMS = {"dropless": {}, "capacity": {"dispatch": "capacity", "capacity_factor": 0.8}}


def main() -> int:
    environment.prepare()
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    from experiments.step import Program
    from tests.experiments.training import data_of, trial

    for form, moe in FORMS.items():
        for name, mesh in MESHES.items():
            one = trial(
                model__pattern="E", model__d_ff=8, model__param_dtype="float64", model__compute_dtype="float64",
                model__moe={"n_experts": 4, "gate": "sigmoid", "bias_rate": 0.01, "n_shared": 1, **moe}, mesh=mesh,
            )  # fmt: skip
            program, data = Program(one), data_of(one)
            values = program.values(one)
            state, losses = program.init(values), []
            for step in range(STEPS):
                state, metrics = program.train_step(state, program.put(data.batch(step)), values)
                losses.append(float(jax.device_get(metrics["loss"])))
            lies = str(state.params["layers"]["0"]["sublayer"]["up"].sharding.spec) if mesh else ""
            print(json.dumps({"form": form, "mesh": name, "losses": losses, "up": lies}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
