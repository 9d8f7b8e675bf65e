"""W&B as a mirror, with its real client against a server on this machine: no row lost, none twice, no waiting.

Each test that speaks to the client does so in processes of its own: the client keeps state for a process's life.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import tracking, wandb_run
from experiments.files import lock
from experiments.runs import RunFolder
from experiments.wandb_sweep import write_sweep_yaml
from tests import fake_study
from tests.loopback_wandb import LoopbackWandb, Run

ROOT = Path(__file__).resolve().parents[2]

TRAIN = """
import json, os, signal, sys, time
from experiments import tracking
from experiments.config import TrackingConfig
from experiments.runs import RunFolder

plan = json.loads(sys.argv[1])
tracking.FINISH_SECONDS = plan.get("finish_seconds", tracking.FINISH_SECONDS)
if plan.get("patient", True):  # a server that is there is waited for, however busy the machine that tests
    tracking.START_SECONDS, tracking.ANSWER_SECONDS = 60.0, 30.0
for folder in plan["folders"]:
    run = RunFolder(folder)
    rows = [json.loads(line) for line in open(os.path.join(folder, "plan.jsonl"))]
    with run.claim():
        run.cut(plan.get("cut", 0))
        begun = time.monotonic()
        mirror = tracking.open(TrackingConfig(mode=plan.get("mode", "auto"), project="p", tags=("t",)), run.record, run)
        times = {"open": time.monotonic() - begun}
        rows = [row for row in rows if row["step"] > plan.get("cut", 0)]
        begun = time.monotonic()
        for i, row in enumerate(rows):
            if i == plan.get("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            run.append(row)
            mirror.log(row)
        times["row"] = (time.monotonic() - begun) / max(len(rows), 1)
        begun = time.monotonic()
        result_file = os.path.join(folder, "result.json")
        result = json.load(open(result_file)) if os.path.exists(result_file) else None
        if result is not None:
            run.finish(result)
        mirror.close(result)
        times |= {"close": time.monotonic() - begun, "on": mirror.is_on, "wandb": "wandb" in sys.modules}
    print(json.dumps(times))
"""


@pytest.fixture
def server():
    with LoopbackWandb() as server:
        yield server


@pytest.fixture
def environment(tmp_path):
    """A process without the keys, settings and modes of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**kept, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}


def study(folder: Path, *runs: fake_study.Run) -> list[RunFolder]:
    """Run folders before training: the rows and the result that training will come to are in files of their own."""
    fake_study.write(folder, runs)
    made = [RunFolder(folder / "trials" / run.id) for run in runs]
    for run in made:
        (run.path / "metrics.jsonl").rename(run.path / "plan.jsonl")
        if (run.path / "done.json").exists():
            (run.path / "done.json").rename(run.path / "result.json")
        (run.path / "events.jsonl").unlink()
    return made


def planned(run: RunFolder) -> list[int]:
    """The steps that the run has rows for."""
    lines = (run.path / "plan.jsonl").read_text().splitlines()
    return sorted({json.loads(line)["step"] for line in lines})


def train(environment, runs, check=True, **plan) -> list[dict]:
    plan["folders"] = [str(run.path) for run in runs]
    command = [sys.executable, "-c", TRAIN, json.dumps(plan)]
    done = subprocess.run(command, env=environment, cwd=runs[0].path, capture_output=True, text=True, timeout=90)
    assert not check or done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def sync(environment, folder, *flags) -> tuple[int, str]:
    command = [sys.executable, "-m", "experiments.sync", str(folder), *flags]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def only(server: LoopbackWandb) -> Run:
    (run,) = server.runs.values()
    return run


def leaves(value) -> int:
    return sum(leaves(item) for item in value.values()) if isinstance(value, dict) else 1


