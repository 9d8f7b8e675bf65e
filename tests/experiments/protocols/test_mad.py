"""MAD: six tasks, the changes to each, and how they are trained."""

from __future__ import annotations

import pytest

from experiments.identity import identity
from experiments.protocols import MAD_ROWS, MAD_SETTINGS
from tests.experiments.protocols.trials import trial


@pytest.mark.parametrize("source", MAD_ROWS)
def test_mad(source):
    one = trial("mad", source, "A-A-")
    assert (one.optimizer.schedule, one.study.score, one.study.select_on) == ("constant", "macro_accuracy", "test")
    assert one.train.steps == 200 * -(-one.data.examples // 128)
    assert (one.train.stop_at, one.evaluate.sequences, one.data.batch_size) == (0.999, 1280, 128)
    for setting in MAD_SETTINGS[source]:
        fields = {}
        for name, value in setting.items():
            group = fields.setdefault("data", {"source": source})
            *groups, leaf = name.split(".")[1:]
            for inner in groups:
                group = group.setdefault(inner, {})
            group[leaf] = value
        changed = trial("mad", source, "A-A-", **fields)
        assert bool(setting) == (identity(changed, "x")["data"] != identity(one, "x")["data"])
