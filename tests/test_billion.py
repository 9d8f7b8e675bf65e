"""What a model of a billion parameters takes on 64 devices, from its compiled program (billion.py, its own process)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.traffic import Traffic, total

ROOT = Path(__file__).resolve().parents[1]
DEVICES, BATCH, LENGTH, WIDTH, LAYERS, FLOAT = 64, 16, 2048, 1536, 48, 4
FSDP, TENSOR = 16, 4


@pytest.fixture(scope="module")
def said():
    done = subprocess.run(
        [sys.executable, "-m", "tests.billion"], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_device_holds_its_64th_of_parameters_and_moments_and_renews_them_in_place(said):
    """A fifth more: what has no dimension of d_model is cut over the four devices of `tensor` alone."""
    assert 0.9e9 < said["parameters"] < 1.1e9
    share = 3 * FLOAT * said["parameters"] / DEVICES
    assert share <= said["arguments"] <= 1.3 * share
    assert said["aliased"] >= share


@pytest.mark.slow
def test_its_activations_fit_beside_them(said):
    """The stream of the residuals is kept at the border of every unit; what is inside of one is made again."""
    assert said["temporaries"] < 150 * BATCH // FSDP * LENGTH * WIDTH * FLOAT


@pytest.mark.slow
def test_devices_say_what_the_layout_makes_them_say(said):
    """All that a ring must bring for this layout on XLA's CPU, where two passes of its other backends are missing: one
    would scatter the gradients (here each device gets the sum whole, twice the bytes), one would add up the cotangents
    of the matrices that read the same stream before they are summed over the devices (here each is summed alone)."""
    lines = [Traffic(**{**line, "loops": tuple(line["loops"])}) for line in said["traffic"]]
    # They talk in the loop over layers, and in no other: neither over positions nor over parts of the vocabulary.
    assert all(len(line.loops) < 2 and sum(line.loops) <= LAYERS for line in lines)
    # Parameters gathered forward and backward, gradients summed.
    parameters = 4 * (FSDP - 1) / FSDP * FLOAT * said["parameters"] / TENSOR
    # A sum of the stream a sublayer forward; the first of a unit's two made again; two readers of the stream backward.
    sums = LAYERS * (1 + 1 / 2 + 2)
    activations = sums * 2 * (TENSOR - 1) / TENSOR * BATCH / FSDP * LENGTH * WIDTH * FLOAT
    assert 0.9 * (parameters + activations) < total(lines) < 1.1 * (parameters + activations)
