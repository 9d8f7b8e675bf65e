"""The same training on one device and on meshes of 8 simulated ones, in a process of its own (sharded_training.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
MESHES = ("8,1,1", "2,4,1", "2,2,2")
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Every line that the process printed."""
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.sharded_training", str(tmp_path_factory.mktemp("sharded"))],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def row(said, mesh, dtype):
    return next(line for line in said if (line.get("mesh"), line.get("dtype")) == (mesh, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mesh", MESHES)
def test_fifty_steps_on_a_mesh_are_those_on_one_device(said, mesh, dtype):
    losses, alone = (np.array(row(said, name, dtype)["losses"]) for name in (mesh, "1"))
    assert len(losses) == 50
    assert alone[-1] < alone[0] - 0.5
    assert np.abs(losses - alone).max() <= TOLERANCE[dtype]


@pytest.mark.slow
def test_one_device_talks_to_nobody(said):
    assert row(said, "1", "float32")["collectives"] == {}


@pytest.mark.slow
def test_parallel_data_only_sum_gradients(said):
    """Every gradient once, 2 x 7/8 of its bytes; of Hyena's filter network that of its taps; the tied table's twice."""
    found = row(said, "8,1,1", "float32")
    assert set(found["received"]) == {"all-reduce"}
    assert found["received"]["all-reduce"] == pytest.approx(2 * 7 / 8 * found["summed"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["2,4,1", "2,2,2"])
def test_cut_parameters_are_gathered_and_activations_are_not(said, mesh):
    found = row(said, mesh, "float32")
    assert found["collectives"]["all-gather"] > 10
    assert {"all-reduce", "reduce-scatter"} & set(found["collectives"])
    assert [shape for shape in found["gathered"] if len(shape) > 2] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generated", "fixed"])
def test_a_task_whose_rows_are_made_in_the_step_is_learnt_and_scored_on_a_mesh_as_on_one_device(said, kind):
    alone, mesh = (line for line in said if line.get("task") == kind)
    assert (alone["mesh"], mesh["mesh"]) == ("1", "4,2,1")
    assert np.abs(np.array(mesh["losses"]) - alone["losses"]).max() <= TOLERANCE["float32"]
    assert len(set(alone["losses"])) == 12
    for split in ("validation", "slices/longer"):
        assert mesh[split] == pytest.approx(alone[split], abs=TOLERANCE["float32"])
    assert (alone["slices/longer"]["accuracy"] * 10) % 1 == pytest.approx(0, abs=1e-9)  # 5 rows of two labels


@pytest.mark.slow
def test_rows_that_are_made_in_the_step_stay_on_their_device(said):
    found = next(line for line in said if line.get("task") == "generated" and line["mesh"] != "1")
    d_model, d_ff = 16, 24  # the only things that fsdp cuts and gathers are parameters; a batch has 8 rows
    assert found["gathered"] != []
    assert [shape for shape in found["gathered"] if len(shape) != 2 or shape[0] not in (d_model, d_ff)] == []


@pytest.mark.slow
def test_fresh_rows_and_those_of_a_fixed_set_are_different(said):
    fresh, fixed = (line["losses"] for line in said if line.get("task") and line["mesh"] == "1")
    assert fresh != fixed


SHARES = [
    ("1", [258, 16], [16, 24]),
    ("8,1,1", [258, 16], [16, 24]),
    ("2,4,1", [258, 4], [4, 24]),
    ("2,2,2", [129, 8], [8, 12]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "tokens", "up"), SHARES)
def test_each_device_holds_its_share_of_parameters_and_moments_and_updates_it_in_place(said, mesh, tokens, up):
    found = row(said, mesh, "float32")
    assert (found["tokens"], found["moments of up"]) == (tokens, up)
    assert found["aliased"] >= found["bytes"]


@pytest.mark.slow
def test_initial_values_do_not_depend_on_the_mesh(said):
    (line,) = (line for line in said if "initial" in line)
    assert line["initial"] <= 1e-6


@pytest.mark.slow
def test_checkpoints_are_restored_onto_other_meshes(said):
    moves = [line for line in said if "before" in line]
    assert [(move["before"], move["after"]) for move in moves] == [("1", "2,2,2"), ("2,2,2", "2,4,1"), ("2,4,1", "1")]
    assert all(move["equal"] and move["placed"] for move in moves)
