"""The launcher for SLURM on a real cluster of one machine, where SLURM is installed (Debian: slurmctld, slurmd,
slurm-client, munge); elsewhere these tests say that they are skipped."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from experiments import manifest
from experiments.runs import RunFolder
from tests.experiments.studies import ROOT, Workshop, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
MODEL = 'dict(pattern="-", d_model=8, d_ff=8)'
SWEEP = """
def sweep():
    return axis("optimizer.learning_rate", [1e-3, 3e-3])
"""
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def test_a_study_without_slurm_is_refused_in_one_line(tmp_path):
    shop = Workshop(tmp_path)
    shop.write(model=MODEL, sweep=SWEEP)
    done = slurm(shop, "run", "--nodes=2", PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: sbatch: is not there")


def test_a_flag_of_the_other_command_is_refused(tmp_path):
    done = slurm(Workshop(tmp_path), "sweep", "--nodes=2")
    assert done.returncode == 2
    assert "--nodes: is not a flag of 'sweep'" in done.stderr


def slurm(shop, *words, **environment):
    command = [sys.executable, "scripts/slurm.py", *words, *shop.arguments()]
    return subprocess.run(
        command, env={**shop.environment, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Variables of the environment under which SLURM's commands speak to two nodes of one core on this machine."""
    if MISSING or os.getuid() != 0:
        pytest.skip(f"SLURM is not installed here ({', '.join(MISSING)})" if MISSING else "slurmd needs root")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    listening = [socket.socket() for _ in range(3)]
    for each in listening:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in listening]
    for each in listening:
        each.close()
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=socket.gethostname().split(".")[0], folder=folder, ports=ports, user="root"))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = {**os.environ, "SLURM_CONF": str(conf), "PATH": PATH}
    log = (folder / "log.txt").open("w")

    def start(*words):
        return subprocess.Popen(words, env=environment, stdout=log, stderr=log)

    files = [f"--{what}-file={folder}/munge.{what}" for what in ("key", "pid", "log", "seed")]
    running = [start("munged", "--force", "-F", f"--socket={folder}/munge.socket", *files)]
    try:
        wait_for((folder / "munge.socket").exists, 20)
        running += [start("slurmctld", "-D", "-i"), *(start("slurmd", "-D", "-N", node) for node in ("n1", "n2"))]

        def idle():
            done = subprocess.run(
                ["sinfo", "-h", "-o", "%T %D"], env=environment, capture_output=True, text=True, check=False
            )
            return done.stdout.split() == ["idle", "2"]

        wait_for(idle, 60)
        yield {"SLURM_CONF": str(conf), "PATH": PATH}
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(20)
        log.close()


def queue_is_empty(variables):
    done = subprocess.run(["squeue", "-h"], env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return not done.stdout.strip()


@pytest.mark.slow
def test_a_study_goes_through_both_stages_as_arrays_and_ends_with_its_report(cluster, tmp_path):
    shop = Workshop(tmp_path, {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **cluster})
    shop.write(model=MODEL, sweep=SWEEP)
    done = slurm(shop, "sweep", "--at_once=2")
    assert done.returncode == 0, done.stderr
    assert [line.partition(": ")[2] for line in done.stdout.splitlines()][-2:] == ["tune (2 runs)", "what comes after"]
    wait_for((shop.workdir / "report" / "report.md").exists, 400)
    wait_for(lambda: queue_is_empty(cluster), 60)
    stages = {stage: [run["id"] for run in runs] for stage, runs in manifest.stages(shop.workdir)}
    assert (len(stages["tune"]), len(stages["confirm"])) == (2, 1)
    for run_id in [*stages["tune"], *stages["confirm"]]:
        run = manifest.run_folder(shop.workdir, run_id)
        assert run.status() == "done"
        assert [event["event"] for event in run.events()].count("start") == 1
    logs = sorted(path.name for path in (shop.workdir / "slurm").glob("tune-5-*.txt"))
    assert [name.rpartition("_")[2] for name in logs] == ["0.txt", "1.txt"]


@pytest.mark.slow
def test_one_run_over_two_nodes_is_one_training(cluster, tmp_path):
    shop = Workshop(tmp_path, {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "NPROC": "1", **cluster})
    shop.write(model=MODEL, sweep="", lines="c.mesh = ConfigDict(dict(data=2))")
    done = slurm(shop, "run", "--nodes=2")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: queue_is_empty(cluster), 300)
    said = "".join(path.read_text() for path in (tmp_path / "run.slurm").glob("*.txt"))
    run = RunFolder(shop.workdir)
    assert run.status() == "done", said
    assert [event["event"] for event in run.events()].count("start") == 1
    assert said.count("done at step 20") == 1
    assert json.loads((shop.workdir / "done.json").read_text())["step"] == 20
