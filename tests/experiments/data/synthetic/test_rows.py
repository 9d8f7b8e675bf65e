"""Which rows a step reads: fresh or of a fixed set, in which order, and never those of another split. Bad input."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import data
from experiments.data.config import DataConfig
from experiments.data.synthetic.rows import epoch_steps, made, tokens_read
from hybrid.testing.subject import compiled
from hybrid.validation import ConfigError, build, plain

TASK = {"vocab_size": 64, "num_kv_pairs": 2}


def config_of(**fields):
    return DataConfig(**{"source": "mqar", "seq_len": 16, "batch_size": 4, "task": TASK, **fields})


def load(seed=0, sequences=6, **fields):
    return data.load(config_of(**fields), seed=seed, evaluation_sequences=sequences)


def numbers(data_of, steps, name="rows"):
    return np.concatenate([data_of.batch(step)[name] for step in steps])


def test_fresh_rows_never_come_twice_and_differ_by_seed():
    rows = numbers(load(), range(50))
    assert len(np.unique(rows, axis=0)) == 200
    assert not (rows == numbers(load(seed=1), range(50))).all(1).any()


def test_a_fixed_set_is_read_once_an_epoch_in_another_order():
    one, other = load(examples=10), load(seed=1, examples=10)
    first, second = numbers(one, range(5))[:10, 3], numbers(one, range(5))[10:, 3]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert first.tolist() != numbers(other, range(5))[:10, 3].tolist()
    assert (np.unique(numbers(one, range(5)), axis=0) == np.unique(numbers(other, range(5)), axis=0)).all()
    fixed = load(examples=10, order="fixed")
    assert numbers(fixed, range(5))[:, 3].tolist() == [*range(10), *range(10)]


def test_a_batch_is_a_function_of_its_step_and_its_parts_make_it_up():
    one = load(examples=10)
    with one.batches(3) as batches:
        np.testing.assert_array_equal(next(batches)["rows"], one.batch(3)["rows"])
        np.testing.assert_array_equal(next(batches)["rows"], one.batch(4)["rows"])
    halves = [one.batch(3, (i, 2))["rows"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), one.batch(3)["rows"])


def test_splits_and_parts_have_no_row_in_common():
    one = load(sequences=400, mix=[{"examples": 400}, {"examples": 400, "num_kv_pairs": 4}], slices={"more": {}})
    streams = {
        "train": numbers(one, range(100), "rows:mix 0"), "next": numbers(one, range(100, 200), "rows:mix 1"),
        "validation": np.concatenate([b["rows"] for b in one.evaluation("validation")]),
        "test": np.concatenate([b["rows"] for b in one.evaluation("test")]),
    }  # fmt: skip
    make = compiled(lambda rows: made(one.config, {"rows": rows}, True)["tokens"])
    rows = {name: {tuple(row) for row in np.asarray(make(numbered)).tolist()} for name, numbered in streams.items()}
    names = list(rows)
    assert all(len(rows[name]) > 390 for name in names)
    assert not [(a, b) for i, a in enumerate(names) for b in names[:i] if len(rows[a] & rows[b]) > 1]
    assert one.evaluation("slices/more")[0]["rows:more"].tolist() == one.evaluation("test")[0]["rows"].tolist()


def test_parts_of_a_mix_follow_each_other():
    one = load(mix=[{"examples": 8}, {"seq_len": 32, "num_kv_pairs": 4, "examples": 5}], order="fixed")
    assert epoch_steps(one.config) == 4
    assert [tokens_read(one.config, steps) for steps in (1, 2, 3, 4, 5)] == [64, 128, 256, 384, 448]
    names = [next(iter(one.batch(step))) for step in range(8)]
    assert names == 2 * ["rows:mix 0", "rows:mix 0", "rows:mix 1", "rows:mix 1"]
    assert one.batch(3)["rows:mix 1"][:, 3].tolist() == [4, 0, 1, 2]  # filled up from the beginning
    form = jax.eval_shape(lambda rows: made(one.config, {"rows:mix 1": rows}, True), one.batch(2)["rows:mix 1"])
    assert form["tokens"].shape == (4, 32) and form["labels"].shape == (4, 4)


def test_long_slices_have_smaller_batches_of_which_the_wanted_rows_count():
    one = load(sequences=6, slices={"long": {"seq_len": 64, "sequences": 3}})
    assert [b["rows:long"].shape for b in one.evaluation("slices/long")] == 3 * [(1, 4)]
    assert (one.wanted("slices/long"), one.wanted("test")) == (3, 6)
    assert [b["rows"].shape for b in one.evaluation("test")] == 2 * [(4, 4)]


def test_the_config_comes_back_from_its_plain_form():
    config = config_of(slices={"a": {"num_kv_pairs": 4}}, mix=[{"examples": 8, "fillers": "random"}])
    again = build(DataConfig, plain(config))
    assert again == config and hash(again) == hash(config)
    assert again.slices[0].task.vocab_size == 64 and again.slices[0].task.num_kv_pairs == 4
    assert data.fingerprint(config) == data.fingerprint(config_of())
    assert data.fingerprint(config) != data.fingerprint(DataConfig("parity", seq_len=16, batch_size=4))


BAD = [
    ({"task": {"num_kv_pair": 2}}, "task.num_kv_pair: unknown field; did you mean 'num_kv_pairs'?"),
    ({"task": {"num_kv_pairs": 0}}, "task.num_kv_pairs: 0 is not allowed"),
    ({"task": {"fillers": "blanks"}}, "task.fillers: 'blanks' is not allowed; did you mean 'blank'?"),
    ({"task": {"num_kv_pairs": 5}}, "task.num_kv_pairs: 5 is not allowed; pairs and queries need 4 tokens each"),
    ({"task": 4}, "task: 4 is not allowed; must be a group of fields"),
    ({"seq_len": 15}, "seq_len: 15 is not allowed; must be even"),
    ({"objective": "masked"}, "objective: 'masked' is not allowed; 'mqar' is a synthetic task"),
    ({"tokenizer": "bpe"}, "tokenizer: 'bpe' is not allowed"),
    ({"slices": {"a": {"pairs": 2}}}, "slices.a.pairs: unknown field"),
    ({"slices": {"a": {"num_kv_pairs": 9}}}, "slices.a.task.num_kv_pairs: 9 is not allowed"),
    ({"slices": {"a": {"vocab_size": 128}}}, "slices.a.task: has 128 tokens, data.task 64"),
    ({"slices": {"a/b": {}}}, "slices: 'a/b' is not allowed"),
    ({"slices": 3}, "slices: 3 is not allowed"),
    ({"mix": [{"num_kv_pairs": 2}]}, "mix[0].examples: must be given"),
    ({"mix": [{"examples": 4}], "examples": 4}, "examples: 4 is not allowed beside mix"),
    (
        {"source": "shakespeare"},
        "task: {'vocab_size': 64, 'num_kv_pairs': 2} is not allowed; belongs to synthetic tasks",
    ),
    ({"source": "shakespeare", "task": None, "examples": 3}, "examples: 3 is not allowed; belongs to synthetic tasks"),
]


@pytest.mark.parametrize(
    ("fields", "error"), BAD, ids=[error.split(" ")[0] + str(i) for i, (_, error) in enumerate(BAD)]
)
def test_bad_input_is_refused_in_one_line(fields, error):
    with pytest.raises(ConfigError) as refused:
        config_of(**fields)
    assert str(refused.value).startswith(error), refused.value
    assert "\n" not in str(refused.value)


def test_a_name_that_is_no_source_is_told_the_nearest_task():
    with pytest.raises(ConfigError, match=r"data.source: 'mqaar' is not a known source; did you mean 'mqar'"):
        data.check(DataConfig("mqaar", seq_len=16, batch_size=4))


def test_configs_of_tasks_need_no_jax():
    code = (
        "import sys; from experiments import data; from experiments.data.config import DataConfig;"
        "c = DataConfig('needle', seq_len=64, batch_size=4); data.check(c); data.fingerprint(c); data.vocab_size(c);"
        "data.prepare(c); assert not {'jax', 'numpy', 'grain'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
