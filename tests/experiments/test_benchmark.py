"""Curves against length: what is measured, where they stop, and what the command refuses."""

from __future__ import annotations

import csv
import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest

from experiments import curves
from experiments.benchmark import command, trials
from experiments.configfile import ConfigFile
from experiments.curves import Limits, Point, curve, expected
from hybrid.validation import ConfigError

CONFIG = """
import ml_collections
from experiments.grid import chain, point

def get_config():
    length = ml_collections.FieldReference(8)
    return ml_collections.ConfigDict({
        "model": {"pattern": "M-", "d_model": 8, "d_ff": 16, "hyena": {"filter_length": length}},
        "data": {"source": "shakespeare", "seq_len": length, "batch_size": 2},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1}, "train": {"steps": 2}, "evaluate": {"every": 2},
        "checkpoint": {"every": 2}, "seed": 0,
    })

def sweep():
    return chain(point({"arm": "mamba"}), point({"arm": "hyena", "model.pattern": "H-"}))
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    ("lengths", "seconds", "wanted"),
    [([], [], 0.0), ([100], [2.0], 8.0), ([100, 200], [1.0, 4.0], 16.0), ([100, 200], [1.0, 1.0], 2.0)],
    ids=["nothing known", "linear after one point", "the slope of two", "never less than linear"],
)
def test_expected_seconds_at_400(lengths, seconds, wanted):
    assert expected(lengths, seconds, 400) == pytest.approx(wanted)


def fake_trials(*lengths):
    from hybrid.config import ModelConfig

    model = ModelConfig(pattern="A-", vocab_size=8, d_model=8, n_heads=1)
    return [(length, SimpleNamespace(model=model)) for length in lengths]


@pytest.mark.parametrize("token", [1, 1000])
def test_a_curve_stops_before_a_point_that_would_take_too_long(token, monkeypatch):
    """Quadratic: 1, 4, 16 seconds; 64 are too many, and nothing longer is asked for. A token's prompt counts too."""
    asked = []

    def measured(at, trial, limits):
        asked.append(at["length"])
        seconds = (at["length"] / 10) ** 2
        return Point(**at, seconds=seconds / token, peak_bytes=1), seconds

    monkeypatch.setattr(curves, "measured", measured)
    points = list(curve("a", "train", fake_trials(10, 20, 40, 80, 160), Limits(60, 10), 1))
    assert [point.seconds for point in points] == [1 / token, 4 / token, 16 / token, None]
    assert asked == [10, 20, 40]
    assert points[-1].stopped == "would take about 64 s of 60"


def test_a_curve_stops_where_its_program_does_not_fit_and_nothing_is_allocated(monkeypatch):
    monkeypatch.setattr(curves, "_times", lambda *arguments: pytest.fail("was run"))
    (point,) = curve("a", "train", fake_trials(16, 32), Limits(60, 1000), 1)
    assert point.seconds is None
    assert point.peak_bytes > 1000
    assert point.stopped.startswith("would need")


def test_a_length_that_the_model_refuses_ends_the_curve_and_says_why(config):
    config.write_text(CONFIG.replace('"filter_length": length', '"filter_length": 16'))
    arms = trials(ConfigFile(config), [], [8, 32])
    assert [length for length, _ in arms["mamba"]] == [8, 32]
    refused = dict(arms["hyena"])[32]
    assert "16" in refused
    points = list(curve("hyena", "train", [(32, refused)], Limits(60, 10), 1))
    assert [(point.length, point.stopped) for point in points] == [(32, refused)]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--lengths=8,4"], "must rise"),
        (["--lengths=8,x"], "--lengths: 'x' is not allowed"),
        (["--lengths=8", "--work=decod"], "did you mean 'decode'"),
        (["--lengths=8", "--memory=much"], "--memory: 'much'"),
        (["--lengths=8", "--config.data.seq_len=4"], "--lengths sets it"),
        (["--length=8"], "did you mean '--lengths'"),
        ([], "--lengths: must be given"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(words, problem, config, tmp_path):
    with pytest.raises(ConfigError) as error:
        command([f"--config={config}", f"--workdir={tmp_path / 'out'}", *words])
    assert problem in str(error.value)
    assert not (tmp_path / "out").exists()


def test_help_and_errors_need_no_jax():
    code = (
        "import sys; sys.argv = ['benchmark', *sys.argv[1:]]; from experiments.benchmark import command\n"
        "try:\n    command(sys.argv[1:])\nexcept BaseException as error:\n    print(type(error).__name__)\n"
        "print('jax' in sys.modules)"
    )
    for word, raised in (("--help", "SystemExit"), ("--lengths=1", "ConfigError")):
        out = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, check=True).stdout
        assert out.split()[-2:] == [raised, "False"]


def test_measures_every_arm_and_work_and_draws_them(config, tmp_path, capsys):
    folder = tmp_path / "out"
    assert command([f"--config={config}", "--lengths=8", f"--workdir={folder}", "--memory=1"]) == 0
    with (folder / "benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    order = itertools.product(("prefill", "decode", "train"), ("mamba", "hyena"), ("8",))
    assert [(row["work"], row["arm"], row["length"]) for row in rows] == list(order)
    assert all(float(row["seconds"]) > 0 and int(row["peak_bytes"]) > 0 and row["batch"] == "2" for row in rows)
    before = (folder / "benchmark.csv").read_text().splitlines()
    assert command([f"--config={config}", "--lengths=8", f"--workdir={folder}", "--work=decode"]) == 0
    after = (folder / "benchmark.csv").read_text().splitlines()
    assert [line for line in before if ",decode," not in line] == [line for line in after if ",decode," not in line]
    assert len(after) == len(before) and after != before
    assert (folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder / "benchmark.png") in capsys.readouterr().out
