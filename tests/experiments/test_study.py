"""From a config to runs, arms and groups; from results to the second stage; what was frozen is what goes on."""

import dataclasses
import json

import pytest

from experiments import manifest
from experiments.configfile import ConfigFile
from experiments.results import load
from experiments.scores import End, rank
from experiments.study import choose, confirm, plan, told
from experiments.verdicts import chosen, responses
from hybrid.validation import ConfigError
from tests.experiments.studies import PATTERN


def planned(workshop, overrides=(), **config):
    workshop.write(**config)
    return plan(ConfigFile(workshop.config), overrides, lambda data: "f00d")


def test_every_point_is_a_run_and_arms_are_named_by_their_patterns(workshop):
    study = planned(workshop)
    assert [run.arm for run in study.runs] == ["M-M-A-M-"] * 2 + ["A-(M-)3"] * 2
    assert [run.trial.optimizer.learning_rate for run in study.runs] == [1e-3, 3e-3] * 2
    assert len({run.id for run in study.runs}) == 4
    assert study.baseline == "M-M-A-M-"


def test_runs_that_differ_in_values_share_a_group(workshop):
    study = planned(workshop)
    assert [run.group for run in study.runs[:2]] == [study.runs[0].group] * 2
    assert study.runs[2].group != study.runs[0].group


def test_fields_that_are_compared_stand_in_the_name_of_the_arm(workshop):
    sweep = "def sweep(): return product(axis('model.d_model', [16, 32]), axis('optimizer.learning_rate', [1e-3]))"
    assert planned(workshop, sweep=sweep).arms == ["M-M-A-M- d_model=16", "M-M-A-M- d_model=32"]


def test_arm_can_be_named_by_the_sweep(workshop):
    sweep = (
        "def sweep(): return [{'arm': 'front', 'model.placement': 'first'}, {'arm': 'back', 'model.placement': 'last'}]"
    )
    study = planned(workshop, sweep=sweep, lines="c.study.baseline = 'back'")
    assert (study.arms, study.baseline) == (["front", "back"], "back")


def test_equal_patterns_of_two_placements_are_one_trial_and_the_other_is_listed(workshop):
    sweep = "def sweep(): return axis('model.placement', ['first', 'even', (0,)])"
    study = planned(workshop, sweep=sweep)
    assert len(study.runs) == 2
    (duplicate,) = study.duplicates
    assert (duplicate.number, duplicate.of) == (2, study.runs[0])


def test_points_that_no_trial_can_be_made_of_are_kept_with_their_reason(workshop):
    study = planned(workshop, sweep="def sweep(): return axis('model.ratio', ['1:3', '1:6', '1:1'])")
    assert [run.arm for run in study.runs] == ["M-M-A-M-", "M-A-A-M-"]
    (refused,) = study.refused
    assert refused.number == 1 and "1:6" in str(refused.error)


def test_config_without_sweep_is_a_study_of_one_trial(workshop):
    study = planned(workshop, sweep="", overrides=[("model.placement", "last")])
    assert [run.arm for run in study.runs] == ["(M-)3A-"]
    assert dict(study.runs[0].changed) == {}


def result(score=None, status="done"):
    return {"status": status, "validation": {"bits_per_byte": score, "loss": 0.0}} if score else {"status": status}


def test_choice_is_the_best_validation_score_of_those_that_did_not_diverge(workshop):
    study = planned(workshop)
    a, b, c, d = (run.id for run in study.runs)
    results = {a: result(2.0), b: result(1.5), c: result(1.0, "diverged"), d: result(3.0)}
    first, second = choose(study, results.get)
    assert (first.run.id, first.scores) == (b, {a: 2.0, b: 1.5})
    assert (second.run.id, second.scores) == (d, {c: None, d: 3.0})
    runs = confirm(study, [first, second])
    assert [(run.arm, run.trial.seed, run.trial.optimizer.learning_rate) for run in runs] == [
        ("M-M-A-M-", 1, 3e-3),
        ("A-(M-)3", 1, 3e-3),
    ]
    assert [run.group for run in runs] == [study.runs[1].group, study.runs[3].group], "no new program"
    assert not {run.id for run in runs} & {a, b, c, d}


def test_arm_without_a_score_is_not_confirmed_and_ties_go_to_the_first(workshop):
    study = planned(workshop)
    a, b, c, _ = (run.id for run in study.runs)
    results = {a: result(2.0), b: result(2.0), c: result(status="diverged")}
    first, second = choose(study, results.get)
    assert first.run.id == a and second.run is None
    assert {run.arm for run in confirm(study, [first, second])} == {"M-M-A-M-"}


