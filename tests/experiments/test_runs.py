"""Run folders: rows survive being cut anywhere, results are committed whole, locks name their holder."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest

from experiments.runs import Held, RunFolder

ROWS = [{"step": step, "tokens": step * 64, "train/loss": 5.0 / (1 + step), "note": "é"} for step in (10, 20, 30, 40)]


def filled(folder) -> RunFolder:
    run = RunFolder(folder)
    run.create({"id": "x"})
    with run.claim():
        for row in ROWS:
            run.append(row)
    return run


def test_rows_come_back_in_order_and_file_holds_one_line_each(tmp_path):
    run = filled(tmp_path)
    assert run.rows() == ROWS
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == len(ROWS)


@pytest.mark.parametrize("file", ["metrics.jsonl", "events.jsonl"])
def test_every_torn_tail_is_read_and_next_append_stays_readable(tmp_path, file):
    """Truncated at every byte of the last three records: what was whole is read, and a new row joins it."""
    run = filled(tmp_path / "whole")
    for row in ROWS:
        run.event("speed", step=row["step"], text="a\nb")
    content = (run.path / file).read_bytes()
    lines = content.splitlines(keepends=True)
    for length in range(len(lines[0]), len(content) + 1):
        torn = RunFolder(tmp_path / "torn")
        torn.path.mkdir(exist_ok=True)
        (torn.path / file).write_bytes(content[:length])
        read = torn.rows if file == "metrics.jsonl" else torn.events
        whole = read()
        ends = [sum(map(len, lines[: n + 1])) - 1 for n in range(len(lines))]  # a record without its newline is whole
        assert [row["step"] for row in whole] == [ROWS[n]["step"] for n, end in enumerate(ends) if length >= end]
        if file == "metrics.jsonl":
            torn.append({"step": 99})
        else:
            torn.event("speed", step=99)
        assert [row["step"] for row in read()] == [row["step"] for row in whole] + [99]


def test_cut_then_replay_gives_the_same_bytes_at_every_torn_offset(tmp_path):
    run = filled(tmp_path / "whole")
    content = (run.path / "metrics.jsonl").read_bytes()
    for length in range(content.index(b"\n") + 1, len(content) + 1):
        torn = RunFolder(tmp_path / "torn")
        torn.path.mkdir(exist_ok=True)
        (torn.path / "metrics.jsonl").write_bytes(content[:length])
        torn.cut(10)
        assert [row["step"] for row in torn.rows()] == [10]
        for row in ROWS[1:]:
            torn.append(row)
        torn._metrics.close()
        assert (torn.path / "metrics.jsonl").read_bytes() == content


def test_row_replayed_at_the_newest_step_is_written_once(tmp_path):
    run = filled(tmp_path)
    again = RunFolder(tmp_path)
    again.append(ROWS[-1])
    again.append({"step": 40, "test/loss": 1.0})
    again.append({"step": 40, "test/loss": 1.0})
    again.append({"step": 50})
    assert again.rows() == [*ROWS, {"step": 40, "test/loss": 1.0}, {"step": 50}]
    assert run.rows() == again.rows()


def test_non_finite_values_are_written_as_null(tmp_path):
    run = RunFolder(tmp_path)
    run.append({"step": 1, "train/loss": float("nan"), "norms": [float("inf"), 1.0]})
    assert run.rows() == [{"step": 1, "train/loss": None, "norms": [None, 1.0]}]


def test_status_follows_the_files_on_disk(tmp_path):
    run = RunFolder(tmp_path / "a")
    assert run.status() == "queued"
    run.create({"id": "a"})
    assert run.status() == "queued"
    with run.claim():
        assert RunFolder(run.path).status() == "running"
        run.event("start")
    assert run.status() == "stopped"
    run.fail("error", "ValueError: x", command="again")
    assert run.status() == "failed"
    assert run.failure == {"phase": "error", "error": "ValueError: x", "attempts": 1, "command": "again"}
    with run.claim():
        assert run.status() == "running"
    run.retry()
    assert run.status() == "stopped"
    run.fail("error", "once more")
    run.finish({"status": "done", "step": 3})
    assert run.status() == "done" and run.failure is None and run.result == {"status": "done", "step": 3}
    run.finish({"status": "diverged", "step": 3})
    assert run.status() == "diverged"
    with pytest.raises(ValueError, match="'done' or 'diverged'"):
        run.finish({"status": "finished"})


def test_claim_of_a_held_run_names_pid_and_host_of_its_holder(tmp_path):
    code = f"""
        import sys
        from experiments.runs import RunFolder
        with RunFolder({str(tmp_path)!r}).claim():
            print("held", flush=True)
            sys.stdin.read()
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Held) as refused, RunFolder(tmp_path).claim():
            pass
        assert (refused.value.pid, refused.value.host) == (holder.pid, socket.gethostname())
        assert RunFolder(tmp_path).status() == "running"
        holder.kill()
        holder.wait()
        with RunFolder(tmp_path).claim():  # freed by the kernel at once
            pass


def test_asking_for_the_status_never_refuses_a_claim(tmp_path):
    """Readers look at the lock by taking it for an instant; a claim that meets one waits instead of failing."""
    code = f"""
        from experiments.runs import RunFolder
        run = RunFolder({str(tmp_path)!r})
        print("go", flush=True)
        while True:
            run.status()
    """
    with RunFolder(tmp_path).claim():
        pass
    reader = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    with reader:
        try:
            reader.stdout.readline()
            for _ in range(300):
                with RunFolder(tmp_path).claim():
                    pass
        finally:
            reader.kill()


def test_result_is_whole_or_absent_when_the_writer_dies(tmp_path):
    """The writer is killed between the write and the rename: the old result stays, and the next claim tidies up."""
    code = f"""
        import os, signal
        import experiments.files
        from experiments.runs import RunFolder
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        RunFolder({str(tmp_path)!r}).finish({{"status": "done", "step": 2}})
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)]).returncode == -9
    run = RunFolder(tmp_path)
    assert run.result is None
    assert [path.name for path in tmp_path.iterdir()] != []
    with run.claim():
        pass
    assert sorted(os.listdir(tmp_path)) == ["lock"]


def test_reached_is_the_highest_committed_step_whatever_the_clock_says(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    for step, now in ((10, 2e9), (20, 1e9), (15, 3e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        run.event("checkpoint", step=step)
    assert run.reached() == 20
    assert json.loads((tmp_path / "events.jsonl").read_text().splitlines()[1])["time"] == 1e9


def test_row_that_cannot_be_written_whole_is_an_error_and_later_rows_are_readable(tmp_path, monkeypatch):
    run = filled(tmp_path)
    write = os.write
    monkeypatch.setattr("os.write", lambda descriptor, data: write(descriptor, data[:7]))
    with pytest.raises(OSError, match="disk full"):
        run.append({"step": 50})
    monkeypatch.undo()
    run.append({"step": 60})
    assert [row["step"] for row in run.rows()] == [10, 20, 30, 40, 60]
