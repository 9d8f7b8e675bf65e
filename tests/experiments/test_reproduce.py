"""Claims: what is listed can be planned, exact ones are recomputed, and a finding follows from seeds alone."""

import dataclasses
import math

import polars as pl
import pytest

from experiments import reproduce
from experiments.claims import CLAIMS, exact, induction, text
from experiments.claims.claim import exact as equal
from experiments.claims.claim import flat, level, orders, overall, within
from experiments.configfile import ConfigFile, read_overrides
from experiments.results import load
from experiments.study import plan
from hybrid.validation import ConfigError
from tests import fake_study
from tests.fake_study import Run

STUDIES = [
    pytest.param(claim, name, id=f"{claim.name}-{name}")
    for claim in CLAIMS.values()
    for name, scale in claim.scales.items()
    if scale.config
]


@pytest.mark.parametrize(("claim", "name"), STUDIES)
def test_the_study_of_every_claim_can_be_planned_and_has_the_arms_that_are_judged(claim, name, tmp_path):
    scale = claim.scales[name]
    overrides = [flag.removeprefix("--config.").split("=", 1) for flag in scale.overrides]
    study = plan(ConfigFile(reproduce.ROOT / scale.config), read_overrides(overrides), lambda data: "f")
    assert not study.refused and not study.duplicates and study.settings.seeds >= 3
    arms = set(study.arms)
    runs = [Run(arm, seed, 1e-3, "confirm" if seed else "tune", architecture=fake_study.ARMS["mamba"])
            for arm in arms for seed in range(3)]  # fmt: skip
    results = load(fake_study.write(tmp_path / "s", runs, study.baseline))
    share = dataclasses.replace(results, score=study.settings.score, runs=accuracies(results, study.settings.score))
    findings = claim.judge(share)
    assert len(findings) >= 2
    for finding in findings:
        if not finding.statement.count(" at "):  # of a slice
            assert finding.ours is not None, f"{finding.statement}: is it an arm?"


def accuracies(results, score):
    columns = {f"{split}_{score}": results.runs[f"{split}_loss"] for split in ("validation", "test")}
    return results.runs.with_columns(**columns)


@pytest.mark.parametrize("computed", [exact.caches, exact.patterns, exact.counts])
def test_exact_claims_agree_to_the_last_digit(computed):
    assert {finding.verdict for finding in computed()} == {"agrees"}


def test_a_number_that_is_not_equal_disagrees():
    assert equal("x", 4, 5.0).verdict == "disagrees" == equal("x", "M*M", "MM*").verdict
    assert within("x", 8.65e9, 8.654e9, 0.005e9).verdict == "agrees"
    assert within("x", 8.65e9, 8.66e9, 0.005e9).verdict == "disagrees"


# --- from seeds to findings -------------------------------------------------------------------------------------------


def study(tmp_path, arms):
    runs = [
        Run(arm, seed, 1e-3, "confirm" if seed else "tune", test=score, architecture=fake_study.ARMS["mamba"])
        for arm, scores in arms.items()
        for seed, score in enumerate(scores)
    ]
    return load(fake_study.write(tmp_path / "s", runs, next(iter(arms))))


def test_an_order_needs_the_sign_and_the_seeds(tmp_path):
    results = study(tmp_path, {"good": (2.0, 2.1, 2.05), "bad": (2.5, 2.61, 2.56), "like good": (2.03, 2.08, 2.04)})
    found = orders(results, [("good", "bad", "x"), ("bad", "good", "x"), ("good", "like good", "x")])
    assert [finding.verdict for finding in found] == ["agrees", "disagrees", "undecided"]
    assert found[0].ours == pytest.approx(0.5067, abs=1e-3) and found[0].low < found[0].ours < found[0].high
    assert found[1].ours == -found[0].ours and found[0].unit == "bits per byte"
    assert overall(found) == "disagrees" and overall(found[:1]) == "agrees" and overall(found[::2]) == "undecided"


def test_a_level_is_judged_by_its_whole_interval(tmp_path):
    results = study(tmp_path, {"a": (2.0, 2.01, 2.02), "b": (2.0, 2.4, 2.8), "one": (2.0,)})
    assert level(results, "a", "x", -math.inf, 2.2).verdict == "agrees"
    assert level(results, "a", "x", 2.2, math.inf).verdict == "disagrees"
    assert level(results, "b", "x", -math.inf, 2.5).verdict == "undecided"
    assert level(results, "one", "x", -math.inf, 2.5).verdict == "undecided"
    assert level(results, "none", "x", -math.inf, 2.5).verdict == "undecided"


