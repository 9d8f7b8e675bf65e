"""Figures of studies of every kind: what is drawn, that the data is what is drawn, that it can be read."""

import itertools
import math

import polars as pl
import pytest
from matplotlib.colors import to_hex

from experiments import drawing, figures
from experiments.palette import ALARM, KINDS
from experiments.results import load
from tests import fake_study
from tests.fake_study import ARMS, Arm, Run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return load(fake_study.quickstart(tmp_path_factory.mktemp("small") / "quick"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return load(fake_study.large(tmp_path_factory.mktemp("large") / "places"))


@pytest.fixture(scope="module")
def recall(tmp_path_factory):
    return load(fake_study.recall(tmp_path_factory.mktemp("recall") / "recall"))


def test_the_best_rate_of_an_accuracy_is_the_highest(recall):
    figure, data = figures.response(recall)
    rings = [line for line in figure.axes[0].get_lines() if line.get_markersize() == 8]
    best = data.group_by("arm").agg(pl.col("validation_accuracy").max())
    assert sorted(line.get_ydata()[0] for line in rings) == sorted(best["validation_accuracy"])
    assert figure.axes[0].get_ylabel() == "validation accuracy"


def labelled(axes):
    """Label -> line, of the lines that the legend names."""
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def overlaps(figure):
    """Pairs of visible texts whose boxes overlap by more than a pixel."""
    figure.draw_without_rendering()
    texts = []
    for axes in (each for each in figure.axes if each.get_visible()):
        texts += [axes.xaxis.label, axes.yaxis.label, axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()]
        texts += [text for text in axes.texts if len(text.get_text()) > 1]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]
    boxes = [(text, box.padded(-1)) for text, box in boxes if box.width > 2 and box.height > 2]
    return [(a, b) for (a, box), (b, other) in itertools.combinations(boxes, 2) if box.overlaps(other)]


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_verdicts_show_each_arm_with_its_interval_and_a_cell_for_each_sublayer(small):
    figure, data = figures.verdicts(small)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == list(ARMS) == data["arm"].to_list()
    assert len(left.patches) == 6 * 8
    assert to_hex(left.patches[0].get_facecolor()).upper() == KINDS["A"]
    points = [line for line in right.get_lines() if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in points] == data["test"].to_list()
    intervals = [tuple(line.get_xdata()) for line in right.get_lines() if line.get_marker() == "None"]
    assert set(zip(data["low"], data["high"], strict=True)) <= set(intervals)
    assert right.get_xlabel() == "test bits per byte, 95 % interval"
    assert [text.get_text() for text in right.texts] == data["verdict"].to_list()


def test_branches_share_a_cell_and_a_users_letter_has_the_colour_of_its_kind(tmp_path):
    run = Run("own", 0, 1e-3, architecture=Arm("[A|M]-w-", "", 2.0), symbols=(("w", "H"),))
    figure, _ = figures.verdicts(load(fake_study.write(tmp_path / "s", [run])))
    cells = figure.axes[0].patches
    assert len(cells) == 5 and cells[0].get_height() == pytest.approx(cells[2].get_height() / 2)
    assert [text.get_text() for text in figure.axes[0].texts] == ["A", "M", "-", "w", "-"]
    assert "w hyena" in figure.axes[0].get_xlabel()


# --- placement --------------------------------------------------------------------------------------------------------


def test_placement_has_a_point_for_each_arm_and_a_line_for_each_place(large):
    figure, data = figures.placement(large)
    lines = labelled(figure.axes[0])
    assert list(lines) == ["mamba", "attention", "first", "middle", "last", "even", "sandwich"]
    assert sum(len(line.get_xdata()) for line in lines.values()) == len(data) == 16
    for name, line in lines.items():
        rows = data.filter(pl.col("series") == name)
        assert list(line.get_ydata()) == rows["test"].to_list()
        assert list(line.get_xdata()) == pytest.approx(rows["ratio"].to_list(), abs=0.05)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "1/8", "1/4", "1/2", "1"]


def test_each_point_of_placement_has_its_interval(small):
    figure, data = figures.placement(small)
    upright = [line for line in figure.axes[0].get_lines() if line.get_marker() == "None"]
    assert [tuple(line.get_ydata()) for line in upright] == [
        (low, high)
        for (_,), group in data.group_by("series", maintain_order=True)
        for low, high in zip(group["low"], group["high"], strict=True)
    ]
    assert len(upright) == 6


def test_arms_that_differ_in_more_than_place_keep_their_own_names(tmp_path):
    runs = [Run(name, 0, 1e-3, architecture=Arm("M-A-", "even", 2.0)) for name in ("wide", "deep")]
    figure, data = figures.placement(load(fake_study.write(tmp_path / "s", runs)))
    lines = labelled(figure.axes[0])
    assert list(lines) == ["wide", "deep"] == data["series"].to_list()
    assert lines["wide"].get_xdata()[0] < lines["deep"].get_xdata()[0]