def test_an_accuracy_is_best_when_it_is_largest_on_the_split_of_the_study(workshop):
    study = planned(workshop)
    settings = dataclasses.replace(study.settings, score="accuracy", select_on="test")
    study = dataclasses.replace(study, settings=settings)
    a, b, c, d = (run.id for run in study.runs)
    shares = {a: (0.9, 0.1), b: (0.1, 0.9), c: (0.5, 0.5), d: (0.4, 0.6)}
    results = {
        run: {"status": "done", "validation": {"accuracy": one}, "test": {"accuracy": other}}
        for run, (one, other) in shares.items()
    }
    assert [choice.run.id for choice in choose(study, results.get)] == [b, d]


def test_of_two_that_knew_the_task_the_faster_is_chosen_and_both_before_one_that_only_scores(workshop):
    study = planned(workshop)
    a, b, c, d = (run.id for run in study.runs)
    steps = study.runs[0].trial.train.steps
    results = {a: result(0.01) | {"step": steps - 1}, b: result(0.02) | {"step": steps - 2},
               c: result(0.001) | {"step": steps}, d: result(0.01) | {"step": steps - 1}}  # fmt: skip
    assert [choice.run.id for choice in choose(study, results.get)] == [b, d]


def test_a_setting_tried_on_several_seeds_is_chosen_by_their_mean_and_confirmed_on_the_others(workshop):
    study = planned(workshop, lines="c.study.tune_seeds = 2; c.study.seeds = 3")
    assert [run.trial.seed for run in study.runs] == [0, 1] * 4 and len({run.group for run in study.runs}) == 2
    assert {told(run).split()[-1] for run in study.runs} == {"seed=0", "seed=1"}
    low, low_again, high, high_again, *others = (run.id for run in study.runs)
    results = {low: result(1.0), low_again: result(3.0), high: result(1.6), high_again: result(1.8)}
    first, second = choose(study, {**results, **dict.fromkeys(others, result(2.0))}.get)
    assert first.run.id == high and len(first.scores) == 4, "the best single run is at the other rate"
    assert [(run.trial.seed, run.trial.optimizer.learning_rate) for run in confirm(study, [first])] == [(2, 3e-3)]
    assert second.run.id == others[0]


@pytest.mark.parametrize("lost", [result(status="diverged"), None])
def test_a_setting_that_lost_a_seed_goes_behind_those_that_lost_none(workshop, lost):
    study = planned(workshop, lines="c.study.tune_seeds = 2")
    low, low_again, high, high_again, *_ = (run.id for run in study.runs)
    results = {low: result(1.0), low_again: lost, high: result(4.0), high_again: result(4.0)}
    assert choose(study, results.get)[0].run.id == high
    assert choose(study, {low: result(1.0), high: None}.get)[0].run.id == low


def test_settings_of_which_every_seed_knew_the_task_go_first():
    sure, fast, unsure = [End(0.99, 90, 100)] * 2, [End(0.99, 40, 100)] * 2, [End(1.0, 10, 100), End(0.6, 100, 100)]
    better = [End(0.9, 100, 100)] * 2
    order = sorted([unsure, sure, better, fast], key=lambda ends: rank(ends, smaller_is_better=False))
    assert order == [fast, sure, better, unsure]


def test_more_tuning_seeds_than_seeds_are_refused(workshop):
    with pytest.raises(ConfigError, match=r"tune_seeds.*3.*at most seeds = 2"):
        planned(workshop, lines="c.study.tune_seeds = 3")


# --- frozen -----------------------------------------------------------------------------------------------------------


def freeze(workshop, study, threads=1):
    warnings = []
    frozen = manifest.freeze(workshop.workdir, study, "command", threads=threads, workers=1, warn=warnings.append)
    return frozen, warnings


def test_frozen_study_is_restored_without_its_config_file(workshop):
    study = planned(workshop)
    frozen, warnings = freeze(workshop, study)
    workshop.config.unlink()
    assert warnings == []
    assert manifest.restore(workshop.workdir).runs == frozen.runs
    assert [(run.id, run.group, run.trial) for run in frozen.runs] == [(r.id, r.group, r.trial) for r in study.runs]
    record = manifest.run_folder(workshop.workdir, study.runs[0].id).record
    assert (record["arm"], record["stage"], record["study"]) == ("M-M-A-M-", "tune", "tiny")
    assert record["derived"]["pattern"] == list("M-M-A-M-") and record["derived"]["ratio"] == "1/4"
    assert record["derived"]["parameters"]["total"] > 0 and record["derived"]["fingerprint"] == "f00d"


