"""Protocols give what their papers ran, leave alone what a config sets, and are written out."""

from __future__ import annotations

import pytest

from experiments.config import identity, trial_from, trial_plain
from experiments.data.synthetic import TASKS
from experiments.protocols import MAD_ROWS, MAD_SETTINGS, PROTOCOLS, STATE_MIX, STATE_SLICES
from hybrid.validation import ConfigError


def trial(protocol, source=None, pattern="AA", **groups):
    values = {"protocol": protocol, "model": {"pattern": pattern}, **({"data": {"source": source}} if source else {})}
    for name, fields in groups.items():
        values[name] = {**values.get(name, {}), **fields}
    return trial_from(values)


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


def test_h3_and_mamba():
    recall = trial("h3", "associative-recall")
    assert (recall.data.seq_len, recall.data.examples, recall.optimizer.learning_rate) == (42, 5000, 5e-4)
    assert recall.train.steps == 400 * 157 and recall.optimizer.warmup_steps == 6280
    assert (recall.optimizer.schedule, trial("h3", "h3-induction-heads").optimizer.schedule) == ("wsd", "cosine")
    heads, attention = trial("mamba-e1", "induction-heads", "MM"), trial("mamba-e1", pattern="AA", model={"n_heads": 8})
    assert (heads.model.d_model, heads.optimizer.learning_rate) == (64, 1e-3)
    assert (attention.model.d_model, attention.optimizer.learning_rate) == (128, 2e-4)
    assert [each.seq_len for each in heads.data.slices] == [2**n for n in range(6, 21)]
    assert (heads.train.steps, heads.data.batch_size, heads.data.examples) == (25 * 8192, 8, 0)
    copying = trial("mamba-e1", "selective-copying", "MM")
    assert (copying.data.seq_len, copying.train.steps, copying.optimizer.learning_rate) == (4112, 400_000, 1e-4)


def test_ours_takes_every_task_and_chooses_on_validation():
    for source in TASKS:
        length = 129 if source == "majority" else 128
        one = trial("hybrid", source, model={"d_model": 16, "n_heads": 1}, data={"source": source, "seq_len": length})
        assert (one.study.select_on, one.study.seeds) == ("validation", 3)


def test_what_a_config_sets_stays_and_everything_is_written_out():
    one = trial("zoology-iclr24", train={"steps": 100}, optimizer={"learning_rate": 3e-3, "clip_norm": 1.0})
    assert (one.train.steps, one.optimizer.learning_rate, one.optimizer.clip_norm) == (100, 3e-3, 1.0)
    written = trial_plain(one)
    assert written["protocol"] == "zoology-iclr24" and written["optimizer"]["b2"] == 0.999
    assert trial_from(written) == one
    assert identity(trial_from({**written, "protocol": ""}), "x") == identity(one, "x")  # the word changes nothing


def test_words_that_are_no_protocol_and_tasks_that_are_not_its_own_are_refused():
    with pytest.raises(ConfigError, match=r"protocol: 'zoology' is not a known protocol; did you mean 'zoology-state'"):
        trial("zoology")
    with pytest.raises(ConfigError, match=r"data.source: 'parity' is not allowed; mad is about mad-in-context-recall"):
        trial("mad", "parity")
    for protocol in PROTOCOLS.values():
        assert protocol.about and protocol.source and protocol.rates
