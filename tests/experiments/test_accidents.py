"""Kills and signals at random moments: the same command finishes the study, with the same bytes as if nothing happened.

Real processes and real signals. Everything holds for any trainer; TRAINERS says how long each needs between two kills.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.experiments.studies import Workshop, alive, wait_for


@dataclass(frozen=True)
class Trainer:
    """`disturbed`: the environment while accidents happen. `between`: seconds from one kill to the next."""

    disturbed: dict[str, str]
    between: tuple[float, float]
    kills: int
    environment: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    """How long a run is, and how many there are."""

    def shop(self, folder: Path) -> Workshop:
        shop = Workshop(folder, dict(self.environment))
        shop.write(**self.config)
        return shop


FAKE = Trainer(disturbed={"FAKE_STEP": "0.4"}, between=(0.3, 1.2), kills=24)
"""Its steps are so slow that the study does not end before the last kill, on a busy machine either."""
REAL = Trainer(
    disturbed={},
    between=(2.0, 6.0),
    kills=20,
    environment={"HYBRID_TRAINER": "experiments.loop:train"},
    config={
        "lines": "c.train.steps = 800; c.evaluate.every = 200; c.checkpoint.every = 40",
        "sweep": "def sweep(): return axis('model.placement', ['even', 'first'])",
    },
)


BOTH = [pytest.param(FAKE, id="fake"), pytest.param(REAL, id="real", marks=pytest.mark.slow)]
fake_only = pytest.mark.parametrize("trainer", [FAKE], ids=["fake"], indirect=True)


@pytest.fixture(scope="module", params=BOTH)
def trainer(request):
    return request.param


@pytest.fixture(scope="module")
def undisturbed(trainer, warm, tmp_path_factory):
    """What the study gives when nothing happens."""
    shop = trainer.shop(tmp_path_factory.mktemp("undisturbed"))
    assert shop.sweep("--workers=2").code == 0
    return shop.results()


@pytest.fixture
def shop(trainer, undisturbed, tmp_path):
    return trainer.shop(tmp_path)


def begin(shop: Workshop, trainer: Trainer, **environment: str) -> subprocess.Popen:
    arguments = shop.arguments("--workers=2", "--report=false")
    return shop.start(*arguments, **{**trainer.disturbed, **environment})


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def trained(shop: Workshop) -> bool:
    """Whether two workers have made checkpoints, so that they are in the midst of it."""
    return len({path.parent for path in shop.workdir.glob("trials/*/checkpoints/[0-9]*")}) >= 2


def end(process: subprocess.Popen) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.slow
def test_study_that_is_killed_at_random_ends_with_the_same_bytes(shop, trainer, undisturbed):
    """kill -9 of the sweep, of a worker, or of all of them, until there were enough; then the command is left alone."""
    chance = random.Random(os.environ.get("HYBRID_TEST_SEED", "accidents"))
    kills = dict.fromkeys(("sweep", "worker", "both"), 0)
    process, ended = begin(shop, trainer), 0
    while sum(kills.values()) < trainer.kills:
        time.sleep(chance.uniform(*trainer.between))
        if process.poll() is not None:  # the study ended, or a run was killed so often that it was given up
            ended += 1
            assert ended < 40, f"the study ended too soon, after {kills}: no worker is left to be killed"
            end(process)
            process = begin(shop, trainer)
            continue
        victim = min(kills, key=lambda name: (kills[name], chance.random()))
        workers = children(process.pid)
        if victim == "worker" and not workers:
            continue
        kills[victim] += 1
        targets = {"sweep": [], "worker": workers and [chance.choice(workers)], "both": workers}[victim]
        for pid in [*([process.pid] if victim != "worker" else []), *targets]:
            os.kill(pid, signal.SIGKILL)
        if victim != "worker":
            end(process)
            process = begin(shop, trainer)
    process.kill()
    end(process)
    assert min(kills.values()) >= 3, kills
    result = shop.sweep("--workers=2")
    assert result.code == 0, result.out + result.err
    assert shop.results() == undisturbed
    assert not list(shop.workdir.rglob(".*")), "nothing half written is left"


def test_workers_end_with_their_controller(shop, trainer):
    process = begin(shop, trainer, FAKE_STEP="30")
    workers = wait_for(lambda: len(children(process.pid)) == 2 and children(process.pid))
    wait_for(lambda: len(list(shop.workdir.glob("trials/*/events.jsonl"))) == 2)
    process.kill()
    end(process)
    wait_for(lambda: not any(alive(pid) for pid in workers), seconds=5)


@fake_only  # real training under real signals: test_train.py
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_at_the_current_step_and_the_same_command_goes_on(shop, trainer, undisturbed, number, code):
    process = begin(shop, trainer)
    wait_for(lambda: trained(shop))
    workers = children(process.pid)
    os.killpg(process.pid, number)  # as a terminal does: all in the foreground get it
    returned, err = end(process)
    assert returned == code and "all is saved, and the same command goes on" in err
    assert not any(alive(pid) for pid in workers)
    stopped = shop.events("stopped")
    assert len(stopped) == 2
    for event in stopped:
        assert event["step"] in [saved["step"] for saved in shop.events("checkpoint")]
    assert shop.sweep("--workers=2").code == 0
    assert shop.results() == undisturbed
    assert {event["step"] for event in shop.events("resume")} == {event["step"] for event in stopped}


@fake_only
def test_second_ctrl_c_ends_at_once_and_what_is_on_disk_goes_on(shop, trainer, undisturbed):
    process = begin(shop, trainer)
    wait_for(lambda: trained(shop))
    process.kill()
    end(process)
    process = begin(shop, trainer, FAKE_STEP="30")  # training that does not listen
    workers = wait_for(lambda: len(children(process.pid)) == 2 and children(process.pid))
    wait_for(lambda: len(shop.events("start")) == 4)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "the first waits for the workers to save"
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert end(process)[0] == 130 and time.monotonic() - started < 3
    wait_for(lambda: not any(alive(pid) for pid in workers), seconds=5)
    assert shop.sweep("--workers=2").code == 0
    assert shop.results() == undisturbed


@fake_only
def test_folder_is_free_at_once_after_a_kill(shop, trainer):
    process = begin(shop, trainer)
    wait_for(lambda: shop.workdir.exists() and len(list(shop.workdir.glob("trials/*/events.jsonl"))) == 2)
    process.kill()
    end(process)
    result = shop.sweep("--workers=2")
    assert result.code == 0, result.err
    assert [e for e in shop.events("error") if e["phase"] != "held"] == []


@fake_only
def test_run_that_never_progresses_is_given_up_and_taken_up_by_the_next_command(shop, trainer, undisturbed):
    """The worker dies before the first checkpoint, every time."""
    result = shop.sweep("--workers=2", "--config.checkpoint.every=15", FAKE_FAULT="kill", FAKE_ARM="A-(M-)3")
    assert result.code == 1 and result.out.count("no progress in 3 starts: the worker was killed by SIGKILL") == 2
    assert len(shop.events("died")) == 6
    assert shop.sweep("--workers=2").code == 0
    results = shop.results()
    assert {run: rows for run, (_, _, rows) in results.items()} == {
        run: rows for run, (_, _, rows) in undisturbed.items()
    }
