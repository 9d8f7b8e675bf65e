"""Bytes that the devices of a mesh say to each other in a training step, over the fewest that the mesh allows.

Read from the compiled program of eight simulated devices (hybrid/traffic.py): the same on every machine, and nothing is
run. Bytes are those that a device receives, the mean over the devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from benchmarks.rows import Row

DEVICES = 8
ENVIRONMENT: dict[str, str] = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}", "JAX_PLATFORMS": "cpu"}

BATCH, LENGTH, WIDTH, EXPERTS = 8, 512, 128, 8
FLOAT = 4
HYBRID = {
    "pattern": "M-M-A-M-", "vocab_size": 256, "d_model": WIDTH, "n_heads": 8, "n_kv_heads": 8, "d_ff": 256,
    "tie_embeddings": False, "positions": "none",
}  # fmt: skip


def _trial(model: dict, mesh: dict[str, int], batch: int):
    from experiments.config import trial_from

    return trial_from(
        {
            "model": model,
            "data": {"source": "shakespeare", "seq_len": LENGTH, "batch_size": batch},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 10},
            "evaluate": {"every": 10},
            "checkpoint": {"every": 10},
            "mesh": mesh,
        }
    )


def _row(
    name: str, mesh: dict[str, int], least: Callable[..., float], note: str, model: dict, batch: int = BATCH
) -> Row:
    from experiments.step import Program
    from hybrid.traffic import by_kind, total, traffic

    program = Program(_trial(model, mesh, batch))
    lines = traffic(program.planned({"tokens": (batch, LENGTH), "labels": (batch, LENGTH)}).as_text())
    kinds = ", ".join(f"{each.count} {kind} {each.bytes / 2**20:.2f} MiB" for kind, each in by_kind(lines).items())
    said, fewest = total(lines), least(program, batch)
    work = f"{name}: {model['pattern']}, d_model {WIDTH}, batch {batch}, L {LENGTH}; {said / 2**20:.2f} MiB a step"
    against = f"the minimum, {fewest / 2**20:.2f} MiB"
    return Row(work, against, said / fewest, "x the minimum", note=f"{kinds}. {note}")


def _bytes(program) -> int:
    import jax

    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.shapes.params))


SHARE = (DEVICES - 1) / DEVICES
"""Of an array that its owner does not have, where all have a part of it."""


def _data(program, batch: int) -> float:
    return 2 * SHARE * _bytes(program)


def _fsdp(program, batch: int) -> float:
    return 3 * SHARE * _bytes(program)


def _tensor(program, batch: int) -> float:
    return 2 * len(program.model.sequence) * 2 * SHARE * batch * LENGTH * WIDTH * FLOAT


def _sequence(program, batch: int) -> float:
    model = program.model
    borders = (DEVICES - 1) / DEVICES  # each device but the first receives
    inner = model.mamba.expand * WIDTH
    each_mamba = 2 * borders * batch * inner * (model.mamba.d_state + model.mamba.d_conv - 1) * FLOAT
    each_attention = 2 * SHARE * 2 * batch * LENGTH * WIDTH * FLOAT  # keys and values, and their gradients back
    kinds = [kind.symbol for kind, _ in model.kinds()]
    return _data(program, batch) + kinds.count("M") * each_mamba + kinds.count("A") * each_attention


def _expert(program, batch: int) -> float:
    """Every device has all tokens: what comes back is a sum over the devices, once each way."""
    kinds = [kind.symbol for kind, _ in program.model.kinds()]
    return kinds.count("E") * 2 * 2 * SHARE * batch * LENGTH * WIDTH * FLOAT


def moved() -> Iterator[Row]:
    yield _row("data 8", {"data": 8}, _data, "The minimum: one all-reduce of the gradients.", HYBRID)
    note = "The minimum: parameters gathered forward and backward, gradients reduced and scattered."
    yield _row("fsdp 8", {"fsdp": 8}, _fsdp, note, HYBRID)
    note = "The minimum: an all-reduce of the activations a sublayer, each way."
    yield _row("tensor 8", {"tensor": 8}, _tensor, note, HYBRID)
    note = "The minimum: gradients, a state and three inputs a Mamba and border, keys and values, each way."
    yield _row("sequence 8", {"sequence": 8}, _sequence, note, HYBRID, 1)
    note = "The minimum: an all-reduce of the activations a mixture, each way (tokens are not cut over `expert`)."
    experts = {**HYBRID, "pattern": "AEAE", "moe": {"n_experts": EXPERTS, "dispatch": "capacity"}}
    yield _row("expert 8", {"expert": 8}, _expert, note, experts)


FUNCTIONS: dict[str, Callable[[], Iterator[Row]]] = {"moved": moved}