def test_places_of_one_share_stand_beside_each_other_inside_the_axes(tmp_path):
    places = {"first": "A-M-M-M-", "middle": "M-A-M-M-", "last": "M-M-M-A-", "even": "M-M-A-M-"}
    runs = [Run(word, 0, 1e-3, architecture=Arm(pattern, word, 1.0)) for word, pattern in places.items()]
    figure, _ = figures.placement(load(fake_study.write(tmp_path / "s", runs)))
    low, high = figure.axes[0].get_xlim()
    at = [line.get_xdata()[0] for line in labelled(figure.axes[0]).values()]
    assert len(set(at)) == 4 and low < min(at) and max(at) < high


# --- state ------------------------------------------------------------------------------------------------------------


def test_score_against_state_has_a_point_an_interval_and_a_stripe_for_each_arm(small):
    figure, data = figures.state(small)
    axes, names = figure.axes
    points = labelled(axes)
    assert list(points) == data["arm"].to_list() == list(ARMS)
    assert [line.get_ydata()[0] for line in points.values()] == data["test"].to_list()
    for line, size in zip(points.values(), data["state_bytes"], strict=True):
        assert line.get_xdata()[0] == pytest.approx(size, rel=0.03)
    assert len(names.patches) == 6 * 8 and {text.get_text() for text in names.texts} >= set(ARMS)
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "test bits per byte"
    front = next(line for line in axes.get_lines() if line.get_linewidth() == 0.8)
    table = data.sort("state_bytes")
    best = [row for i, row in enumerate(table.iter_rows(named=True)) if row["test"] <= table["test"][: i + 1].min()]
    assert list(front.get_ydata()) == [row["test"] for row in best]


def test_arms_of_equal_state_stand_beside_each_other_and_those_without_one_are_left_out(tmp_path):
    arms = {"a": Arm("M-A-", "even", 2.0), "b": Arm("A-M-", "first", 2.1), "c": Arm("--", "", 2.2, state_bytes=0)}
    runs = [Run(name, 0, 1e-3, architecture=arm) for name, arm in arms.items()]
    figure, data = figures.state(load(fake_study.write(tmp_path / "s", runs)))
    assert data["arm"].to_list() == ["a", "b"]
    left, right = (line.get_xdata()[0] for line in labelled(figure.axes[0]).values())
    assert left < 65_536 < right


# --- response ---------------------------------------------------------------------------------------------------------


def test_response_draws_every_rate_a_cross_where_it_diverged_and_rings_the_best(small):
    figure, data = figures.response(small)
    (axes,) = figure.axes
    for arm, line in labelled(axes).items():
        rows = data.filter(pl.col("arm") == arm).sort("learning_rate")
        assert list(line.get_xdata()) == rows["learning_rate"].to_list() == [1e-3, 3e-3]
        drawn = [None if math.isnan(y) else y for y in line.get_ydata()]
        assert drawn == rows["validation_bits_per_byte"].to_list()
    assert [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "x"] == [3e-3]
    rings = [line for line in axes.get_lines() if line.get_markerfacecolor() == "none"]
    assert len(rings) == 6 and {line.get_markeredgecolor() for line in rings} == {ALARM}
    assert "6 of 6 arms" in figure.get_suptitle()
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.001", "0.003"]


def test_best_rates_inside_the_grid_are_no_alarm(tmp_path):
    runs = [Run("mamba", 0, rate, validation=2.0 + (rate != 3e-3)) for rate in (1e-3, 3e-3, 1e-2)]
    figure, _ = figures.response(load(fake_study.write(tmp_path / "s", runs)))
    assert figure.get_suptitle() == ""
    assert ALARM not in {line.get_markeredgecolor() for line in figure.axes[0].get_lines()}


def test_a_rate_tried_on_several_seeds_is_their_mean_and_each_of_them(tmp_path):
    scores = {1e-3: (2.0, 4.0), 3e-3: (2.5, 2.7), 1e-2: (2.9, 3.1)}
    runs = [Run("mamba", seed, rate, validation=each[seed]) for rate, each in scores.items() for seed in (0, 1)]
    figure, data = figures.response(load(fake_study.write(tmp_path / "s", runs)))
    line, dots, ring = figure.axes[0].get_lines()
    assert list(line.get_ydata()) == pytest.approx([3.0, 2.6, 3.0])
    assert sorted(dots.get_ydata()) == pytest.approx(sorted(itertools.chain(*scores.values())))
    assert list(ring.get_xdata()) == [3e-3] and len(data) == 6


