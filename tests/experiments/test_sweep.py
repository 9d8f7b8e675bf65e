"""The whole command: list, train both stages, show, go on, say that all is done; exit codes and what is printed."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from experiments.progress import Line, Snapshot, _spent, duration, headline
from tests.experiments.studies import ROOT, wait_for


@pytest.fixture(scope="module")
def finished(tmp_path_factory, warm):
    """A study that was trained by two workers."""
    from tests.experiments.studies import Workshop

    shop = Workshop(tmp_path_factory.mktemp("finished"))
    shop.first = shop.command(*shop.arguments("--workers=2"))
    return shop


def test_study_is_tuned_then_confirmed_on_more_seeds(finished):
    tune, confirm = finished.json("tune.json"), finished.json("confirm.json")
    assert (len(tune["runs"]), len(confirm["runs"]), len(finished.runs())) == (4, 2, 6)
    for arm, choice in confirm["choices"].items():
        assert choice["scores"][choice["run"]] == min(choice["scores"].values())
        (again,) = [run for run in confirm["runs"] if run["arm"] == arm]
        assert again["seed"] == 1 and again["changed"] == choice["changed"]
    records = [json.loads((run / "config.json").read_text()) for run in finished.runs()]
    assert sorted((r["stage"], r["trial"]["seed"]) for r in records) == [("confirm", 1)] * 2 + [("tune", 0)] * 4
    assert all(record["derived"]["flops_per_token"] > 0 and record["derived"]["state_bytes"] > 0 for record in records)


def test_workers_share_the_cores_and_the_number_of_threads_is_frozen(finished):
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert {event["threads"] for event in finished.events("compiled")} == {threads}
    assert finished.json("manifest.json")["machine"] == {"threads": threads}


def test_plain_output_has_a_line_for_each_run_and_the_report(finished):
    lines = finished.first.out.splitlines()
    assert sum(line.startswith("done ") for line in lines) == 6
    assert "6 of 6 done; in " in finished.first.out
    assert finished.first.code == 0, finished.first.err
    report = re.search(r"^report: (.*)$", finished.first.out, re.MULTILINE)
    assert report and os.path.isfile(report[1])
    figures = re.findall(r"^figure: (.*)$", finished.first.out, re.MULTILINE)
    assert figures and all(os.path.isfile(figure) for figure in figures)


def test_same_command_says_that_all_is_done_and_starts_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.workdir.rglob("*") if path.is_file()}
    result = finished.command(*finished.arguments("--workers=2"))
    after = {path: path.stat().st_mtime_ns for path in finished.workdir.rglob("*") if path.is_file()}
    assert result.code == 0 and "all 6 runs were done already" in result.out
    assert {str(path) for path in before if before[path] != after[path]} <= {str(finished.workdir / "lock")}
    assert result.cpu < 6.0


def test_frozen_study_goes_on_by_its_folder_alone(finished):
    result = finished.command(f"--workdir={finished.workdir}", "--workers=2")
    assert result.code == 0 and "all 6 runs were done already" in result.out


def test_status_is_shown_at_once_without_jax_and_writes_nothing(finished):
    before = sorted((str(path), path.stat().st_mtime_ns) for path in finished.workdir.rglob("*"))
    result = finished.command("--status", f"--workdir={finished.workdir}", PYTHONPROFILEIMPORTTIME="1")
    assert result.code == 0 and result.cpu < 1.0
    assert not re.search(r"\| +(jax|grain|orbax|polars|wandb|numpy)$", result.err, re.MULTILINE)
    rows = [line.split() for line in result.out.splitlines()]
    assert sum(row[0] == "done" for row in rows) == 6 and "6 of 6 done" in result.out
    assert before == sorted((str(path), path.stat().st_mtime_ns) for path in finished.workdir.rglob("*"))


def test_results_do_not_depend_on_the_number_of_workers(finished, workshop):
    assert workshop.sweep("--workers=1").code == 0
    mine, theirs = workshop.results(), finished.results()
    assert mine == theirs


# --- listing ----------------------------------------------------------------------------------------------------------


def test_dry_run_lists_trials_duplicates_and_refused_and_writes_nothing(workshop, warm):
    sweep = """