# --- the live mirror --------------------------------------------------------------------------------------------------
def test_online_run_carries_every_row_and_what_people_group_by(tmp_path, server, environment):
    (run,) = study(tmp_path / "quick", fake_study.Run("quarter_even", 1, 3e-3))
    with (run.path / "plan.jsonl").open("a") as plan:  # a task's slice, at the last step
        plan.write(json.dumps({"step": 200, "slices/16 pairs/loss": 0.5, "slices/16 pairs/accuracy": 0.75}) + "\n")
    layers = [{"index": 0, "kind": "M", "parameters": 7, "flops": 5, "state_bytes": 3}]
    record = run.record
    record["derived"]["layers"] = layers
    run.create(record)
    (times,) = train({**environment, **server.environment}, [run])
    seen = only(server)
    assert seen.steps == seen.received == planned(run)
    assert seen.rows[0] | wandb_run.values(wandb_run.by_step(run.rows())[0]) == seen.rows[0]
    assert (seen.project, seen.fields["groupName"], seen.fields["jobType"]) == ("p", "quick", "train")
    assert seen.fields["displayName"] == "quarter_even lr 0.003 seed 1"
    assert set(seen.fields["tags"]) == {"t", "tune", "shakespeare"}
    assert seen.name == wandb_run.wandb_id(record, run.path) and seen.name.endswith(f"-{run.id}")
    config = {key: entry["value"] for key, entry in seen.config.items()}
    wanted = {"arm": "quarter_even", "pattern": "M-M-A-M-", "ratio": 0.25, "placement": "even", "seed": 1}
    wanted |= {"params_total": 400_000, "flops_per_token": 2_400_000, "learning_rate": 0.003}
    wanted |= {"tokens_planned": 200 * 8 * 256, "data_fingerprint": "f00dcafe0001"}
    assert {key: config[key] for key in wanted} == wanted
    assert config["optimizer"]["schedule"] == "cosine" and config["versions"]["jax"] == "0.10.2"
    result = run.result
    assert seen.summary["final/test/bits_per_byte"] == result["test"]["bits_per_byte"]
    best = min(row["validation/bits_per_byte"] for row in run.rows() if "validation/bits_per_byte" in row)
    assert seen.summary["validation/bits_per_byte"] == {"min": best}
    assert seen.rows[-1]["slices/16 pairs/accuracy"] == seen.summary["final/slices/16 pairs/accuracy"] == 0.75
    assert (seen.summary["status"], seen.summary["tokens"], seen.summary["restarts"]) == ("done", result["tokens"], 0)
    assert seen.exit_codes == [0]
    (table,) = [content for name, content in seen.files.items() if name.startswith("media/table/layers")]
    assert json.loads(table) == {"columns": list(layers[0]), "data": [[0, "M", 7, 5, 3]]}
    assert times["open"] < 10 and times["row"] < 0.02  # a row goes to another process; nothing waits for an answer
    assert_curves_lie_over_tokens(seen)


