"""The comparing workspace: what it shows, and that typing the command again updates it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loopback_wandb import ENTITY, LoopbackWandb

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_workspace.py"

pytest.importorskip("wandb_workspaces", reason="the extra `workspaces` is not installed")


def make(tmp_path, *flags, times=1, **environment) -> str:
    """What the script prints, run so many times (in one process: the client takes seconds to import)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    code = f"import runpy, sys; main = runpy.run_path({str(SCRIPT)!r})['main']\n" + "main(sys.argv[1:])\n" * times
    command = [sys.executable, "-c", code, f"--entity={ENTITY}", "--project=p", *flags]
    env = {**kept, "HOME": str(tmp_path), **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def panels(spec, kind) -> list[dict]:
    sections = spec["section"]["panelBankConfig"]["sections"]
    return [panel["config"] for section in sections for panel in section["panels"] if panel["viewType"] == kind]


def test_model_is_made_without_a_server_and_compares_the_arms_of_a_study(tmp_path):
    spec = json.loads(make(tmp_path, "--study=quick", "--print"))["spec"]
    curves = [panel for panel in panels(spec, "Run History Line Plot") if panel.get("groupBy") == "arm.value"]
    assert [(panel["xAxis"], panel["metrics"]) for panel in curves] == [
        ("tokens", ["validation/bits_per_byte"]),
        ("flops", ["validation/bits_per_byte"]),
    ]
    scatter = [(panel["xAxis"], panel["yAxis"]) for panel in panels(spec, "Scatter Plot")]
    assert ("config:ratio.value", "summary:final/test/bits_per_byte") in scatter
    (coordinates,) = panels(spec, "Parallel Coordinates Plot")
    assert {"accessor": "config:learning_rate.value", "log": True} in coordinates["columns"]
    (runs,) = spec["section"]["runSets"]
    assert "quick" in json.dumps(runs["filters"])
    assert "arm" in json.dumps(runs["grouping"])


def test_saving_twice_updates_one_view(tmp_path):
    with LoopbackWandb() as server:
        urls = set(make(tmp_path, times=2, **server.environment).split())
        assert server.operations.count("UpsertView2") == 2
        (view,) = server.views.values()
        assert view["id"] == f"view-{view['name']}" and view["displayName"] == "Hybrid: arms"
        assert urls == {f"{server.url}/{ENTITY}/p?nw={view['name'].removeprefix('nw-').removesuffix('-v')}"}
        assert server.updates == [view["id"]]
