"""Experts in training: the bias that moves without a gradient, what is logged, what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.loop import train
from experiments.states import live, saved
from experiments.step import Program
from tests.experiments.training import data_of, quick, run_of, trial
from tests.sharded_experts import FORMS, MESHES

quick = pytest.fixture(autouse=True, scope="module")(quick)

FIELDS = {
    "model__pattern": "EE[A|E]",
    "model__moe": {"n_experts": 4, "top_k": 1, "d_ff": 8, "gate": "sigmoid", "bias_rate": 0.01, "z_loss": 1e-3},
}


def biases(params):
    """By the path of each."""
    flat = jax.tree_util.tree_leaves_with_path(params["layers"])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat if "balance_bias" in str(path)}


@pytest.mark.parametrize("scan_layers", [False, True])
def test_each_step_moves_every_bias_by_its_rate_and_a_checkpoint_holds_it(scan_layers):
    one = trial(**FIELDS, model__scan_layers=scan_layers, optimizer__weight_decay=0.5)
    program = Program(one)
    values = program.values(one)
    state, count = program.init(values), 3
    for step in range(count):
        state, metrics = program.train_step(state, program.put(data_of(one).batch(step)), values)
    found = biases(state.params)
    assert len(found) == (2 if scan_layers else 3)
    for bias in found.values():
        rounds = np.asarray(bias, float) / 0.01
        np.testing.assert_allclose(rounds, np.round(rounds), atol=1e-4)  # no decay, no gradient
        assert 1 <= np.abs(np.round(rounds)).max() <= count
    assert "balance_bias" not in str(jax.tree_util.tree_structure(saved(state)["mu"]))
    again = live(one.model, program.shapes, program.shardings, jax.device_get(saved(state)))
    for path, bias in biases(again.params).items():
        np.testing.assert_array_equal(bias, found[path])
    names = {f"aux/{name}" for name in ("moe_balance", "moe_entropy", "moe_load_entropy", "moe_dropped", "moe_z")}
    assert names - {"aux/moe_z"} <= set(metrics)
    assert 1.0 <= float(metrics["aux/worst_moe_load"]) <= 4.0
    assert float(metrics["aux/moe_dropped"]) == 0.0


def test_the_worst_load_is_that_of_the_worst_layer():
    one = trial(model__pattern="EE", model__moe={"n_experts": 4, "top_k": 1, "d_ff": 8})
    program = Program(one)
    values = program.values(one)
    state = program.init(values)
    params = jax.tree.map(lambda leaf: leaf, state.params)
    # all experts of the first layer's router are alike: ties go to the first. The second is left as it was.
    params["layers"]["0"]["sublayer"]["router"] = 0.0 * params["layers"]["0"]["sublayer"]["router"]
    batch = program.put(data_of(one).batch(0))
    _, metrics = program.train_step(dataclasses.replace(state, params=params), batch, values)
    assert float(metrics["aux/worst_moe_load"]) == 4.0
    assert float(metrics["aux/moe_load_entropy"]) > 0.1  # the mean of 0 and of the other's


def test_a_run_writes_them_in_its_metrics(tmp_path):
    one = trial(**FIELDS, train__steps=2, train__log_every=1, evaluate__every=2, checkpoint__every=2)
    data = data_of(one)
    run = run_of(one, tmp_path / "run", data)
    with run.claim():
        assert train(one, run, {}, data=data) == "done"
    trained = [row for row in run.rows() if "train/loss" in row]
    assert trained
    assert all("train/aux/worst_moe_load" in row and "train/aux/moe_balance" in row for row in trained)


@pytest.mark.slow
def test_devices_for_experts_give_the_losses_of_one():
    """A process of its own, with eight simulated devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.sharded_experts"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["form"], row["mesh"]) for row in rows] == [(form, mesh) for form in FORMS for mesh in MESHES]
    for form in FORMS:
        alone, *others = (row for row in rows if row["form"] == form)
        for row in others:
            np.testing.assert_allclose(row["losses"], alone["losses"], rtol=1e-10)
            assert "expert" in row["up"]
