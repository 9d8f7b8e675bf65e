"""The verdict table: chosen on validation, scored on test, numbers worked out by hand, arms that failed or diverged."""

import dataclasses
import math

import polars as pl
import pytest

from experiments.results import load
from experiments.verdicts import confirmed, responses, windows
from hybrid.validation import ConfigError
from tests import fake_study
from tests.fake_study import Run

T2 = 4.302652729911275  # Student's t, 2 degrees of freedom, 97.5 %: sqrt(2) * 0.95 / sqrt(1 - 0.95**2)
BASE = (2.5, 2.62, 2.71)


def p_of_three(t):
    """Two-sided p of Student's t with 2 degrees of freedom, which has this closed form."""
    return 1 - abs(t) / math.sqrt(2 + t * t)


def arm(name, scores, rate=1e-3):
    """One rate; a test score a seed, None where it diverged."""
    return [
        Run(name, seed, rate, "confirm" if seed else "tune", "done" if score else "diverged", 2.0, score)
        for seed, score in enumerate(scores)
    ]


def table(tmp_path, *arms, baseline="attention", **settings):
    results = load(fake_study.write(tmp_path / "s", [run for runs in arms for run in runs], baseline, **settings))
    return {row["arm"]: row for row in results.table().iter_rows(named=True)}


def test_t_of_two_degrees_of_freedom_is_the_closed_form():
    assert pytest.approx(math.sqrt(2) * 0.95 / math.sqrt(1 - 0.95**2)) == T2
    assert p_of_three(T2) == pytest.approx(0.05)


def test_mean_interval_difference_and_verdict_are_those_worked_out_by_hand(tmp_path):
    ours = [base + step for base, step in zip(BASE, (-0.50, -0.52, -0.51), strict=True)]  # mean -0.51, sd 0.01
    rows = table(tmp_path, arm("attention", BASE), arm("mamba", ours))
    mean = sum(ours) / 3
    sd = math.sqrt(sum((x - mean) ** 2 for x in ours) / 2)
    row = rows["mamba"]
    assert row["n"] == 3 and row["test"] == pytest.approx(mean)
    assert row["high"] - row["test"] == pytest.approx(T2 * sd / math.sqrt(3))
    assert row["test"] - row["low"] == pytest.approx(T2 * sd / math.sqrt(3))
    assert row["difference"] == pytest.approx(-0.51)
    assert row["difference_high"] == pytest.approx(-0.51 + T2 * 0.01 / math.sqrt(3))
    assert row["difference_low"] == pytest.approx(-0.51 - T2 * 0.01 / math.sqrt(3))
    assert row["p"] == pytest.approx(p_of_three(0.51 / (0.01 / math.sqrt(3))))
    assert row["verdict"] == "better"
    assert rows["attention"]["verdict"] == "baseline" and rows["attention"]["difference"] is None


def test_a_verdict_has_to_hold_for_the_whole_table(tmp_path):
    near = [base + step for base, step in zip(BASE, (-0.2258, -0.3258, -0.4258), strict=True)]  # t 5.643: p 0.03 alone
    far = [base + step for base, step in zip(BASE, (0.1, 0.3, 0.2), strict=True)]  # t 3.464: p 0.0742 alone
    alone = table(tmp_path / "alone", arm("attention", BASE), arm("mamba", near))
    assert alone["mamba"]["verdict"] == "better" and alone["mamba"]["p"] == pytest.approx(0.03, abs=1e-4)
    both = table(tmp_path / "both", arm("attention", BASE), arm("mamba", near), arm("hyena", far))
    assert both["mamba"]["p"] == pytest.approx(2 * alone["mamba"]["p"])
    assert both["mamba"]["verdict"] == "undecided" and both["mamba"]["more_seeds"] > 0
    assert both["hyena"]["p"] == pytest.approx(p_of_three(2 * math.sqrt(3)))


def test_worse_is_said_of_the_arm_with_the_higher_score(tmp_path):
    worse = [base + step for base, step in zip(BASE, (0.50, 0.52, 0.51), strict=True)]
    assert table(tmp_path, arm("attention", BASE), arm("mamba", worse))["mamba"]["verdict"] == "worse"


def test_rates_are_chosen_on_validation_whatever_test_says(tmp_path):
    def study(name, tests):
        runs = [
            Run("mamba", 0, rate, validation=validation, test=test)
            for rate, validation, test in zip((1e-3, 3e-3, 1e-2), (2.2, 2.1, 2.3), tests, strict=True)
        ]
        return load(fake_study.write(tmp_path / name, runs)).table().row(0, named=True)

    for name, tests in (("agrees", (2.2, 2.1, 2.3)), ("disagrees", (1.0, 3.0, 0.5))):
        row = study(name, tests)
        assert row["learning_rate"] == 3e-3 and row["validation"] == 2.1
        assert row["test"] == tests[1]
        assert row["edge"] is None


@pytest.mark.parametrize(("best", "edge"), [(1e-3, "low"), (3e-3, None), (1e-2, "high")])
def test_a_best_rate_at_the_end_of_its_grid_is_marked(tmp_path, best, edge):
    runs = [Run("mamba", 0, rate, validation=2.0 if rate == best else 2.5) for rate in (1e-3, 3e-3, 1e-2)]
    assert table(tmp_path, runs, baseline="")["mamba"]["edge"] == edge


def test_good_rates_end_where_the_line_between_scores_leaves_one_percent(tmp_path):
    scores = {1e-4: 2.04, 1e-3: 2.0, 1e-2: 2.04}  # 1 % of 2 is half of 0.04: half a decade to each side
    runs = [Run("mamba", 0, rate, validation=score) for rate, score in scores.items()]
    window = windows(load(fake_study.write(tmp_path / "s", runs)))["mamba"]
    assert window.best_rate == 1e-3 and window.bounded
    assert window.low == pytest.approx(10**-3.5) and window.high == pytest.approx(10**-2.5)
    assert window.width == pytest.approx(1.0)


