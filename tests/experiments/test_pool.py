"""Workers: who trains what; failures and deaths are written down and the others go on."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from experiments.pool import STARTS, Pool, Queue, Task, to_retry
from experiments.runs import RunFolder
from tests.experiments.studies import alive, wait_for


def tasks(*rows) -> list[Task]:
    return [Task(RunFolder(name), group, size) for name, group, size in rows]


def taken(queue: Queue, mine=(), others=()) -> str:
    task = queue.take(dict.fromkeys(mine), set(others))
    return task.run.id if task else ""


def test_longest_group_and_in_it_the_longest_run_comes_first():
    queue = Queue(tasks(("a", "x", 1), ("b", "x", 3), ("c", "y", 5)))
    assert [taken(queue), taken(queue), taken(queue), taken(queue)] == ["c", "b", "a", ""]


def test_worker_stays_with_groups_it_has_compiled_then_takes_a_fresh_one_then_helps():
    queue = Queue(tasks(("a", "x", 9), ("b", "x", 9), ("c", "y", 5), ("d", "z", 1)))
    assert taken(queue, mine=["z"], others=["x"]) == "d"
    assert taken(queue, mine=["z"], others=["x"]) == "c"
    assert taken(queue, mine=["z", "y"], others=["x"]) == "a"


def test_run_that_is_given_back_is_next_in_its_group():
    queue = Queue(tasks(("a", "x", 2), ("b", "x", 1)))
    first = queue.take({}, set())
    queue.back(first)
    assert len(queue) == 2 and taken(queue) == "a"


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def study(workshop, warm):
    """Four frozen runs of two arms, and a pool for them."""
    from experiments import manifest
    from experiments.configfile import ConfigFile
    from experiments.study import plan

    planned = plan(ConfigFile(workshop.config), [], lambda data: "f00d")
    frozen = manifest.freeze(workshop.workdir, planned, "command", threads=1, workers=2, warn=print)
    workshop.tasks = [Task(manifest.run_folder(workshop.workdir, run.id), run.group) for run in frozen.runs]

    def pool(workers=2, **environment):
        variables = {**workshop.environment, **environment}
        return Pool(workers, trainer="fake_trainer:train", environment=variables)

    workshop.pool = pool
    return workshop


def states(study) -> list[str]:
    return [task.run.status() for task in study.tasks]


def uses(study) -> list[list[int]]:
    return [[e["uses"] for e in task.run.events() if e["event"] == "compiled"] for task in study.tasks]


def test_two_workers_train_all_runs(study):
    with study.pool() as pool:
        pool.run(study.tasks)
    assert states(study) == ["done"] * 4
    assert uses(study)[0] == uses(study)[2] == [1]


def test_worker_compiles_a_group_once(study):
    with study.pool(1) as pool:
        pool.run(study.tasks)
    assert uses(study) == [[1], [2], [1], [2]]


def test_one_worker_lives_from_one_call_to_the_next(study):
    with study.pool(1) as pool:
        pool.run(study.tasks[:1])
        first = pool.workers[0].process.pid
        pool.run(study.tasks[1:])
        assert [worker.process.pid for worker in pool.workers] == [first]
    assert states(study) == ["done"] * 4 and uses(study)[1] == [2]
    assert not alive(first)


@pytest.mark.parametrize(
    ("fault", "phase", "error"),
    [
        ("error", "train", "ValueError: the loss has no gradient here"),
        ("memory", "oom", "MemoryError"),
        ("disk", "files", "OSError: [Errno 28] No space left on device"),
        ("kill", "no progress", f"no progress in {STARTS} starts: the worker was killed by SIGKILL"),
        ("abort", "no progress", f"no progress in {STARTS} starts: the worker was killed by SIGABRT"),
        ("exit", "no progress", f"no progress in {STARTS} starts: the worker was ended with exit code 3"),
    ],
)
def test_failure_is_written_down_with_its_log_and_command_and_the_others_go_on(study, fault, phase, error):
    arm = study.tasks[2].run.record["arm"]
    with study.pool(FAKE_FAULT=fault, FAKE_ARM=arm) as pool:
        pool.run(study.tasks)
    assert states(study) == ["done", "done", "failed", "failed"]
    failure = study.tasks[2].run.failure
    assert (failure["phase"], failure["error"]) == (phase, error)
    assert any("about to fail" in line for line in failure["log"])
    assert failure["command"] == f"python -m experiments.train --trial={study.tasks[2].run.path}/config.json"
    assert failure["attempts"] == (STARTS + 1 if phase == "no progress" else 1), "the first start reached a checkpoint"
    assert study.tasks[2].run.rows()[-1]["step"] >= 5


def test_run_that_diverged_is_an_end_and_no_failure(study):
    with study.pool(FAKE_FAULT="diverge", FAKE_ARM=study.tasks[2].run.record["arm"]) as pool:
        pool.run(study.tasks)
    assert states(study) == ["done", "done", "diverged", "diverged"]


def test_trainer_that_cannot_be_imported_fails_every_run_with_the_reason(study):
    with Pool(2, trainer="no_such_module:train", environment=study.environment) as pool:
        pool.run(study.tasks)
    assert states(study) == ["failed"] * 4
    assert study.tasks[0].run.failure["error"] == "ModuleNotFoundError: No module named 'no_such_module'"


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_worker_keeps_large_arrays_of_all_its_threads(study):
    """Its inbox has a thread: had that an arena of its own, later threads would share it, and map each array anew."""
    with Pool(1, trainer="fake_trainer:taking_memory", environment=study.environment) as pool:
        pool.run(study.tasks[:1])
    assert study.tasks[0].run.failure["error"] == "ValueError: 4 of 4 on the heap"


def test_worker_that_cannot_start_at_all_is_given_up(study):
    with study.pool(PYTHONPATH="/dev/null", PYTHONHOME="/nowhere") as pool:
        pool.run(study.tasks[:1])
    failure = study.tasks[0].run.failure
    assert failure["phase"] == "no progress" and any("encodings" in line for line in failure["log"])


def test_run_that_another_process_holds_is_not_trained_twice(study):
    with study.tasks[0].run.claim(), study.pool(1) as pool:
        pool.run(study.tasks[:1])
        failure = study.tasks[0].run.failure
    assert failure["phase"] == "held" and f"process {os.getpid()}" in failure["error"]
    assert study.tasks[0].run.rows() == [] and to_retry(study.tasks[0].run, everything=False)


def test_worker_that_is_told_to_stop_alone_is_replaced_and_its_run_goes_on(study):
    def stop_one():
        wait_for(lambda: study.tasks[0].run.reached() >= 5)
        os.kill(pool.workers[0].process.pid, signal.SIGTERM)

    with study.pool(1, FAKE_STEP="0.05") as pool:
        killer = threading.Thread(target=stop_one)
        killer.start()
        pool.run(study.tasks[:1])
        killer.join()
    assert states(study)[0] == "done"
    names = [event["event"] for event in study.tasks[0].run.events()]
    assert names.count("start") == 2 and names.count("stopped") == 1 and names.count("resume") == 1


def training(study, *command: str) -> subprocess.Popen:
    """A process that trains for long, by a worker that reads the stdin that we hold."""
    run = study.tasks[0].run
    environment = {**study.environment, "FAKE_STEP": "30"}
    process = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, env=environment)
    process.stdin.write(json.dumps({"run": str(run.path)}).encode() + b"\n")
    process.stdin.flush()
    wait_for(lambda: any(event["event"] == "compiled" for event in run.events()))
    return process


def test_worker_ends_at_the_end_of_its_stdin_in_the_midst_of_training(study):
    worker = training(study, "-m", "experiments.worker", f"--parent={os.getpid()}", "--trainer=fake_trainer:train")
    worker.stdin.close()
    assert worker.wait(timeout=5) == 0


def test_worker_ends_with_its_parent_though_its_stdin_stays_open(study):
    words = "sys.executable, '-m', 'experiments.worker', f'--parent={os.getpid()}', '--trainer=fake_trainer:train'"
    parent = training(study, "-c", f"import os, subprocess, sys; subprocess.run([{words}])")
    pid = next(event for event in study.tasks[0].run.events() if event["event"] == "start")["pid"]
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(pid), seconds=5)
    parent.stdin.close()


def test_own_errors_are_begun_again_with_other_code_or_on_demand_only(study, monkeypatch):
    run = study.tasks[0].run
    for phase, again in (("train", False), ("oom", False), ("no progress", True), ("files", True), ("held", True)):
        run.fail(phase, "x", code="abc")
        monkeypatch.setattr("experiments.pool.code", lambda: "abc")
        assert to_retry(run, everything=False) == again, phase
        assert to_retry(run, everything=True)
        monkeypatch.setattr("experiments.pool.code", lambda: "def")
        assert to_retry(run, everything=False), "the code was mended since"
