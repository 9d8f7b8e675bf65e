"""The border: plain values become a checked Trial, and what can change its result is its identity."""

import copy

import pytest

from experiments.config import trial_from
from experiments.identity import group_id, run_id, trial_plain
from hybrid.accounting import parameters
from hybrid.validation import ConfigError

VALUES = {
    "model": {"pattern": "M-A-", "d_model": 32, "n_heads": 2},
    "data": {"source": "stdlib", "seq_len": 64, "batch_size": 4},
    "optimizer": {"learning_rate": 1e-3},
    "train": {"steps": 10},
    "evaluate": {"every": 5},
    "checkpoint": {"every": 5},
}


def trial(**changes):
    values = copy.deepcopy(VALUES)
    for field, value in changes.items():
        group, _, name = field.partition("__")
        if name:
            values[group][name] = value
        else:
            values[group] = value
    return trial_from(values)


def test_a_trial_survives_json():
    made = trial(model__symbols={"a": {"kind": "A", "n_kv_heads": 1}}, model__pattern="M-a-")
    assert trial_from(trial_plain(made)) == made


def test_vocabulary_and_filter_length_come_from_the_data():
    model = trial(model__pattern="H-").model
    assert (model.vocab_size, model.hyena.filter_length) == (257, 64)


def test_fields_of_kinds_that_the_pattern_does_not_have_are_no_identity():
    assert run_id(trial(model__hyena={"order": 3}), "f") == run_id(trial(), "f")
    assert run_id(trial(model__mamba={"d_state": 4}), "f") != run_id(trial(), "f")


@pytest.mark.parametrize(
    "field", ["arm", "study", "tracking", "checkpoint__every", "model__scan_layers", "train__population"]
)
def test_what_cannot_change_the_result_is_no_identity(field):
    value = {
        "arm": "x", "study": {"seeds": 5}, "tracking": {"mode": "off"}, "checkpoint__every": 2,
        "model__scan_layers": True, "train__population": 3,
    }[field]  # fmt: skip
    assert run_id(trial(**{field: value}), "f") == run_id(trial(), "f")


def test_seed_data_and_fingerprint_are_identity():
    ids = {
        run_id(trial(), "f"), run_id(trial(seed=1), "f"), run_id(trial(), "g"), run_id(trial(data__seq_len=32), "f"),
        run_id(trial(optimizer__learning_rate=2e-3), "f"),
    }  # fmt: skip
    assert len(ids) == 5


def test_trials_that_differ_in_values_share_a_program_and_others_do_not():
    base = group_id(trial(), "f")
    values = {
        "optimizer": {"learning_rate": 1.0, "b1": 0.5, "b2": 0.5, "eps": 1e-3, "clip_norm": 2.0, "final_fraction": 0.5},
        "train": {"steps": 30, "log_every": 3, "population": 4},
        "evaluate": {"every": 2, "sequences": 8},
        "data": {**VALUES["data"], "source": "shakespeare", "split_seed": 3},
    }
    for group, fields in values.items():
        assert group_id(trial(**{group: fields}), "g") == base, group
    rates = [group_id(trial(model__dropout=rate), "f") for rate in (0.0, 0.1, 0.3)]
    assert rates[0] == base != rates[1] == rates[2], "a rate of 0 draws no random numbers: a program of its own"
    for group, fields in {
        "optimizer": {"learning_rate": 1e-3, "clip_norm": None},
        "data": {**VALUES["data"], "batch_size": 8},
        "model": {**VALUES["model"], "d_model": 64},
    }.items():
        assert group_id(trial(**{group: fields}), "f") != base, group
    assert (
        group_id(trial(seed=3, optimizer={"learning_rate": 1.0, "weight_decay": 0.0, "warmup_steps": 2}), "f") == base
    )
    assert group_id(trial(optimizer={"learning_rate": 1e-3, "schedule": "wsd"}), "f") != base
    assert group_id(trial(model__scan_layers=True), "f") != base


@pytest.mark.parametrize("pattern", ["(A-)4", "(M-)4", "(H-)4", "M-M-A-M-"])
@pytest.mark.parametrize("by", ["d_ff", "d_model"])
def test_parameters_are_matched_within_three_percent(pattern, by):
    match = {"parameters": 400_000, "by": by, "multiple": 4}
    model = {"pattern": pattern, "n_heads": 4, "positions": "none", "match": match}
    if by == "d_ff":
        model["d_model"] = 64
    else:
        model["d_ff"] = 256
    assert parameters(trial(model=model).model).total == pytest.approx(400_000, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model__match": {"parameters": 1000}}, "model.match.parameters"),
        ({"data__packing": "documents", "model__pattern": "H-"}, "data.packing"),
        ({"data__seq_len": 128, "model__pattern": "H-", "model__hyena": {"filter_length": 64}}, "data.seq_len"),
        ({"optimizer__accumulate": 3}, "optimizer.accumulate"),
        ({"optimizer__warmup_steps": 11}, "optimizer.warmup_steps"),
        ({"model__mixers": 4}, "model.mixers"),
        ({"mesh": {"data": 3}}, "data.batch_size"),
        ({"mesh": {"data": 2}, "train__population": 2}, "train.population"),
        ({"seed": 2**32}, "seed"),
    ],
)
def test_conditions_over_several_groups_name_their_field(changes, field):
    with pytest.raises(ConfigError) as error:
        trial(**changes)
    assert error.value.field == field