def test_only_runs_at_the_chosen_rate_are_scored(tmp_path):
    runs = [Run("mamba", 0, 1e-3, validation=2.0, test=2.0), Run("mamba", 0, 3e-3, validation=2.5, test=9.0)]
    runs += [Run("mamba", 1, 1e-3, "confirm", test=2.2), Run("mamba", 1, 3e-3, "confirm", test=9.0)]
    results = load(fake_study.write(tmp_path / "s", runs))
    assert results.table()["test"].to_list() == [pytest.approx(2.1)]
    assert set(confirmed(results)["learning_rate"]) == {1e-3}


def test_a_seed_that_diverged_is_counted_and_is_in_no_mean(tmp_path):
    rows = table(tmp_path, arm("attention", BASE), arm("mamba", (2.0, 2.1, None)))
    row = rows["mamba"]
    assert (row["n"], row["lost"], row["diverged"]) == (2, 1, 1)
    assert row["test"] == pytest.approx(2.05)
    assert row["verdict"] == "undecided"  # better where it lived, and it lived less often


def test_an_arm_that_diverged_everywhere_has_no_rate_no_score_and_no_verdict(tmp_path):
    dead = [Run("hyena", 0, rate, status="diverged") for rate in (1e-3, 3e-3)]
    results = load(fake_study.write(tmp_path / "s", [*arm("attention", BASE), *dead], "attention"))
    row = results.table().row(1, named=True)
    assert row["arm"] == "hyena" and row["runs"] == row["diverged"] == 2
    assert row["learning_rate"] is row["test"] is row["verdict"] is row["edge"] is None
    rates, scores = responses(results)["hyena"]
    assert rates == [1e-3, 3e-3] and all(math.isnan(score) for score in scores)


def test_nothing_is_compared_with_a_baseline_that_has_no_score(tmp_path):
    rows = table(tmp_path, [Run("attention", 0, 1e-3, status="failed")], arm("mamba", BASE))
    assert rows["attention"]["verdict"] is rows["mamba"]["verdict"] is None
    assert rows["mamba"]["n"] == 3 and rows["attention"]["failed"] == 1


def test_one_arm_of_one_seed_has_a_mean_and_no_interval(tmp_path):
    row = table(tmp_path, arm("mamba", (2.0,)), baseline="")["mamba"]
    assert row["test"] == 2.0 and row["low"] is None and row["verdict"] == "baseline"


def test_the_score_of_the_study_may_be_the_loss(tmp_path):
    row = table(tmp_path, arm("mamba", (2.0, 2.0)), baseline="", score="loss")["mamba"]
    assert row["test"] == pytest.approx(2.0 * math.log(2))


def test_another_baseline_turns_the_differences_around_and_a_wrong_one_is_refused(tmp_path):
    ours = [base - 0.5 for base in BASE]
    results = load(fake_study.write(tmp_path / "s", [*arm("attention", BASE), *arm("mamba", ours)], "attention"))
    assert results.against("mamba").table()["difference"].to_list() == [pytest.approx(0.5), None]
    with pytest.raises(ConfigError, match="did you mean 'mamba'"):
        results.against("mambo")


# --- scores that are better when larger -------------------------------------------------------------------------------


def test_accuracies_are_chosen_compared_and_windowed_the_other_way_round(tmp_path):
    results = load(fake_study.recall(tmp_path / "recall"))
    rows = {row["arm"]: row for row in results.table().iter_rows(named=True)}
    tuned = results.runs.filter((pl.col("stage") == "tune") & (pl.col("arm") == "1 of 4 even"))
    assert rows["1 of 4 even"]["validation"] == tuned["validation_accuracy"].max() > 0.9
    assert rows["mamba"]["verdict"] == "worse" and rows["mamba"]["difference"] < -0.7
    assert all(0 <= row["low"] <= row["test"] <= row["high"] <= 1 for row in rows.values())
    found = windows(results)["1 of 4 even"]
    assert found.best_rate == 3e-3 and found.high == pytest.approx(1e-2)
    assert found.low > 2e-3  # of a curve from 0.2 at 0.001 to 1.0 at 0.003: where 0.9 of the best is left


def test_seeds_that_fail_and_steps_until_they_learn_are_counted(tmp_path):
    results = load(fake_study.recall(tmp_path / "recall"))
    rows = {row["arm"]: row for row in results.table().iter_rows(named=True)}
    kept = confirmed(results)
    for arm, row in rows.items():
        scores = kept.filter(pl.col("arm") == arm)["test_accuracy"]
        assert row["failing"] == pytest.approx((scores < 0.9).mean())
    assert rows["attention"]["steps_to"] in range(60, 161) and rows["attention"]["steps_p"] is None
    assert rows["mamba"]["steps_to"] is None and rows["mamba"]["steps_p"] < 0.01
    assert load(fake_study.quickstart(tmp_path / "bits")).table()["steps_to"].is_null().all()


def test_settings_can_be_chosen_on_test_where_a_protocol_says_so(tmp_path):
    runs = [Run("mamba", 0, 1e-3, validation=2.0, test=2.5), Run("mamba", 0, 3e-3, validation=2.1, test=2.4)]
    results = load(fake_study.write(tmp_path / "s", runs, "mamba"))
    assert results.table()["learning_rate"].to_list() == [1e-3]
    on_test = dataclasses.replace(results, select_on="test")
    assert on_test.table()["learning_rate"].to_list() == [3e-3]
