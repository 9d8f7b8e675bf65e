"""Studies as data frames: run folders in every state, damaged files, the compact form."""

import dataclasses
import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from experiments import verdicts
from experiments.columns import METRICS, RUNS
from experiments.files import lock
from experiments.results import digest, load
from hybrid.validation import ConfigError
from tests import fake_study
from tests.fake_study import Arm, Run

TWO = [Run("mamba", 0, 1e-3), Run("mamba", 0, 3e-3), Run("attention", 0, 1e-3), Run("attention", 0, 3e-3)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return fake_study.quickstart(tmp_path_factory.mktemp("small") / "quick")


def rows_of(results, run):
    return results.runs.row(by_predicate=pl.col("id") == run.id, named=True)


def test_a_run_is_a_row_with_what_it_is_and_what_it_reached(small):
    results = load(small)
    assert dict(results.runs.schema) == {name: kind() for name, kind in RUNS.items()}
    row = rows_of(results, Run("quarter_even", 0, 3e-3))
    assert row["pattern"] == "M-M-A-M-" and row["ratio"] == 0.25 and row["placement"] == "even"
    assert (row["stage"], row["status"], row["setting"]) == ("tune", "done", "learning_rate=0.003")
    assert (row["step"], row["tokens"], row["attempts"]) == (200, 200 * 2048, 1)
    assert row["tokens_per_second"] == 30_000 and row["compile_seconds"] == 4.5
    done = json.loads((small / "trials" / row["id"] / "done.json").read_text())
    assert row["validation_bits_per_byte"] == done["validation"]["bits_per_byte"]
    assert row["test_loss"] == done["test"]["loss"]


def test_arms_and_runs_keep_the_order_of_the_study(tmp_path):
    results = load(fake_study.write(tmp_path / "s", [*TWO, Run("mamba", 1, 3e-3, stage="confirm")]))
    assert results.arms == ["mamba", "attention"]
    found = results.runs.filter(pl.col("arm") == "mamba").select("stage", "seed", "learning_rate").rows()
    assert found == [("tune", 0, 1e-3), ("tune", 0, 3e-3), ("confirm", 1, 3e-3)]


def test_a_run_of_a_setting_that_is_chosen_no_more_counts_when_it_is_done(tmp_path):
    """Its folder stays when the choice of the second stage is made anew."""
    chosen = [Run("mamba", 0, 1e-3), Run("mamba", 1, 1e-3, stage="confirm")]
    folder = fake_study.write(tmp_path / "s", chosen)
    for seed, status in enumerate(("done", "queued", "stopped"), start=1):
        run = Run("mamba", seed, 3e-3, stage="confirm", status=status)
        fake_study.write_run(folder, run, fake_study.settings("s", "", "bits_per_byte"))
    runs = load(folder).runs
    assert runs.select("seed", "learning_rate", "status").rows() == [
        (0, 1e-3, "done"), (1, 1e-3, "done"), (1, 3e-3, "done")
    ]  # fmt: skip


def test_curves_hold_every_row_with_its_runs_labels(small):
    results = load(small)
    run = Run("mamba", 0, 3e-3)
    mine = results.curves.filter(pl.col("id") == run.id)
    made = fake_study.rows(run)
    assert mine["step"].to_list() == [row["step"] for row in made]
    assert mine["validation_bits_per_byte"].to_list() == [row.get("validation/bits_per_byte") for row in made]
    assert set(mine["arm"]) == {"mamba"} and set(mine["learning_rate"]) == {3e-3}
    assert "train_gradient_norm" in mine.columns


@pytest.mark.parametrize("status", ["failed", "diverged", "stopped", "queued"])
def test_a_run_that_is_not_done_has_its_status_and_no_score(tmp_path, status):
    run = Run("mamba", 0, 1e-3, status=status)
    row = rows_of(load(fake_study.write(tmp_path / "s", [run])), run)
    assert row["status"] == status
    assert row["validation_bits_per_byte"] is None and row["test_bits_per_byte"] is None
    assert (row["phase"] is not None) == (status == "failed")
    assert (row["step"] or 0) < 200


def test_a_run_whose_lock_is_held_is_running(tmp_path):
    run = Run("mamba", 0, 1e-3, status="stopped")
    folder = fake_study.write(tmp_path / "s", [run])
    with lock(folder / "trials" / run.id / "lock"):
        assert load(folder).counts() == {"running": 1}
    assert load(folder).counts() == {"stopped": 1}


def test_a_torn_last_line_is_left_out(tmp_path):
    folder = fake_study.write(tmp_path / "s", [Run("mamba", 0, 1e-3, status="stopped")])
    whole = len(load(folder).curves)
    path = next((folder / "trials").glob("*/metrics.jsonl"))
    with path.open("a") as file:
        file.write('{"step": 120, "tokens": 2457')
    assert len(load(folder).curves) == whole


@pytest.mark.parametrize("content", ["", "{", "[]", '{"arm": "mamba"}', '{"arm": "mamba", "trial": {"seed": 0}}'])
def test_a_run_that_cannot_be_read_is_named_and_the_others_are_there(tmp_path, content):
    folder = fake_study.write(tmp_path / "s", TWO)
    (folder / "trials" / TWO[0].id / "config.json").write_text(content)
    results = load(folder)
    assert len(results.runs) == 3
    assert len(results.problems) == 1 and TWO[0].id in results.problems[0]


def test_a_study_without_runs_is_empty_and_no_error(tmp_path):
    results = load(fake_study.write(tmp_path / "s", []))
    assert (len(results.runs), len(results.curves), results.arms, results.baseline) == (0, 0, [], "")
    assert results.counts() == {} and len(results.table()) == 0
    again = load(results.save(tmp_path / "kept"))
    assert len(again.runs) == 0 and again.study == results.study


def test_a_baseline_without_a_run_is_told_and_replaced_by_the_first_arm(tmp_path):
    results = load(fake_study.write(tmp_path / "s", TWO, baseline="transformer"))
    assert results.baseline == "mamba"
    assert "transformer" in results.problems[0]


def test_symbols_of_the_user_are_known_by_their_kind(tmp_path):
    arm = Arm("(w-M-)2", "", 2.0)
    folder = fake_study.write(tmp_path / "s", [Run("own", 0, 1e-3, architecture=arm, symbols=(("w", "A"),))])
    results = load(folder)
    assert results.symbols == {"w": "A"}
    assert results.runs["ratio"].to_list() == [0.5]


def test_the_compact_form_says_the_same(small, tmp_path):
    results = load(small)
    again = load(results.save(tmp_path / "kept"))
    assert again.runs.equals(results.runs)
    assert again.table().equals(results.table())
    for name in ("study", "baseline", "score", "symbols", "versions", "problems"):
        assert getattr(again, name) == getattr(results, name)
    assert again.manifest["command"] == results.manifest["command"]


def test_the_compact_form_is_the_same_bytes_again_and_from_itself(small, tmp_path):
    first = load(small).save(tmp_path / "a")
    for other in (load(small).save(tmp_path / "b"), load(first).save(tmp_path / "c")):
        for name in ("runs.csv", "curves.csv", "manifest.json"):
            assert (other / name).read_bytes() == (first / name).read_bytes()


def test_thinned_curves_keep_the_first_and_last_row_of_each_metric(small, tmp_path):
    results = load(small)
    thin = load(results.save(tmp_path / "kept", points=3)).curves
    measured = [
        metric for metric in METRICS if metric.endswith(("_loss", "_bits_per_byte"))
    ]  # the study is one of text
    for (name,), curve in results.curves.group_by("id"):
        for metric in measured:
            before = curve.filter(pl.col(metric).is_not_null())
            after = thin.filter((pl.col("id") == name) & pl.col(metric).is_not_null())
            assert len(after) < len(before) or len(before) <= 3
            assert {after["step"][0], after["step"][-1]} == {before["step"][0], before["step"][-1]}


def test_a_study_of_dna_is_compared_by_bits_per_base(small, tmp_path):
    text, dna = load(small), tmp_path / "dna"
    shutil.copytree(small, dna)
    for path in [*dna.rglob("*.json"), *dna.rglob("*.jsonl")]:
        path.write_text(path.read_text().replace("bits_per_byte", "bits_per_base"))
    results = load(dna)
    assert results.score == "bits_per_base"
    assert results.runs["test_bits_per_base"].to_list() == text.runs["test_bits_per_byte"].to_list()
    assert results.runs["test_bits_per_byte"].is_null().all()
    assert results.table().equals(text.table())
    kept = load(results.save(tmp_path / "kept"))
    assert kept.table().equals(results.table())
    assert kept.curves["validation_bits_per_base"].is_not_null().any()


def test_tables_that_were_kept_before_scores_of_dna_are_read(small, tmp_path):
    results = load(small)
    folder = results.save(tmp_path / "kept")
    for name in ("runs.csv", "curves.csv"):
        frame = pl.read_csv(folder / name)
        frame.drop([column for column in frame.columns if column.endswith("_per_base")]).write_csv(folder / name)
    kept = load(folder)
    assert kept.runs.equals(results.runs)
    assert kept.curves["validation_bits_per_base"].is_null().all()


def test_what_is_no_study_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.*is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is no study"):
        load(tmp_path)
    (tmp_path / "runs.csv").write_text("id,arm\n1,a\n")
    with pytest.raises(ConfigError, match=r"runs\.csv"):
        load(tmp_path)


def test_a_digest_names_a_set_of_runs_whatever_their_order():
    assert digest(["a", "b"]) == digest(["b", "a", "a"]) != digest(["a", "c"])


def test_tuning_chooses_the_first_of_equal_scores_as_the_sweep_does(tmp_path):
    runs = [Run("mamba", 0, rate, validation=2.5) for rate in (3e-3, 1e-3)]
    assert verdicts.chosen(load(fake_study.write(tmp_path / "s", runs))) == {"mamba": "learning_rate=0.003"}


def test_tuning_chooses_the_faster_of_two_that_ended_early_as_the_sweep_does(tmp_path):
    runs = [Run("mamba", 0, rate, validation=2.5) for rate in (1e-3, 3e-3, 1e-2)]
    results = load(fake_study.write(tmp_path / "s", runs))
    early = pl.Series("step", [70, 60, 100])
    results = dataclasses.replace(results, runs=results.runs.with_columns(early, steps=pl.lit(100)))
    assert verdicts.chosen(results) == {"mamba": "learning_rate=0.003"}
    assert verdicts.windows(results)["mamba"].best_rate == 3e-3 and verdicts.edges(results) == {"mamba": None}


def test_every_score_and_slice_of_a_result_is_read_and_kept(small, tmp_path):
    folder = tmp_path / "recall"
    shutil.copytree(small, folder)
    run = Run("mamba", 0, 3e-3)
    path = folder / "trials" / run.id / "done.json"
    done = json.loads(path.read_text())
    done["test"] |= {"accuracy": 0.5, "exact": 0.25, "of no table": 1.0}
    done["slices"] = {"64, 4": {"accuracy": 0.9, "loss": 0.1}, "too long": {"accuracy": None, "why": "positions"}}
    path.write_text(json.dumps(done))
    results = load(folder)
    row = rows_of(results, run)
    assert (row["test_accuracy"], row["test_exact"], row["test_valid"]) == (0.5, 0.25, None)
    assert results.slices.rows() == [
        (run.id, "64, 4", "accuracy", 0.9), (run.id, "64, 4", "loss", 0.1), (run.id, "too long", "accuracy", None)
    ]  # fmt: skip
    again = load(results.save(tmp_path / "kept"))
    assert again.slices.equals(results.slices) and again.runs.equals(results.runs)


def test_attention_is_counted_beside_its_share(tmp_path):
    arms = {"one of 4": Arm("M-M-A-M-", "even", 2.0), "one of 8": Arm("(M-)4A-(M-)3", "even", 2.0)}
    runs = [Run(name, 0, 1e-3, architecture=arm) for name, arm in arms.items()]
    results = load(fake_study.write(tmp_path / "s", runs))
    assert results.runs.select("attention", "mixers", "ratio").rows() == [(1, 4, 0.25), (1, 8, 0.125)]
    kept = results.save(tmp_path / "kept")
    pl.read_csv(kept / "runs.csv").drop("attention", "mixers").write_csv(kept / "runs.csv")
    assert load(kept).runs.equals(results.runs)  # tables of before the counts


@pytest.mark.parametrize("folder", sorted(path.parent for path in Path("results").glob("*/runs.csv")), ids=str)
def test_results_that_were_kept_are_still_read(folder):
    results = load(folder)
    table = results.table()
    assert len(table) == len(results.arms) > 0 and table["attention"].null_count() == 0
