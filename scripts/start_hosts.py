"""Starts one training on several hosts, each of which has this project at the same path and sees the same --workdir.

    python scripts/start_hosts.py --hosts=gpu1,gpu2 -- --config=configs/quickstart.py --workdir=/shared/one \
        --config.mesh.fsdp=16

GPU nodes are reached by ssh. The workers of a TPU VM (one process each) by gcloud, or by ssh from worker 0:

    python scripts/start_hosts.py --hosts=10.0.0.2,10.0.0.3 --ssh="gcloud compute tpus tpu-vm ssh NAME --zone=ZONE \
        --worker={process} --command" -- ...

--hosts: their names or addresses; the first one coordinates, at --port, and must be reachable by that name from the
others. --ssh: what a command line is given to as its last word, with {host} and {process} in it. --python: of the
hosts. Variables called HYBRID_..., XLA_..., JAX_... and WANDB_... go along, but no keys: a command line can be read by
all users of a host (`wandb login` keeps the key in a file). Where one process fails, the others are
ended. Exit code: the first that is not 0.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CARRIED = ("HYBRID_", "XLA_", "JAX_", "WANDB_", "NPROC")
GRACE = 30.0
"""Seconds that the others have to end in after one has failed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", required=True, metavar="NAME,NAME")
    parser.add_argument("--port", type=int, default=8476)
    parser.add_argument("--ssh", default="ssh {host}", metavar="COMMAND")
    parser.add_argument("--python", default=".venv/bin/python", metavar="FILE")
    parser.add_argument("arguments", nargs="+", metavar="ARGUMENT", help="of python -m experiments.train, after --")
    options = parser.parse_args()
    hosts = [host for host in options.hosts.split(",") if host]
    processes = [subprocess.Popen(command(options, hosts, number)) for number in range(len(hosts))]
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, frame: [process.send_signal(number) for process in processes])
    return wait(processes)


def command(options: argparse.Namespace, hosts: list[str], process: int) -> list[str]:
    """The command that starts one of the processes on its host."""
    place = {"HYBRID_COORDINATOR": f"{hosts[0]}:{options.port}", "HYBRID_PROCESSES": len(hosts)}
    carried = {
        name: value for name, value in os.environ.items() if name.startswith(CARRIED) and not name.endswith("KEY")
    }
    variables = {**carried, **place, "HYBRID_PROCESS": process}
    words = [f"{name}={value}" for name, value in variables.items()]
    words += [options.python, "-m", "experiments.train", *options.arguments]
    line = f"cd {shlex.quote(str(ROOT))} && exec env {shlex.join(words)}"
    return [*shlex.split(options.ssh.format(host=hosts[process], process=process)), line]


def wait(processes: list[subprocess.Popen]) -> int:
    """Ends with all of them; the first exit code that is not 0."""
    failed, since = 0, 0.0
    while any(process.poll() is None for process in processes):
        if not failed:
            failed = next((process.returncode for process in processes if process.returncode), 0)
            since = time.monotonic()
        elif time.monotonic() - since > GRACE:
            for process in processes:
                process.kill()
        time.sleep(0.2)
    return failed or next((process.returncode for process in processes if process.returncode), 0)


if __name__ == "__main__":
    sys.exit(main())
