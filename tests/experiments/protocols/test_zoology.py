"""Zoology: the numbers of figure 2 and of recall against state."""

from __future__ import annotations

from experiments.protocols import PROTOCOLS, STATE_MIX, STATE_SLICES
from tests.experiments.protocols.trials import trial


def test_zoology_figure_2():
    one = trial("zoology-iclr24")
    data, optimizer = one.data, one.optimizer
    assert (data.source, data.seq_len, data.batch_size, data.examples, data.order) == (
        "mqar",
        64,
        512,
        100_000,
        "fixed",
    )
    assert (data.task.vocab_size, data.task.num_kv_pairs, data.task.power_a) == (8192, 4, 0.01)
    assert (one.train.steps, one.train.stop_at, one.evaluate.every) == (64 * 196, 0.99, 196)
    assert (optimizer.schedule, optimizer.decay_on, optimizer.clip_norm) == ("cosine_epochs", "all", None)
    assert (optimizer.b2, optimizer.final_fraction, optimizer.warmup_steps) == (0.999, 0.0, 0)
    assert (one.model.positions, one.model.max_length, one.model.dropout) == ("learned", 64, 0.1)
    assert (one.study.select_on, one.study.score, one.study.seeds) == ("test", "accuracy", 1)
    longer = trial("zoology-iclr24", "mqar", "HH", data={"seq_len": 512, "source": "mqar"})
    assert (longer.data.task.num_kv_pairs, longer.data.batch_size, longer.model.positions) == (64, 128, "none")
    assert [f"{rate:.2e}" for rate in PROTOCOLS["zoology-iclr24"].rates] == [
        "1.00e-04",
        "4.64e-04",
        "2.15e-03",
        "1.00e-02",
    ]


def test_zoology_recall_against_state():
    one = trial("zoology-state", pattern="HA")
    assert [(part.seq_len, part.task.num_kv_pairs, part.examples) for part in one.data.mix] == list(STATE_MIX)
    assert [(each.seq_len, each.task.num_kv_pairs) for each in one.data.slices] == list(STATE_SLICES)
    assert (one.train.steps, one.data.batch_size) == (32 * (391 + 4 * 79), 256)
    assert one.model.hyena.filter_length == 256  # the longest part; slices beyond it are left out
    assert [bool(one.too_long(each.seq_len)) for each in one.data.slices] == 5 * [False] + 2 * [True]
