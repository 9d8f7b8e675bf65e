"""Benchmarks: paired times, rows with bars, figures kept by commit, and the page that is made of them."""

from __future__ import annotations

import json
import time

import pytest

from benchmarks import history, measure, page
from benchmarks.measure import Times, paired
from benchmarks.rows import Row, cells, faster, of_limit


def busy(seconds):
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        pass


def test_pieces_take_turns_in_the_rounds_before_the_timed_ones_too():
    order = []
    times = paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm=2, pause=0)
    assert "".join(order) == "ab" * 5
    assert len(times["a"].wall) == len(times["b"].cpu) == len(times["a"].busiest) == 3


def test_the_busiest_thread_is_counted_and_not_the_sleep():
    times = paired({"busy": lambda: busy(0.02), "asleep": lambda: time.sleep(0.02)}, rounds=1, warm=0, pause=0)
    assert times["busy"].busiest[0] >= 0.015 and times["asleep"].busiest[0] < 0.01
    assert times["asleep"].wall[0] >= 0.02


def test_ratios_are_taken_within_rounds():
    ours, theirs = Times(wall=[1.0, 2.0, 10.0]), Times(wall=[2.0, 6.0, 30.0])
    ratio = ours.faster_than(theirs)
    assert ratio.median == 3.0 and ratio.low == 2.0 and ratio.high == 3.0


@pytest.mark.parametrize(
    ("figure", "bar", "holds"), [(10.0, ">= 10", True), (9.9, ">= 10", False), (20.1, "<= 20", False), (1.0, "", None)]
)
def test_a_bar_holds_or_is_missed(figure, bar, holds):
    row = Row("work", "peer", figure, "x as fast", bar)
    assert row.holds is holds
    assert ("(missed)" in cells(row)[4]) == (holds is False)


def test_rows_of_times_have_medians_quartiles_and_the_limit():
    ours = Times([0.1, 0.1, 0.2], [0.2] * 3, [0.1] * 3)
    row = faster("work", "peer", ours, Times([1.0, 2.0, 2.0], [1.0] * 3, [1.0] * 3), ">= 5")
    assert (row.figure, row.ours["wall"], row.theirs["wall"]) == (10.0, 100.0, 2000.0)
    assert of_limit("work", "bandwidth", ours, seconds=0.05).figure == 2.0


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "FOLDER", tmp_path)
    row = Row("a sum", "numpy", 12.345, "x as fast", ">= 10", 12.0, 13.0, note="bound by memory")
    history.keep("scans", [{"function": "f", **row.record()}], seconds=3.0)
    history.keep("attention", [], seconds=1.0)
    return tmp_path


def test_suites_of_one_commit_are_kept_in_one_file_and_measured_again_in_their_place(kept):
    history.keep("scans", [], seconds=4.0)
    (path,) = kept.glob("*.json")
    found = json.loads(path.read_text())
    assert set(found["suites"]) == {"scans", "attention"} and found["suites"]["scans"]["seconds"] == 4.0
    assert found["versions"]["jax"] and found["machine"]["cores"] >= 1


def test_the_page_shows_the_newest_figures_and_keeps_its_words(kept):
    parts = ("scans -->\nold", "devices -->", "history -->")
    text = "Words.\n\n" + "".join(f"<!-- {part}\n<!-- end -->\n" for part in parts)
    renewed = page.renewed(text, history.all_kept())
    assert renewed.startswith("Words.") and "old" not in renewed and "Not measured yet." in renewed
    assert "| a sum | numpy | 12.3 x as fast | 12 to 13 | >= 10 |" in renewed
    assert "- a sum, numpy: bound by memory" in renewed
    assert page.renewed(renewed, history.all_kept()) == renewed


def test_docs_performance_shows_what_was_kept():
    assert page.renewed(page.PAGE.read_text(), history.all_kept()) == page.PAGE.read_text()


def test_temporaries_are_those_of_the_compiled_program():
    import jax
    import jax.numpy as jnp

    compiled = jax.jit(lambda x: jnp.sort(jnp.sin(x) @ x)).lower(jnp.ones((512, 512))).compile()
    assert 1 <= measure.temporaries(compiled) <= 4