def test_noise_alone_never_makes_arms_equal(tmp_path):
    arms = {"a": (2.0, 2.1, 2.05), "same": (2.001, 2.103, 2.05), "noisy": (1.8, 2.3, 2.0), "far": (2.4, 2.5, 2.46)}
    results = study(tmp_path, arms)
    found = flat(results, list(arms), "flat", 0.03)
    assert [finding.verdict for finding in found] == ["agrees", "undecided", "disagrees"]


def test_a_floor_is_the_smallest_difference_that_would_be_found(tmp_path):
    arms = dict.fromkeys(text.BASIN, (2.0, 2.1, 2.05))
    arms[text.BASIN[1]] = (2.01, 2.12, 2.03)
    arms[text.BASIN[2]] = (2.00, 2.13, 2.05)
    words = text.floor(study(tmp_path, arms))
    assert words.startswith("differences below 0.0") and "80 % power" in words


def test_slices_are_judged_as_whole_scores_are(tmp_path):
    results = study(tmp_path, {"mamba": (0.5, 0.5, 0.5), "attention": (0.5, 0.5, 0.5)})
    ids = dict(results.runs.select("id", "arm").iter_rows())
    rows = [(run, name, "bits_per_byte", {"mamba": 0.99, "attention": 0.2 if name == "2^12" else 1.0}[arm] + 1e-3 * i)
            for i, (run, arm) in enumerate(ids.items()) for name in ("2^6", "2^12", "2^14")]  # fmt: skip
    slices = pl.DataFrame(rows, schema=results.slices.schema, orient="row")
    found = induction.induction(dataclasses.replace(results, slices=slices))
    assert [finding.verdict for finding in found] == ["agrees"] * 4
    assert found[3].statement == "attention at 2^12 tokens" and found[3].ours == pytest.approx(0.204, abs=2e-3)


def test_lengths_stand_in_their_order_with_the_range_of_their_seeds(tmp_path):
    results = study(tmp_path, {"mamba": (0.5, 0.5), "attention": (0.5, 0.5)})
    scores = {"2^6": (1.0, 1.0), "2^12": (0.25, 0.75), "2^9": (0.5, 1.0)}
    runs = results.runs.select("id", "arm", "seed").iter_rows()
    rows = [(run, name, "bits_per_byte", values[seed]) for run, arm, seed in runs if arm == "mamba"
            for name, values in scores.items()]  # fmt: skip
    slices = pl.DataFrame(rows, schema=results.slices.schema, orient="row")
    lines = list(induction.lengths(dataclasses.replace(results, slices=slices)))
    assert lines[2] == "| arm | 2^6 | 2^9 | 2^12 |"
    assert "| mamba | 1.00 | 0.75 (0.50 to 1.00) | 0.50 (0.25 to 0.75) |" in lines


# --- the command ------------------------------------------------------------------------------------------------------


def test_every_claim_is_listed_with_source_cost_and_agreement(capsys):
    assert reproduce.command(["--list"]) == 0
    out = capsys.readouterr().out
    for claim in CLAIMS.values():
        assert f"\n{claim.name}\n" in f"\n{out}" and claim.source in out and claim.agreement in out


def test_an_exact_claim_is_tried_and_kept(tmp_path, capsys):
    words = ["kv-cache", f"--workdir={tmp_path}", f"--save={tmp_path / 'kept'}"]
    assert reproduce.command(words) == 0
    out = capsys.readouterr().out
    assert "# kv-cache: agrees" in out and "| Jamba | 4 | 4 GiB" in out
    for folder in (tmp_path / "kv-cache-cpu" / "report", tmp_path / "kept"):
        assert {path.name for path in folder.iterdir()} == {"claim.md", "claim.csv", "claim.png"}
    assert pl.read_csv(tmp_path / "kept" / "claim.csv")["verdict"].to_list() == ["agrees"] * 8


def test_a_study_that_is_there_is_judged_and_shown(tmp_path, capsys, monkeypatch):
    def trained(scale, folder, more, given):
        runs = [Run(arm, seed, 1e-3, "confirm" if seed else "tune", architecture=fake_study.ARMS["mamba"],
                    test=2.0 + (arm == "1/8 first") + 0.01 * seed + 0.001 * len(arm))
                for arm in ("mamba", "1/8 first", *text.PLACES) for seed in range(3)]  # fmt: skip
        fake_study.write(folder, runs, "mamba")
        return 0

    monkeypatch.setattr(reproduce, "_sweep", trained)
    assert reproduce.command(["attention-first", f"--workdir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "# attention-first: agrees" in out and "Reduced protocol:" in out and "15 of 15 done" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "must be one"),
        (["kv-cash"], "did you mean 'kv-cache'"),
        (["kv-cache", "--scale=tpu"], "kv-cache has no scale 'tpu'"),
    ],
)
def test_what_is_typed_wrongly_is_said(words, said):
    with pytest.raises(ConfigError, match=said):
        reproduce.command(words)