def assert_curves_lie_over_tokens(seen: Run) -> None:
    metrics = seen.config["_wandb"]["value"]["m"]  # as the client encodes them: 1 name, 2 glob, 5 its x axis
    names = [metric.get("1") or metric.get("2") for metric in metrics]
    for pattern in ("train/*", "validation/*", "test/*", "slices/*", "validation/bits_per_byte"):
        assert names[metrics[names.index(pattern)]["5"] - 1] == "tokens"
    for axis in ("tokens", "flops"):
        assert 2 in metrics[names.index(axis)]["6"]  # hidden


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["closed", "silent"])
def test_server_away_costs_ten_seconds_once_and_no_row(tmp_path, environment, trouble):
    """Nobody listens, or somebody who never answers. The next run of the process does not wait at all."""
    runs = study(tmp_path / "away", fake_study.Run("mamba", 0, 1e-3), fake_study.Run("mamba", 1, 1e-3))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if trouble == "silent":
            listener.listen(20)
        away = LoopbackWandb(listener.getsockname()[1])
        first, second = train({**environment, **away.environment}, runs, patient=False)
    assert first["open"] + first["close"] < 10
    assert second["open"] + second["close"] < 3
    for run in runs:
        assert run.status() == "done" and sorted({row["step"] for row in run.rows()}) == planned(run)
        (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
        assert b"validation/bits_per_byte" in file.read_bytes()
    if trouble == "silent":
        return  # the upload does not depend on why the server was away
    with LoopbackWandb(away.port) as server:
        code, said = sync({**environment, **server.environment}, tmp_path / "away")
        assert code == 0 and said.count("10 of 10 rows sent") == 2
        for run in runs:
            seen = server.runs[wandb_run.wandb_id(run.record, run.path)]
            assert seen.steps == seen.received == planned(run)


def test_server_that_dies_midway_is_waited_for_shortly_and_sync_sends_the_rest_once(tmp_path, server, environment):
    (run,) = study(tmp_path / "dies", fake_study.Run("mamba", 0, 1e-3))
    environment |= server.environment
    server.dies_after = 4
    (times,) = train(environment, [run], finish_seconds=3.0)
    assert times["close"] < 4.5 and run.status() == "done" and server.lines == 4
    server.dies_after = None
    code, said = sync(environment, run.path)
    assert code == 0 and "6 of 10 rows sent" in said
    assert only(server).received == only(server).steps == planned(run)


def test_no_key_means_offline_and_off_means_no_wandb_at_all(tmp_path, environment):
    run, other = study(tmp_path / "quiet", fake_study.Run("mamba", 0, 1e-3), fake_study.Run("mamba", 1, 1e-3))
    for key in ({}, {"WANDB_API_KEY": "short"}):  # none, and one that cannot be a key
        (times,) = train({**environment, **key}, [run])
        assert times["wandb"] and len(list(run.path.glob("wandb/offline-run-*"))) == 1
        shutil.rmtree(run.path / "wandb")
    (times,) = train(environment, [other], mode="off")
    assert not times["wandb"] and not (other.path / "wandb").exists()


def test_killed_run_is_completed_by_its_resume(tmp_path, server, environment):
    """W&B has rows after the checkpoint: they come again in training and are not sent again."""
    (run,) = study(tmp_path / "killed", fake_study.Run("mamba", 0, 1e-3))
    environment |= server.environment
    train(environment, [run], check=False, kill=15)
    assert run.status() == "stopped"
    train(environment, [run], cut=60)
    seen = only(server)
    assert seen.steps == seen.received == planned(run)
    assert seen.summary["status"] == "done"


def test_broken_client_never_reaches_training(tmp_path, monkeypatch):
    run = RunFolder(
        fake_study.write_run(tmp_path, fake_study.Run("mamba", 0, 1e-3), fake_study.settings("broken", "", "loss"))
    )

    class Broken:
        starting_step = 0
        id = "x"

        def __getattr__(self, name):
            raise RuntimeError(name)

    def no_client():
        raise ImportError("wandb")

    target = fake_target()
    monkeypatch.setattr(tracking, "client", no_client)
    assert not tracking.open(target, run.record, run).is_on
    mirror = tracking.Mirror(Broken(), run.record, run)
    mirror.begin()
    for row in run.rows():
        mirror.log(row)
    mirror.close(run.result)
    assert not mirror.is_on


def fake_target():
    from experiments.config import TrackingConfig

    return TrackingConfig(mode="online")


def test_within_gives_up_in_time_and_cleans_up_what_comes_late():
    late = []
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        tracking.within(0.05, lambda: time.sleep(0.2) or "value", late=late.append)
    assert time.monotonic() - begun < 0.15
    time.sleep(0.3)
    assert late == ["value"]
    with pytest.raises(KeyError):
        tracking.within(1, lambda: {}["x"])


# --- sync -------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_killed_offline_run_is_uploaded_once_with_a_summary_and_later_rows_follow(tmp_path, server, environment):
    (run,) = study(tmp_path / "late", fake_study.Run("mamba", 0, 1e-3))
    train(environment, [run], check=False, kill=12)
    environment |= server.environment
    assert sync(environment, run.path)[0] == 0
    seen = only(server)
    assert seen.steps == seen.received == planned(run)[:6]
    rows = run.rows()
    assert seen.summary["status"] == "stopped" and seen.exit_codes == [1]
    assert seen.summary["final/validation/bits_per_byte"] == rows[-1]["validation/bits_per_byte"]
    train({**environment, "WANDB_MODE": "offline"}, [run], cut=100)
    code, said = sync({**environment, "WANDB_MODE": "offline"}, run.path)  # WANDB_MODE is for training
    assert code == 0 and "4 of 10 rows sent" in said
    assert seen.steps == seen.received == planned(run)
    assert seen.summary["status"] == "done" and "final/test/bits_per_byte" in seen.summary


def test_second_sync_asks_the_server_for_nothing(tmp_path, server, environment):
    folder = fake_study.write(tmp_path / "twice", [fake_study.Run("mamba", 0, 1e-3), fake_study.Run("hyena", 0, 1e-3)])
    environment |= server.environment
    assert sync(environment, folder)[0] == 0
    assert len(server.runs) == 2
    asked = len(server.operations)
    code, said = sync(environment, folder)
    assert code == 0 and said.count("is there already") == 2
    assert len(server.operations) == asked


def test_sync_cut_off_midway_goes_on_without_repeating(tmp_path, server, environment):
    folder = fake_study.write(tmp_path / "cut", [fake_study.Run("mamba", 0, 1e-3)])
    environment |= server.environment
    server.dies_after = 4
    code, said = sync(environment, folder, "--timeout=2")
    assert code == 1 and "not uploaded" in said
    assert server.lines == 4 and not list(folder.glob("trials/*/wandb-synced.json"))
    server.dies_after = None
    code, said = sync(environment, folder)
    assert code == 0 and "6 of 10 rows sent" in said
    assert only(server).received == only(server).steps == list(range(20, 201, 20))


def test_sync_says_so_without_a_key_and_while_another_is_at_work(tmp_path, environment):
    folder = fake_study.write(tmp_path / "busy", [fake_study.Run("mamba", 0, 1e-3)])
    code, said = sync(environment, folder)
    assert code == 2 and "WANDB_API_KEY" in said and said.count("\n") == 1
    with lock(folder / "wandb" / "sync.lock"):
        code, said = sync({**environment, **LoopbackWandb(1).environment}, folder)
    assert code == 1 and f"process {os.getpid()}" in said
    code, said = sync(environment, tmp_path / "nothing")
    assert code == 2 and "FOLDER" in said


# --- words and numbers ------------------------------------------------------------------------------------------------
def test_config_of_one_run_has_at_most_200_values(tmp_path):
    record = fake_study.record(fake_study.Run("mamba", 0, 1e-3), fake_study.settings("s", "", "loss"))
    record["trial"]["model"]["many"] = {f"k{i}": {"deep": i} for i in range(300)}
    made = wandb_run.config(record)
    assert leaves(made) == wandb_run.MAX_KEYS
    assert made["arm"] == "mamba" and "jax" in made["versions"]


def test_training_and_validation_of_a_step_are_one_row_and_nan_stays_at_home():
    rows = [{"step": 10, "a": 1.0}, {"step": 20, "a": float("nan"), "c": None}, {"step": 20, "b": 2}]
    merged = wandb_run.by_step(rows)
    assert [row["step"] for row in merged] == [10, 20]
    assert wandb_run.values(merged[1]) == {"b": 2}


def test_summary_has_no_score_that_is_not_a_number(tmp_path):
    run = RunFolder(
        fake_study.write_run(
            tmp_path, fake_study.Run("mamba", 0, 1e-3, status="failed"), fake_study.settings("s", "", "loss")
        )
    )
    run.event("resume", step=20)
    scores = {"loss": None, "bits_per_byte": float("inf")}
    made = wandb_run.summary(run, {"status": "diverged", "test": scores}, "diverged")
    assert (made["status"], made["restarts"], made["step"]) == ("diverged", 1, 40)
    assert made["final/validation/loss"] == run.rows()[-1]["validation/loss"]
    assert not any(key.startswith("final/test") for key in made)


@pytest.mark.parametrize(
    ("row", "whole"),
    [
        ({"step": 10, "train/loss": 1.0}, True),
        ({"step": 20, "train/loss": 1.0}, False),
        ({"step": 20, "validation/loss": 1.0}, True),
        ({"step": 50, "validation/loss": 1.0}, False),
        ({"step": 50, "validation/loss": 1.0, "test/loss": 1.0}, True),
    ],
)
def test_step_is_whole_once_its_evaluation_is_there(row, whole):
    trial = {"evaluate": {"every": 20}, "train": {"steps": 50}}
    assert wandb_run.is_whole(row, trial) is whole
    before = {"step": 5, "train/loss": 2.0}
    assert wandb_run.replayable([before, row], trial, "stopped") == [before] + [row] * whole
    assert wandb_run.replayable([before, row], trial, "failed") == [before, row]


@pytest.mark.parametrize(
    ("row", "whole"),
    [
        ({"step": 50, "validation/loss": 1.0, "validation/accuracy": 0.5, "test/loss": 1.0}, False),
        ({"step": 50, "validation/loss": 1.0, "test/loss": 1.0, "slices/long/loss": None}, True),
        ({"step": 20, "validation/loss": 1.0, "validation/accuracy": 0.5}, True),
        ({"step": 20, "validation/loss": 1.0, "validation/accuracy": 0.9}, False),
        ({"step": 20, "validation/loss": 0.1, "validation/accuracy": 0.9, "test/loss": 1, "slices/long/loss": 1}, True),
    ],
)
def test_last_step_of_a_task_is_whole_with_its_slices_and_may_come_early(row, whole):
    trial = {"evaluate": {"every": 20}, "train": {"steps": 50, "stop_at": 0.9}, "data": {"slices": [{"name": "long"}]}}
    assert wandb_run.is_whole(row, trial) is whole


def test_summary_has_the_scores_of_slices_and_leaves_out_those_that_are_missing(tmp_path):
    run = RunFolder(fake_study.write_run(tmp_path, fake_study.Run("mamba", 0, 1e-3), fake_study.settings("s", "", "")))
    slices = {"16 pairs": {"loss": 0.5, "accuracy": 0.75}, "long": {"loss": None, "reason": "model.max_length is 16"}}
    made = wandb_run.summary(run, {**run.result, "slices": slices}, "done")
    found = {key: value for key, value in made.items() if "slices" in key}
    assert found == {
        "final/slices/16 pairs/loss": 0.5, "final/slices/16 pairs/accuracy": 0.75,
        "final/slices/long/reason": "model.max_length is 16",
    }  # fmt: skip


# --- W&B's own sweeps -------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_wandb_agent_drives_the_runs_of_a_study(tmp_path, server, environment):
    runs = study(tmp_path / "agents", fake_study.Run("mamba", 0, 1e-3), fake_study.Run("hyena", 0, 1e-3))
    path = write_sweep_yaml(tmp_path / "agents", [run.id for run in runs], name="agents", project="p")
    work = tmp_path / "work"
    work.mkdir()
    (work / "trivial.py").write_text(
        "import json, os, sys\n"
        "file = sys.argv[1].removeprefix('--trial=')\n"
        "sys.argv[1] = json.dumps({'folders': [os.path.dirname(file)]})\n" + TRAIN
    )
    text = path.read_text()
    assert '"experiments.train"' in text
    path.write_text(text.replace('"experiments.train"', '"trivial"'))
    bin_folder = Path(sys.executable).parent
    environment |= server.environment | {"PATH": f"{bin_folder}:{environment['PATH']}"}
    wandb = shutil.which("wandb", path=str(bin_folder))
    common = {"env": environment, "cwd": work, "capture_output": True, "text": True, "timeout": 120}
    made = subprocess.run([wandb, "sweep", str(path)], **common)
    (sweep,) = server.sweeps
    assert made.returncode == 0 and sweep in made.stdout + made.stderr
    agent = subprocess.run([wandb, "agent", f"someone/p/{sweep}"], **common)
    assert agent.returncode == 0, agent.stderr
    assert [seen.name for seen in server.runs.values()] == [f"{sweep}run0", f"{sweep}run1"]
    for run, seen in zip(runs, server.runs.values(), strict=True):
        assert seen.steps == planned(run) and run.status() == "done"
        assert seen.config["arm"]["value"] == run.record["arm"]
        assert wandb_run.wandb_id(run.record, run.path) == seen.name  # sync goes to the sweep's run
    code, said = sync(environment, tmp_path / "agents")
    assert code == 0 and said.count("0 of 10 rows sent") == 2 and len(server.runs) == 2