def test_same_study_goes_on_and_fields_outside_its_identity_may_change(workshop):
    freeze(workshop, planned(workshop))
    before = (workshop.workdir / "manifest.json").read_bytes()
    freeze(workshop, planned(workshop, lines="c.tracking.mode = 'offline'; c.checkpoint.every = 3"))
    assert (workshop.workdir / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("c.train.steps = 30", ["train.steps of M-M-A-M-", "20", "30"]),
        ("c.model.mamba = ConfigDict({'d_state': 3})", ["model.mamba.d_state", "3"]),
        ("c.study.seeds = 1", ["study.seeds", "2", "1"]),
        ("c.study.baseline = 'A-(M-)3'", ["study.baseline", "A-(M-)3"]),
        ("c.seed = 7", ["seed", "0", "7"]),
    ],
)
def test_other_study_in_the_folder_is_refused_with_the_first_field_that_differs(workshop, lines, words):
    freeze(workshop, planned(workshop))
    with pytest.raises(ConfigError, match="holds another study") as refused:
        freeze(workshop, planned(workshop, lines=lines))
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_list_of_settings_that_differs_in_one_names_that_one():
    before = [{"name": "near", "rows": 64}, {"name": "far", "rows": 64}]
    now = [{"name": "near", "rows": 64}, {"name": "far", "rows": 16}]
    assert manifest._first_difference(before, now) == (64, 16, "[1].rows")
    assert manifest._first_difference(before, now[:1]) == (before, now[:1], "")
    assert manifest._first_difference(2, 1) == (2, 1, "")


FEWER = """
def sweep():
    return [{"model.placement": "even", "optimizer.learning_rate": rate} for rate in (1e-3, 3e-3)]
"""


def test_other_number_of_trials_and_other_data_are_refused(workshop):
    study = planned(workshop)
    freeze(workshop, study)
    with pytest.raises(ConfigError, match="number of trials is 4 there and 2 here"):
        freeze(workshop, planned(workshop, sweep=FEWER))
    workshop.write()
    other = plan(ConfigFile(workshop.config), [], lambda data: "beef")
    with pytest.raises(ConfigError, match="another study"):
        freeze(workshop, other)


MORE = """
def sweep():
    new = [{"model.placement": "even", "optimizer.learning_rate": 1e-2}]
    return new + product(axis("model.placement", ["even", "first"]), axis("optimizer.learning_rate", [1e-3, 3e-3]))
"""


def test_a_study_grows_by_trials_that_are_new_and_chooses_again(workshop):
    """What is done stays done; the best rate may be one of the new ones."""
    study, _ = freeze(workshop, planned(workshop))
    for run in study.runs:
        manifest.run_folder(workshop.workdir, run.id).finish(result(2.0))
    manifest.freeze_confirm(workshop.workdir, study, lambda text: None)
    grown, warnings = freeze(workshop, planned(workshop, sweep=MORE))
    assert len(warnings) == 1 and "grows: 5 trials instead of 4" in warnings[0]
    new, *old = grown.runs
    assert [run.id for run in old] == [run.id for run in study.runs] and new.trial.optimizer.learning_rate == 1e-2
    assert manifest.restore(workshop.workdir).runs == grown.runs
    assert [run["id"] for run in dict(manifest.stages(workshop.workdir))["tune"]] == [run.id for run in grown.runs]
    assert manifest.run_folder(workshop.workdir, old[0].id).result is not None
    manifest.run_folder(workshop.workdir, new.id).finish(result(1.0))
    chosen = manifest.freeze_confirm(workshop.workdir, grown, lambda text: None)
    assert [run.changed["optimizer.learning_rate"] for run in chosen] == [1e-2, 1e-3]
    assert freeze(workshop, planned(workshop, sweep=MORE))[1] == [], "said once"
    with pytest.raises(ConfigError, match="number of trials is 5 there and 4 here"):
        freeze(workshop, planned(workshop))


def test_a_study_grows_by_seeds_and_keeps_those_that_it_has(workshop):
    study, _ = freeze(workshop, planned(workshop))
    for run in study.runs:
        manifest.run_folder(workshop.workdir, run.id).finish(result(2.0))
    few = manifest.freeze_confirm(workshop.workdir, study, lambda text: None)
    grown, warnings = freeze(workshop, planned(workshop, lines="c.study.seeds = 4"))
    assert len(warnings) == 1 and warnings[0].endswith("grows: 4 seeds instead of 2")
    many = manifest.freeze_confirm(workshop.workdir, grown, warnings.append)
    assert len(warnings) == 1, "no rate was chosen again"
    assert len(few) == 2 and len(many) == 6 and {run.id for run in few} < {run.id for run in many}


