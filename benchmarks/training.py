"""A whole training step of a hybrid with one attention layer in eight: d_model 256, SwiGLU 512, bytes, AdamW, float32.

Against transformers' Jamba of the same weights, and against our own model with the plain operators of jax.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import peers
from benchmarks.measure import Times, paired
from benchmarks.rows import Row, faster
from experiments.environment import threads

ENVIRONMENT: dict[str, str] = {"NPROC": "2"}

HYBRID = "M-M-M-M-A-M-M-M-"
MODEL = "hybrid 1:7, d_model 256, 8 layers with SwiGLU 512, 6.6 M parameters, AdamW"

PLAIN: dict[str, Any] = {
    "mamba": {"inner_norm": True, "inner_norm_eps": 1e-5, "scan": "associative"},
    "attention": {"form": "fused"},
}
"""The operators as jax has them: one associative scan over the whole row, jax.nn.dot_product_attention."""


def trial(batch: int, length: int, devices: int = 1, **model: Any) -> Any:
    from experiments.config import trial_from

    return trial_from(
        {
            "model": {
                "pattern": HYBRID, "vocab_size": 256, "d_model": 256, "d_ff": 512, "n_heads": 4, "positions": "none",
                "tie_embeddings": True, "mamba": {"inner_norm": True, "inner_norm_eps": 1e-5}, **model,
            },
            "data": {"source": "stdlib", "seq_len": length, "batch_size": batch},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 1000},
            "evaluate": {"every": 1000},
            "checkpoint": {"every": 1000},
            "mesh": {"data": devices},
        }
    )  # fmt: skip


def tokens(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, length + 1)).astype(np.int32)


class Stepper:
    """Calls the training step of a trial again and again, each time on the state that the one before left."""

    def __init__(self, trial: Any):
        from experiments.step import Program

        self.program = Program(trial)
        self.values = self.program.values(trial)
        rows = tokens(trial.data.batch_size, trial.data.seq_len)
        self.batch = self.program.put({"tokens": rows[:, :-1], "labels": rows[:, 1:].copy()})
        self.state = self.program.init(self.values)

    def __call__(self) -> Any:
        import jax

        self.state, metrics = self.program.train_step(self.state, self.batch, self.values)
        return jax.block_until_ready(metrics)


def jamba() -> Iterator[Row]:
    """Batch 2, L 256."""
    if not peers.there():
        return
    ours = Stepper(trial(2, 256))
    theirs = _transformers(ours, tokens(2, 256))
    times = paired({"ours": ours, "theirs": theirs}, rounds=3, warm=3)
    work = f"training step, batch 2, L 256: {MODEL}"
    yield faster(
        work, f"transformers' Jamba, same parameters, {threads()} threads", times["ours"], times["theirs"], bar=">= 20"
    )


def _transformers(ours: Stepper, rows: np.ndarray) -> Callable[[], Any]:
    """A step of torch's AdamW on Jamba with the weights of ours, with the loss that ours has at its first step."""
    from benchmarks.peers_decoding import load

    t = peers.torch()
    with tempfile.TemporaryDirectory() as folder:
        model = load(ours.program.model, ours.state.params, folder + "/model", "jamba").train()
    wanted = sum(leaf.size for leaf in _leaves(ours.state.params))
    there = sum(parameter.numel() for parameter in model.parameters())
    assert wanted == there, f"{there} parameters, not {wanted}"
    optimizer = t.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    given, labels = (t.from_numpy(part.astype(np.int64)) for part in (rows[:, :-1], rows[:, 1:]))

    def step() -> float:
        logits = model(input_ids=given, use_cache=False).logits
        loss = t.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        t.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def plain_operators() -> Iterator[Row]:
    """Batch 8, L 512, on one device and on two."""
    batch, length = 8, 512
    ours = Stepper(trial(batch, length))
    times = paired({"ours": ours, "plain": plain(batch, length)}, rounds=3)
    work = f"training step, batch {batch}, L {length}: {MODEL}"
    against = "the same model with associative_scan over whole rows and jax.nn.dot_product_attention"
    yield faster(work, against, times["ours"], times["plain"], bar=">= 4")
    two = _on_two_devices(batch, length)
    note = "two devices of half the threads each, in a process of their own: not in turns with the others"
    ratio = times["plain"].ms()["wall"] / two.ms()["wall"]
    clocks: dict[str, Any] = {"ours": two.ms(), "theirs": times["plain"].ms()}
    yield Row(
        work + ", two simulated devices", against + ", one device", ratio, "x as fast", ">= 5", **clocks, note=note
    )
    yield Row(work, "", batch * length / times["ours"].ms()["wall"] * 1e3, "tokens/s", ours=times["ours"].ms())


def plain(batch: int, length: int) -> Stepper:
    """The same step with PLAIN's operators, compiled."""
    from hybrid.ops.scan import selective_scan

    def whole(*arrays: Any, **options: Any) -> Any:
        return selective_scan(*arrays, **{**options, "chunk": length})

    stepper = Stepper(trial(batch, length, **PLAIN))
    with mock.patch("hybrid.ops.on_mesh.selective_scan", whole):
        stepper()
    return stepper


def _on_two_devices(batch: int, length: int) -> Times:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-m", "benchmarks.training", str(batch), str(length)]
    done = subprocess.run(
        command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, timeout=300, check=True
    )
    return Times(**json.loads(done.stdout.splitlines()[-1]))


def two_devices(batch: int, length: int) -> None:
    """In the process that has two: prints the seconds of each round."""
    from experiments.environment import prepare

    prepare()
    times = paired({"ours": Stepper(trial(batch, length, devices=2))}, rounds=5)
    print(json.dumps(vars(times["ours"])))


FUNCTIONS = {"jamba": jamba, "plain_operators": plain_operators}

if __name__ == "__main__":
    two_devices(int(sys.argv[1]), int(sys.argv[2]))
