"""Steps to a threshold against a published data set and by hand."""

import math

import pytest

from experiments.survival import Steps, logrank, steps_to, survival

# Remission of leukaemia in weeks (Freireich et al. 1963; `gehan` of R's MASS). R's survfit: median 23 with 6-MP, 8 on
# placebo; S(6) = 0.857, S(10) = 0.753, S(23) = 0.448. R's survdiff: chi squared = 16.8, p = 4e-05.
MP = [(6, 0), (6, 0), (6, 0), (6, 1), (7, 0), (9, 1), (10, 0), (10, 1), (11, 1), (13, 0), (16, 0), (17, 1), (19, 1),
      (20, 1), (22, 0), (23, 0), (25, 1), (32, 1), (32, 1), (34, 1), (35, 1)]  # fmt: skip
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def test_the_curve_is_kaplan_and_meiers():
    found = survival([Steps(week, bool(censored)) for week, censored in MP])
    share = dict(zip(found.steps, found.waiting, strict=True))
    assert (found.n, found.met, found.median) == (21, 9, 23)
    assert [share[week] for week in (6, 10, 23)] == pytest.approx([0.857, 0.753, 0.448], abs=5e-4)
    assert found.low == 13 and found.high is None
    assert survival([Steps(week, False) for week in PLACEBO]).median == 8


def test_the_comparison_is_the_log_rank_test():
    ours = [Steps(week, bool(censored)) for week, censored in MP]
    placebo = [Steps(week, False) for week in PLACEBO]
    z = math.sqrt(16.793)
    assert logrank(ours, placebo) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)
    assert logrank(ours, ours) == pytest.approx(1)
    assert logrank([Steps(9, True)] * 3, [Steps(9, True)] * 3) == logrank([], placebo) == 1.0


def test_runs_that_all_met_the_threshold_at_one_step_do_not_differ():
    assert logrank([Steps(50, False)] * 3, [Steps(50, False)] * 3) == 1.0


def test_a_run_that_never_gets_there_is_censored_at_its_last_step():
    steps = [10, 20, 30]
    assert steps_to(steps, [0.2, 0.95, 0.4], 0.9, smaller_is_better=False) == Steps(20, False)
    assert steps_to(steps, [0.2, 0.3, 0.4], 0.9, smaller_is_better=False) == Steps(30, True)
    assert steps_to(steps, [3.0, 2.0, 1.0], 2.0, smaller_is_better=True) == Steps(20, False)
    with pytest.raises(ValueError, match="curve"):
        steps_to([], [], 0.9, smaller_is_better=False)


def test_without_half_of_the_runs_there_is_no_median():
    found = survival([Steps(10, False), Steps(40, True), Steps(40, True)])
    assert (found.n, found.met, found.median) == (3, 1, None)
    assert found.waiting == pytest.approx([2 / 3])
    assert survival([Steps(40, True)] * 3).waiting == ()