def test_a_study_grows_by_tuning_seeds_of_which_it_may_have_some(workshop):
    """Runs that confirmed a rate become tuning runs of it, and the choice is made of all."""
    study, _ = freeze(workshop, planned(workshop))
    for run in study.runs:
        manifest.run_folder(workshop.workdir, run.id).finish(result(2.0))
    few = manifest.freeze_confirm(workshop.workdir, study, lambda text: None)
    for run in few:
        manifest.run_folder(workshop.workdir, run.id).finish(result(4.0))
    grown, warnings = freeze(workshop, planned(workshop, lines="c.study.tune_seeds = 2"))
    assert len(warnings) == 1 and warnings[0].endswith("grows: 8 trials instead of 4")
    assert {run.id for run in few} < {run.id for run in grown.runs}
    for run in grown.runs:
        folder = manifest.run_folder(workshop.workdir, run.id)
        if folder.result is None:
            folder.finish(result(2.0))
    assert manifest.freeze_confirm(workshop.workdir, grown, lambda text: None) == [], "no third seed was asked for"
    found = load(workshop.workdir)
    assert set(found.runs["stage"]) == {"tune"}
    assert chosen(found) == {run.arm: "learning_rate=0.003" for run in grown.runs}, "by the mean of both seeds"
    assert responses(found)[grown.arms[0]] == ([1e-3, 3e-3], [3.0, 2.0])


def test_a_folder_from_before_a_setting_was_there_is_the_same_study(workshop):
    freeze(workshop, planned(workshop))
    written = json.loads((workshop.workdir / "manifest.json").read_text())
    del written["settings"]["tune_seeds"]
    (workshop.workdir / "manifest.json").write_text(json.dumps(written))
    assert freeze(workshop, planned(workshop))[1] == []


def test_changed_versions_are_flagged_once_and_change_no_identity(workshop, monkeypatch):
    study = planned(workshop)
    freeze(workshop, study)
    now = {**manifest.versions(), "jax": "99.0"}
    monkeypatch.setattr(manifest, "versions", lambda: now)
    frozen, warnings = freeze(workshop, study, threads=2)
    assert len(warnings) == 1 and "jax" in warnings[0] and "99.0" in warnings[0] and "threads 1 -> 2" in warnings[0]
    assert [run.id for run in frozen.runs] == [run.id for run in study.runs]
    assert freeze(workshop, study, threads=2)[1] == [], "said once"
    content = json.loads((workshop.workdir / "manifest.json").read_text())
    assert content["versions"]["jax"] != "99.0" and content["changes"] == [{"to": {"jax": "99.0", "threads": "2"}}]


def test_second_stage_is_frozen_and_chosen_anew_only_for_scores_that_came_later(workshop):
    study, _ = freeze(workshop, planned(workshop))
    a, b, c, d = (manifest.run_folder(workshop.workdir, run.id) for run in study.runs)
    for run, score in ((a, 2.0), (c, 2.0), (d, 3.0)):
        run.finish(result(score))
    b.fail("no progress", "killed")
    warnings = []
    runs = manifest.freeze_confirm(workshop.workdir, study, warnings.append)
    assert [run.changed["optimizer.learning_rate"] for run in runs] == [1e-3, 1e-3]
    content = json.loads((workshop.workdir / "confirm.json").read_text())
    assert content["choices"]["M-M-A-M-"]["scores"] == {a.id: 2.0, b.id: None}
    before = (workshop.workdir / "confirm.json").read_bytes()
    manifest.freeze_confirm(workshop.workdir, study, warnings.append)
    assert (workshop.workdir / "confirm.json").read_bytes() == before and warnings == []
    b.retry()
    b.finish(result(1.0))
    runs = manifest.freeze_confirm(workshop.workdir, study, warnings.append)
    assert [run.changed["optimizer.learning_rate"] for run in runs] == [3e-3, 1e-3]
    assert len(warnings) == 1 and "M-M-A-M-" in warnings[0] and "A-(M-)3" not in warnings[0]


def test_explicit_pattern_is_a_study_too(workshop):
    study = planned(workshop, model=PATTERN, sweep="def sweep(): return axis('model.pattern', ['M-A-', 'A-M-'])")
    assert study.arms == ["M-A-", "A-M-"]
