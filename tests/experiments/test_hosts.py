"""One training in several processes, through the real command and the real launcher."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from experiments import hosts
from experiments.runs import RunFolder
from hybrid.validation import ConfigError
from tests.experiments.studies import ROOT, Workshop, wait_for

MODEL = 'dict(pattern="MA-", d_model=16, n_heads=2, d_ff=16)'
PLACE = {"HYBRID_COORDINATOR": "a:1", "HYBRID_PROCESSES": "2", "HYBRID_PROCESS": "1"}


def test_without_a_coordinator_there_is_one_process():
    assert hosts.asked({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}) is None


def test_the_place_of_a_process_is_given_or_is_that_of_slurm():
    assert hosts.asked(PLACE) == hosts.Hosts("a:1", 2, 1)
    slurm = {"HYBRID_COORDINATOR": "a:1", "SLURM_NTASKS": "3", "SLURM_PROCID": "0"}
    assert hosts.asked(slurm) == hosts.Hosts("a:1", 3, 0)
    assert hosts.asked(slurm).is_first


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"HYBRID_COORDINATOR": "a"}, "HYBRID_COORDINATOR"),
        ({"HYBRID_PROCESSES": ""}, "HYBRID_PROCESSES"),
        ({"HYBRID_PROCESS": "x"}, "HYBRID_PROCESS"),
        ({"HYBRID_PROCESS": "2"}, "HYBRID_PROCESS"),
    ],
)
def test_a_place_that_cannot_be_is_refused(changed, field):
    with pytest.raises(ConfigError) as error:
        hosts.asked({**PLACE, **changed})
    assert error.value.field == field


def test_a_follower_writes_nothing(tmp_path):
    run = RunFolder(tmp_path / "run").create({"id": "x"})
    run.append({"step": 1})
    before = sorted(path.name for path in run.path.iterdir())
    other = hosts.Follower(run.path)
    with other.claim():
        other.create({"id": "y"}).append({"step": 2})
        other.event("start")
        other.cut(0)
        other.finish({"status": "done"})
        other.fail("train", "no")
    assert (other.rows(), other.record) == ([{"step": 1}], {"id": "x"})
    assert sorted(path.name for path in run.path.iterdir()) == before


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def start(shop, arguments):
    """Two processes of one device each, which the launcher starts by a shell in the place of ssh."""
    command = [sys.executable, "scripts/start_hosts.py", "--hosts=127.0.0.1,127.0.0.1", f"--port={free_port()}"]
    command += ["--ssh=bash -c", f"--python={sys.executable}", "--", *arguments]
    return subprocess.Popen(
        command, env=shop.environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def losses(folder):
    return {
        (row["step"], name): row[name] for row in RunFolder(folder).rows() for name in row if name.endswith("/loss")
    }


@pytest.mark.slow
def test_two_processes_are_killed_and_one_goes_on_with_the_same_losses(tmp_path):
    shop = Workshop(tmp_path, {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"})
    shop.write(model=MODEL, sweep="")
    arguments = ["--config.mesh.data=2", "--config.train.steps=300", "--config.evaluate.every=150"]
    arguments += ["--config.checkpoint.every=50", "--config.train.log_every=25"]
    together = start(shop, shop.arguments(*arguments))
    run = RunFolder(shop.workdir)
    try:
        wait_for(lambda: run.reached() >= 100 or together.poll() is not None, 240)
        assert together.poll() is None, together.communicate()
    finally:
        os.killpg(together.pid, signal.SIGKILL)
    together.communicate()
    assert run.result is None
    assert [event["event"] for event in run.events()].count("start") == 1
    rows = losses(shop.workdir)

    devices = f"{shop.environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-m", "experiments.train", *shop.arguments(*arguments)]
    for folder in (shop.workdir, tmp_path / "alone"):
        words = [f"--workdir={folder}" if word.startswith("--workdir") else word for word in command]
        done = subprocess.run(
            words, env={**shop.environment, "XLA_FLAGS": devices}, cwd=ROOT, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    resumed = [event for event in run.events() if event["event"] == "resume"]
    assert [event["step"] >= 50 for event in resumed] == [True]  # the last save may not have come to its end
    alone = losses(tmp_path / "alone")
    assert losses(shop.workdir) == pytest.approx(alone, rel=1e-4)
    assert rows == pytest.approx({key: alone[key] for key in rows}, rel=1e-4)