# --- curves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "label"),
    [("tokens", "tokens"), ("flops", "training FLOPs"), ("seconds", "seconds of training, without compilation")],
)
def test_curves_draw_each_seed_at_the_chosen_rate_and_their_mean(small, x, label):
    figure, data = figures.curves(small, x)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == (label, "validation bits per byte")
    assert data["id"].n_unique() == 18  # 6 arms, 3 seeds; the rates that were not chosen are not drawn
    assert len(axes.get_lines()) == 18 + 6
    drawn = sorted((tuple(line.get_xdata()), tuple(line.get_ydata())) for line in axes.get_lines() if line.get_alpha())
    stated = [(tuple(rows[x]), tuple(rows["validation_bits_per_byte"])) for _, rows in data.group_by("id")]
    assert drawn == sorted(stated)
    for arm, line in labelled(axes).items():
        means = data.filter((pl.col("arm") == arm) & pl.col("mean").is_not_null()).unique("step").sort("step")
        assert list(line.get_ydata()) == means["mean"].to_list()


def test_seconds_are_tokens_at_the_runs_own_speed(small):
    _, data = figures.curves(small, "seconds")
    assert (data["seconds"] - data["tokens"] / 30_000).abs().max() < 1e-9


def test_a_mean_is_over_the_seeds_that_are_done_and_never_over_fewer(small):
    _, data = figures.curves(small)
    half = data.filter(pl.col("arm") == "half_even")  # its third seed failed at a quarter of the way
    assert half.filter(pl.col("status") == "failed")["mean"].null_count() == 2
    done = half.filter(pl.col("status") == "done")
    for (step,), rows in done.group_by("step"):
        assert rows["mean"].to_list() == [pytest.approx(rows["validation_bits_per_byte"].mean())] * 2, step


def test_the_unit_of_the_score_is_on_the_axes(tmp_path):
    results = load(fake_study.write(tmp_path / "s", [Run("mamba", 0, 1e-3)], score="loss"))
    figure, data = figures.curves(results)
    assert figure.axes[0].get_ylabel() == "validation loss, nats per token"
    assert "validation_loss" in data.columns


# --- every figure of every study --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", figures.FIGURES)
@pytest.mark.parametrize("study", ["small", "large", "recall"])
def test_no_text_lies_on_another_and_all_fit_a_column(study, name, request):
    figure, _ = figures.FIGURES[name](request.getfixturevalue(study))
    assert figure.get_figwidth() == 6.0 and figure.get_figheight() < 8
    assert overlaps(figure) == []


@pytest.mark.parametrize("name", ["response", "curves"])
def test_many_arms_have_axes_of_their_own_on_one_scale(large, name):
    figure, _ = figures.FIGURES[name](large)
    assert [axes.get_title(loc="left") for axes in figure.axes] == large.arms
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1


def test_the_footer_says_which_runs_a_figure_shows(small):
    figure, _ = figures.placement(small)
    text = figure.get_supxlabel()
    assert text.startswith("study quick: 22 of 24 runs done, runs ") and len(text.split()[-1]) == 8


@pytest.mark.parametrize("status", ["no runs", "queued", "stopped", "diverged", "failed", "done"])
@pytest.mark.parametrize("name", figures.FIGURES)
def test_studies_with_little_in_them_are_drawn_too(tmp_path, name, status):
    runs = [] if status == "no runs" else [Run("mamba", 0, 1e-3, status=status)]
    figure, _ = figures.FIGURES[name](load(fake_study.write(tmp_path / "s", runs)))
    figure.draw_without_rendering()


def test_saved_figures_are_the_same_bytes_again(tmp_path, small):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        figures.save(small, folder)
    names = {f"{name}.{end}" for name in figures.FIGURES for end in ("png", "csv")}
    assert {path.name for path in folders[0].iterdir()} == names
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    table = pl.read_csv(folders[0] / "verdicts.csv")
    assert table["test"].to_list() == small.table()["test"].to_list()


# --- ticks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(1, 1e9), (15e3, 31e3), (1e11, 1.2e12), (2e-4, 6e-4), (100, 130)])
@pytest.mark.parametrize("most", [3, 6])
def test_round_numbers_are_a_few_within_the_range(low, high, most):
    ticks = drawing.round_numbers(low, high, most)
    assert 2 <= len(ticks) <= most and ticks == sorted(set(ticks))
    assert all(low <= tick <= high for tick in ticks)


def test_a_long_name_is_cut_in_its_middle():
    assert drawing.shortened("mamba 3:1 even", 20) == "mamba 3:1 even"
    cut = drawing.shortened("a very long name of an arm, even", 16)
    assert len(cut) == 16 and cut.startswith("a very") and cut.endswith("even")