def sweep():
    ratios = axis("model.ratio", ["1:3", "1:6", "1:1"])
    return chain(ratios, [{"model.count": 1, "model.ratio": None}], axis("model.placement", [(2,)]))
"""
    workshop.write(sweep=sweep)
    result = workshop.sweep("--dry_run")
    assert result.code == 2, "a point is refused, and so would be the study"
    lines = result.out.splitlines()
    header = ["id", "arm", "changed", "pattern", "attention", "parameters", "FLOPs", "state", "time", "status"]
    assert lines[0].split() == header
    assert re.match(
        r"[0-9a-f]{12}  M-M-A-M-  ratio=1:3 +M-M-A-M- +1 of 4 +\d\d,\d{3} +\d+ M +[\d.]+ kB +\d+ s", lines[1]
    )
    assert [line.split()[0] for line in lines].count("duplicate") == 2
    (refused,) = [line for line in lines if line.startswith("refused")]
    assert "ratio=1:6" in refused and "model.ratio" in refused
    assert lines[-1].startswith("2 trials in 2 groups, 2 arms; then 1 more seeds of each arm: ")
    assert not workshop.workdir.exists()


def test_dry_run_shows_what_is_done_already(finished):
    result = finished.sweep("--dry_run")
    assert result.code == 0
    assert sum(line.endswith("  done") for line in result.out.splitlines()) == 4
    assert re.search(
        r"about \d+ s on 2 workers \(as models of this size trained here; without compilation\)$", result.out
    )


def test_listing_again_needs_no_jax(finished):
    result = finished.sweep("--dry_run", PYTHONPROFILEIMPORTTIME="1")
    assert result.code == 0 and not re.search(r"\| +jax$", result.err, re.MULTILINE)


LARGE = """
def sweep():
    ratios = chain(point({"model.ratio": 0}), product(axis("model.ratio", ["1:11", "1:5", "1:3"]), placements()))
    return product(ratios, axis("optimizer.learning_rate", [3e-4, 1e-3, 3e-3]))

def placements():
    return axis("model.placement", ["even", "first", "last", "middle", "sandwich"])
