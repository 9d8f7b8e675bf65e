"""What a model of a billion parameters takes on 64 devices, from its compiled program (billion.py, its own process)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.traffic import Traffic, by_kind

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
    assert 0.9e9 < said["parameters"] < 1.1e9
    share = 3 * FLOAT * said["parameters"] / DEVICES
    assert share <= said["arguments"] <= 1.02 * share
    assert said["aliased"] >= share


@pytest.mark.slow
def test_its_activations_fit_beside_them(said):
    """The stream of the residuals is kept at the border of every unit; what is inside of one is made again."""
    a_stream = BATCH // FSDP * LENGTH * WIDTH * FLOAT
    assert said["temporaries"] < 200 * a_stream


@pytest.mark.slow
def test_devices_say_little_more_than_they_must(said):
    lines = [Traffic(**{**line, "loops": tuple(line["loops"])}) for line in said["traffic"]]
    # Layers are gathered inside of the loop over units, and in no other loop.
    assert max(len(line.loops) for line in lines) == 1
    kinds = by_kind(lines)
    gathered = 2 * (FSDP - 1) / FSDP * FLOAT * said["parameters"] / TENSOR
    assert kinds["all-gather"].bytes < 1.5 * gathered
