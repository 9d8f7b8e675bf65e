"""What shards of a row know of each other (hybrid/sequence.py, hybrid/ops/on_mesh.py); 8 devices in another process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.sequence import shards

ROOT = Path(__file__).resolve().parents[1]
CASES = (
    "positions before a shard",
    "more positions than a shard has",
    "more positions than there are",
    "a state over all borders",
    "a scan and its last state",
    "taps that reach over three shards",
    "a window over three shards",
)


def test_without_a_mesh_a_row_is_whole():
    assert shards(16) == 1


@pytest.fixture(scope="module")
def said():
    done = subprocess.run(
        [sys.executable, "-m", "tests.sharded_rows"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line["error"] for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shards_together_give_what_a_whole_row_gives(said, case):
    assert said[case] < 1e-12
