"""The report: its Markdown and table, its warnings, and the command as people type it."""

import dataclasses
import os
import resource
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from experiments import figures, report
from experiments.report_text import conclusion, grid, markdown, short, warnings
from experiments.results import load
from tests import fake_study
from tests.fake_study import ARMS, Arm, Run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return load(fake_study.quickstart(tmp_path_factory.mktemp("small") / "quick"))


@pytest.fixture(scope="module")
def without_jax(tmp_path_factory):
    """An environment in which importing jax, grain, orbax, flax or wandb is an error."""
    folder = tmp_path_factory.mktemp("poison")
    for name in ("jax", "grain", "orbax", "flax", "wandb", "tensorflow_datasets"):
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} was imported')\n")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def typed(environment, *arguments):
    """The finished command and its seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "experiments.report", *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def section(text, title):
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def say(tmp_path, runs, **settings):
    results = load(fake_study.write(tmp_path / "s", runs, **settings))
    return warnings(results, results.table())


# --- Markdown ---------------------------------------------------------------------------------------------------------


def test_the_report_has_a_row_for_each_arm_with_stack_rate_interval_and_verdict(small):
    text = "\n".join(markdown(small, small.table()))
    row = small.table().row(3, named=True)
    half = row["high"] - row["test"]
    line = next(line for line in text.splitlines() if line.startswith("| quarter_even |"))
    assert "| `M-M-A-M-` | 1 of 4 | 400,000 | 2.4M | 84k | 0.003 (highest) | 3 |" in line
    assert f"{row['test']:.3f} ± {half:.3f}" in line and f"{row['difference']:+.3f} ±" in line
    assert line.endswith("| better |")
    assert all(f"\n| {arm} | `" in text for arm in ARMS)


def test_the_report_shows_every_figure_with_its_data_and_says_how_to_run_it_again(small):
    text = "\n".join(markdown(small, small.table()))
    for name in figures.FIGURES:
        assert f"![{name}]({name}.png)" in text and f"[{name}.csv]({name}.csv)" in text
    again = section(text, "To run it again")
    assert "python -m experiments.sweep --config=configs/quickstart.py" in again
    assert "jax 0.10.2" in again and "data f00dcafe0001" in again


def test_every_row_of_every_table_has_as_many_cells_as_its_header(small):
    counts = []
    for line in markdown(small, small.table()):
        if line.startswith("|"):
            counts.append(line.replace("\\|", "").count("|"))
            assert counts[-1] == counts[-2 if len(counts) > 1 else -1]
        else:
            counts.clear()


def test_failures_are_listed_with_phase_and_error_on_one_line(small):
    failures = section("\n".join(markdown(small, small.table())), "Runs that failed or diverged")
    failed = Run("half_even", 2, 3e-3, "confirm").id
    assert f"| {failed} | half_even | learning_rate=0.003 | 2 | failed | train | RESOURCE_EXHAUSTED" in failures
    assert "out of memory \\| 17 GiB asked |" in failures
    assert "| hyena | learning_rate=0.003 | 0 | diverged |" in failures


def test_the_good_window_of_each_learning_rate_is_told(small):
    rows = section("\n".join(markdown(small, small.table())), "Learning rates")
    assert "| hyena | 0.001, 0.003 | 0.003 | 0.001 (lowest) | 0.001 | at least 0.00 |" in rows
    assert "within 1 % of the arm's best" in rows


def test_budgets_are_relative_to_the_baseline(small):
    budgets = section("\n".join(markdown(small, small.table())), "Budgets")
    assert "| attention | +0.0 % | +0.0 % | +0.0 % |" in budgets
    assert f"| mamba | {100 * (398_336 / 401_920 - 1):+.1f} % | {100 * (2.41 / 2.63 - 1):+.1f} % | -90.6 % |" in budgets


def test_a_branch_of_a_pattern_does_not_break_the_table():
    assert list(grid(("a", "b"), [["x", "[A|M]"]], code=1))[2] == "| x | `[A\\|M]` |"


def test_numbers_are_written_short():
    assert [short(n) for n in (None, 0, 950, 1234, 2.63e6, 1.5e12)] == ["", "0", "950", "1.23k", "2.63M", "1.5T"]


def test_seeds_that_learnt_are_told_where_scores_are_shares(tmp_path, small):
    recall = load(fake_study.recall(tmp_path / "recall"))
    learnt = section("\n".join(markdown(recall, recall.table())), "Seeds that learnt")
    assert "| mamba | 5 | 100% | not in half of 5 seeds |  | 0.00" in learnt
    assert "| attention | 5 | 0% | 80 | from 60 |" in learnt
    text = "\n".join(markdown(recall, recall.table()))
    assert "higher is better" in text and "keeps 90% of the arm's best" in text and "needs three pairs" in text
    assert "Seeds that learnt" not in "\n".join(markdown(small, small.table()))


def test_parts_of_the_test_data_are_a_table_of_arms_and_slices(small):
    chosen = small.runs.filter((pl.col("arm") == "mamba") & (pl.col("learning_rate") == 3e-3))["id"].to_list()
    rows = [(run, "L 64", "bits_per_byte", 2.0 + i) for i, run in enumerate(chosen)]
    rows += [(chosen[0], "L 128", "bits_per_byte", None), (chosen[0], "L 64", "loss", 9.0)]
    slices = pl.DataFrame(rows, schema=small.slices.schema, orient="row")
    parts = section(
        "\n".join(markdown(dataclasses.replace(small, slices=slices), small.table())), "Parts of the test data"
    )
    assert "| arm | L 64 | L 128 |" in parts and "| mamba | 3.000 ± 2.484 |  |" in parts


def test_choosing_on_test_is_told(small):
    loose = dataclasses.replace(small, select_on="test")
    assert any("chosen on the test split" in line for line in warnings(loose, loose.table()))
    assert "chosen on the test split" in "\n".join(markdown(loose, loose.table()))


# --- words ------------------------------------------------------------------------------------------------------------


def test_the_conclusion_names_what_is_decided_and_what_is_not(small):
    lines = conclusion(small, small.table())
    assert lines[0].startswith("**quarter_even** is better than attention by 0.2")
    assert any(line.startswith("**hyena** is worse than attention") for line in lines)
    again = small.against("quarter_first")
    assert any(
        line.startswith("undecided against quarter_first") and "mamba" in line
        for line in conclusion(again, again.table())
    )


def test_best_rates_at_an_edge_are_warned_of(tmp_path):
    rates = (1e-3, 3e-3, 1e-2)
    runs = [Run(arm, 0, rate, validation=2.0 + (rate != best)) for arm, best in
            (("mamba", 1e-3), ("attention", 1e-2), ("hyena", 3e-3)) for rate in rates]  # fmt: skip
    found = [line for line in say(tmp_path, runs) if "learning rate" in line]
    assert [line.rpartition(": ")[2] for line in found] == ["mamba", "attention"]
    assert "lowest" in found[0] and "highest" in found[1]
    (alone,) = (line for line in say(tmp_path / "one", [Run("mamba", 0, 1e-3)]) if "learning rate" in line)
    assert "the only one tried" in alone


def test_unmatched_parameters_lost_seeds_and_unfinished_runs_are_warned_of(tmp_path):
    big = Arm("(M-)4", "", 2.0, parameters=500_000)
    runs = [
        Run("mamba", 0, 1e-3),
        Run("mamba", 1, 1e-3, "confirm", "diverged"),
        Run("mamba", 2, 1e-3, "confirm"),
        Run("big", 0, 1e-3, architecture=big),
        Run("big", 1, 1e-3, "confirm", "stopped", architecture=big),
    ]
    text = "\n".join(say(tmp_path, runs, baseline="gone"))
    assert "parameters are not matched: 398,336 to 500,000" in text
    assert "mamba: 1 of 3 seeds at the chosen rate diverged" in text
    assert "fewer than two scored seeds, so no interval: big" in text
    assert "1 diverged, 1 stopped" in text
    assert "'gone' has no run" in text


def test_a_sound_study_gives_no_warning(tmp_path):
    runs = [Run("mamba", 0, rate, validation=2.0 + (rate != 3e-3)) for rate in (1e-3, 3e-3, 1e-2)]
    assert say(tmp_path, [*runs, Run("mamba", 1, 3e-3, "confirm")]) == []


@pytest.mark.parametrize("status", ["no runs", "queued", "stopped", "failed", "diverged"])
def test_a_study_without_results_is_reported_as_such(tmp_path, status, capsys):
    runs = [] if status == "no runs" else [Run("mamba", 0, 1e-3, status=status)]
    folder = fake_study.write(tmp_path / "s", runs, "mamba")
    text = report.write(folder).read_text()
    report.show(folder)
    shown = capsys.readouterr().out
    if status == "no runs":
        assert "nothing to compare yet" in text
    else:
        assert "not compared" in text and "| mamba |" in text and f"1 {status}" in shown
        assert ("| diverged |" in text) == (status == "diverged")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_report_prints_the_table_and_loads_no_jax(tmp_path, without_jax):
    folder = fake_study.quickstart(tmp_path / "quick")
    first, _ = typed(without_jax, folder, f"--save={tmp_path / 'kept'}")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines()[-1] == f"report: {folder / 'report' / 'report.md'}"
    assert all(f"figure: {folder / 'report' / name}.png" in first.stdout for name in figures.FIGURES)
    assert "quarter_even is better than attention" in first.stdout
    written = {path.name: path.read_bytes() for path in (folder / "report").iterdir()}
    assert {"report.md", "table.csv", "runs.csv", "verdicts.png", "verdicts.csv"} <= set(written)
    again, seconds = typed(without_jax, folder)
    assert again.returncode == 0
    assert {path.name: path.read_bytes() for path in (folder / "report").iterdir()} == written
    assert seconds < 8  # 2.5 on an idle core
    assert load(tmp_path / "kept").table().equals(load(folder).table())


def test_another_baseline_can_be_asked_for(tmp_path, capsys):
    runs = [Run(arm, seed, 1e-3, "confirm" if seed else "tune") for arm in ("mamba", "attention") for seed in (0, 1)]
    assert report.command([str(fake_study.write(tmp_path / "s", runs)), "--baseline=attention"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {row[0]: row[-1] for row in rows if row and row[0] in ARMS}["attention"] == "baseline"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "folder: nothing is not allowed"),
        (["{study}", "other"], "'other' is not allowed"),
        (["{study}/nowhere"], "is no folder"),
        (["{study}/report"], "is no study"),
        (["{study}", "--baselin=mamba"], "did you mean '--baseline'?"),
        (["{study}", "--baseline"], "must be given a value, as --baseline=ARM"),
        (["{study}", "--baseline="], "must be given a value"),
        (["{study}", "--save=a", "--save=b"], "is given twice"),
        (["{study}", "--baseline=mambo"], "did you mean 'mamba'? (allowed: mamba)"),
        (["{study}", "--save={study}"], "is the study itself"),
        (["{study}", "-s"], "unknown flag"),
        (["{study}", "--axis=flop"], "did you mean 'flops'?"),
    ],
)
def test_what_is_typed_wrongly_is_one_line_and_exit_code_2(tmp_path, without_jax, arguments, words):
    study = fake_study.write(tmp_path / "s", [Run("mamba", 0, 1e-3)])
    (study / "report").mkdir()
    done, seconds = typed(without_jax, *(word.format(study=study) for word in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert seconds < 1
    assert list((study / "report").iterdir()) == [] and not (study / "runs.csv").exists()


def test_help_names_the_flags_without_heavy_imports(without_jax):
    done, seconds = typed(without_jax, "--help")
    assert done.returncode == 0 and "--save=FOLDER" in done.stdout and "--baseline=ARM" in done.stdout
    assert seconds < 0.5