"""


def test_forty_eight_trials_are_counted_and_listed_in_ten_seconds(workshop, warm, tmp_path):
    model = (
        'dict(mixers=24, base="M", insert="A", channel="-", d_model=256, n_heads=4, match=dict(parameters=15_000_000))'
    )
    workshop.write(model=model, sweep=LARGE, lines="c.data.seq_len = 512; c.evaluate.sequences = 2")
    result = workshop.sweep("--dry_run", HYBRID_CACHE=str(tmp_path / "empty"))
    assert result.code == 0, result.err
    assert "48 trials in 16 groups, 16 arms" in result.out and "guessed: 10% of a matrix product here" in result.out
    sizes = [int(size.replace(",", "")) for size in re.findall(r" ([\d,]{10,}) ", result.out)]
    assert len(sizes) == 48 and max(sizes) / min(sizes) < 1.03, "matched"
    assert result.cpu < 10


# --- ends -------------------------------------------------------------------------------------------------------------


def test_failed_run_is_summed_up_and_the_exit_code_says_so(workshop, warm):
    result = workshop.sweep("--workers=2", FAKE_FAULT="error", FAKE_ARM="A-(M-)3")
    assert result.code == 1
    assert result.out.count("\nfailed: ") == 2
    assert "in phase train, starts: 1" in result.out and "ValueError: the loss has no gradient here" in result.out
    assert "  | ValueError: the loss has no gradient" in result.out
    command = re.search(r"again: (python -m experiments.train --trial=\S+config.json)", result.out)
    assert command and os.path.isfile(command[1].partition("=")[2])
    assert workshop.json("confirm.json")["choices"]["A-(M-)3"]["run"] is None
    again = workshop.sweep("--workers=2")
    assert again.code == 1 and len(workshop.events("start")) == 5, "an error of its own is not begun again"
    retried = workshop.sweep("--workers=2", "--retry")
    assert retried.code == 0 and len(workshop.runs()) == 6, retried.err
    assert "chosen again for A-(M-)3" in retried.err


def test_stage_tune_ends_before_the_second_stage(workshop, warm):
    assert workshop.sweep("--stage=tune", "--workers=1").code == 0
    assert not (workshop.workdir / "confirm.json").exists() and len(workshop.runs()) == 4


def test_second_sweep_on_a_folder_says_who_holds_it(workshop, warm):
    process = workshop.start(*workshop.arguments("--workers=1"), FAKE_STEP="0.5")
    try:
        wait_for(lambda: (workshop.workdir / "tune.json").exists())
        started = time.monotonic()
        result = workshop.sweep("--workers=1")
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert f"is held by process {process.pid} on {os.uname().nodename}" in result.err
        assert time.monotonic() - started < 10
    finally:
        process.kill()
        process.communicate()


def test_other_config_in_a_folder_is_refused_through_the_command(finished):
    result = finished.sweep("--config.train.steps=30")
    assert result.code == 2 and "train.steps of M-M-A-M- is 20 there and 30 here" in result.err


# --- progress ---------------------------------------------------------------------------------------------------------


def line(status: str, step: int = 0, rate: float | None = None, flops: float | None = 10.0, seconds: float = 0) -> Line:
    return Line("id", "arm", "tune", "", status, step, 100, None, rate, 1000, flops, seconds)


def test_time_left_follows_flops_rates_and_workers_and_is_never_negative():
    lines = [line("running", 50, 5.0), line("queued"), line("queued", flops=None), line("failed", 10)]
    assert Snapshot(lines, 1).seconds_left() == pytest.approx(2500 / 5)
    assert Snapshot(lines, 2).seconds_left() == pytest.approx(2500 / 5 / 2)
    assert Snapshot([line("running", 300, 50.0)], 1).seconds_left() == 0.0
    assert Snapshot([line("queued")], 1).seconds_left() is None
    lines.append(line("done", 100, 5.0, flops=20.0, seconds=600))
    expected = (0.5 * 10_000 + 10_000 + 12_500) * 600 / 20_000  # one not counted yet is taken for a mean one
    assert Snapshot(lines, 1).seconds_left() == pytest.approx(expected)
    assert headline(Snapshot(lines, 2)) == "1 of 5 done, 1 running, 1 failed, 2 queued, about 6 min 52 s left"


def test_clock_that_was_set_back_counts_as_nothing():
    names = ["start", "speed", "start", "speed", "done"]
    events = [{"event": name, "time": time} for name, time in zip(names, [100, 130, 50, 20, 40], strict=True)]
    assert _spent(events) == 30
    assert _spent([]) == 0


def test_durations_read_well():
    assert [duration(s) for s in (None, 0.4, 59, 200, 7500)] == ["?", "0 s", "59 s", "3 min 20 s", "2 h 05 min"]
    assert duration(3 * 86400 + 2 * 3600) == "3 d 02 h"


def test_live_table_is_drawn_on_a_terminal(workshop, warm):
    """Under a pseudo-terminal the table appears, with the runs and the headline."""
    code = f"""
import os, pty, sys
command = {[sys.executable, "-m", "experiments.sweep", *workshop.arguments("--workers=1", "--report=false")]!r}
sys.exit(os.waitstatus_to_exitcode(pty.spawn(command)))
"""
    variables = {**workshop.environment, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "30", "FAKE_STEP": "0.01"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "running" in result.stdout and "tokens/s" in result.stdout and "\x1b[" in result.stdout
    assert "6 of 6 done" in result.stdout
