"""This project's own protocol."""

from __future__ import annotations

from experiments.data.synthetic import TASKS
from tests.experiments.protocols.trials import trial


def test_ours_takes_every_task_and_chooses_on_validation():
    for source in TASKS:
        length = 129 if source == "majority" else 128
        one = trial("hybrid", source, model={"d_model": 16, "n_heads": 1}, data={"source": source, "seq_len": length})
        assert (one.study.select_on, one.study.seeds) == ("validation", 3)
