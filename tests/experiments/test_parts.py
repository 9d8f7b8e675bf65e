"""A study whose arms read different data: compared, reported and kept source by source."""

import json

import polars as pl
import pytest

from experiments import figures, report
from experiments.results import load
from tests import fake_study
from tests.fake_study import ARMS, Run

NAMES = {f"{stack}, {task}": (stack, task) for task in ("copying", "recall") for stack in ("hyena", "mamba")}


@pytest.fixture
def mixed(tmp_path):
    """hyena and mamba on two tasks, the second of which is easier for both."""
    runs = [
        Run(arm, seed, 1e-3, "confirm" if seed else "tune", architecture=ARMS[stack],
            test=(3.0 if task == "copying" else 1.0) + 0.3 * (stack == "hyena") + 0.01 * seed + 0.001 * seed**2)
        for arm, (stack, task) in NAMES.items() for seed in range(3)
    ]  # fmt: skip
    folder = fake_study.write(tmp_path / "mixed", runs, "mamba, copying")
    for path in folder.glob("trials/*/config.json"):
        record = json.loads(path.read_text())
        record["trial"]["data"]["source"] = NAMES[record["arm"]][1]
        path.write_text(json.dumps(record))
    return load(folder)


def test_arms_are_compared_with_the_same_stack_on_their_own_data(mixed):
    rows = {row["arm"]: row for row in mixed.table().iter_rows(named=True)}
    assert list(rows) == list(NAMES)
    verdicts = {arm: row["verdict"] for arm, row in rows.items()}
    assert verdicts == {
        "hyena, copying": "worse", "mamba, copying": "baseline", "hyena, recall": "worse", "mamba, recall": "baseline",
    }  # fmt: skip
    assert rows["hyena, recall"]["difference"] == pytest.approx(0.3) == rows["hyena, copying"]["difference"]
    turned = {row["arm"]: row["verdict"] for row in mixed.table("hyena, recall").iter_rows(named=True)}
    assert turned["mamba, copying"] == "better" and turned["hyena, copying"] == "baseline"


def test_parts_hold_the_runs_and_curves_of_their_source(mixed):
    parts = mixed.parts()
    assert list(parts) == ["copying", "recall"] and parts["recall"].baseline == "mamba, recall"
    for source, part in parts.items():
        assert part.arms == [arm for arm, (_, task) in NAMES.items() if task == source]
        assert set(part.curves["id"]) == set(part.runs["id"]) and len(part.runs) == 6


def test_each_source_has_a_report_of_its_own_and_one_page_shows_their_tables(mixed, capsys, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {"verdicts": figures.verdicts})  # one is enough
    text = report.write(mixed).read_text()
    folder = mixed.folder / "report"
    for task in ("copying", "recall"):
        own = (folder / task / "report.md").read_text()
        assert f"# mixed: {task}" in own and f"| hyena, {task} |" in own and (folder / task / "verdicts.png").is_file()
        assert f"## mixed: {task}" in text and f"({task}/report.md)" in text
        assert f"**hyena, {task}** is worse than mamba, {task} by 0.300" in text
        assert {arm for arm in NAMES if f"| {arm} |" in own} == {f"hyena, {task}", f"mamba, {task}"}
        assert "different data" not in own and "not matched" not in own
    assert "To run it again" in text and not (folder / "verdicts.png").exists()
    report.show(mixed)
    shown = capsys.readouterr().out
    assert "mixed: copying: test" in shown and "mixed: recall: test" in shown and "recall/verdicts.png" in shown


def test_the_compact_form_keeps_the_source(mixed, tmp_path):
    again = load(mixed.save(tmp_path / "kept"))
    assert again.runs["source"].to_list() == mixed.runs["source"].to_list()
    assert again.table().equals(mixed.table())


def test_a_table_that_was_kept_without_its_source_is_one_part(mixed, tmp_path):
    folder = mixed.parts()["recall"].save(tmp_path / "old")
    pl.read_csv(folder / "runs.csv").drop("source").write_csv(folder / "runs.csv")
    old = load(folder)
    assert list(old.parts()) == [""] and old.table()["verdict"].to_list() == ["worse", "baseline"]
