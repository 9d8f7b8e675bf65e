"""Masked tokens and spans through the whole way: from a folder of texts to batches."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.data import fingerprint, load, prepare, vocab_size, vocabulary
from experiments.data.config import DataConfig
from experiments.data.objectives import OBJECTIVES
from experiments.data.spans import fill_in, lengths
from hybrid.validation import ConfigError

SPAN = {"objective": "span", "seq_len": 20}
MASKED = {"objective": "masked", "seq_len": 20}


def windows_of(data, batch_rows: np.ndarray) -> list[int]:
    """Which window of the training stream each row of raw tokens is."""
    width = OBJECTIVES[data.config.objective].width(data.config)
    whole = data.streams["train"][: len(data.streams["train"]) // width * width].reshape(-1, width)
    return [int(np.flatnonzero((whole == row).all(1))[0]) for row in batch_rows]


def restored(batch) -> np.ndarray:
    tokens = batch["tokens"].copy()
    there = batch["labels"] != -1
    for row in range(len(tokens)):
        tokens[row, batch["label_positions"][row][there[row]]] = batch["labels"][row][there[row]]
    return tokens


def test_masked_rows_are_windows_of_the_stream_and_logits_are_asked_for_at_chosen_places_alone(config) -> None:
    data = load(config(**MASKED), seed=3, evaluation_sequences=5)
    batch = data.batch(0)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "tokens": ((4, 20), np.int32),
        "labels": ((4, 3), np.int32),
        "label_positions": ((4, 3), np.int32),
    }
    assert len(windows_of(data, restored(batch))) == 4
    assert data.vocab_size == 258
    seen = np.concatenate([data.batch(step)["tokens"] for step in range(20)])
    assert (seen == 257).mean() == pytest.approx(0.15 * 0.8, abs=0.03)


def test_static_masks_are_the_same_in_every_epoch_and_dynamic_ones_are_not(config) -> None:
    masks: dict[str, list[list[tuple]]] = {}
    for name, about in {
        "static": {"masking": "static"}, "dynamic": {"masking": "dynamic"}, "three": {"masking": "static", "masks": 3},
    }.items():  # fmt: skip
        data = load(config(**MASKED, batch_size=1, masked=about), seed=3, evaluation_sequences=1)
        count = int(data.steps_per_epoch)
        masks[name] = []
        for epoch in range(4):
            read = [data.batch(step) for step in range(epoch * count, epoch * count + count)]
            masks[name].append(sorted((bytes(one["tokens"]), bytes(one["label_positions"])) for one in read))
    static, dynamic, three = masks["static"], masks["dynamic"], masks["three"]
    assert static[0] == static[1] == static[2]
    assert len(set(dynamic[0]) & set(dynamic[1])) < len(dynamic[0]) / 10
    assert len(set(three[0]) & set(three[1])) < len(three[0]) / 10
    assert three[0] != three[2] != three[1]
    assert three[0] == three[3]


def test_spans_are_cut_from_windows_that_fill_the_encoder(config) -> None:
    data = load(config(**SPAN), seed=3, evaluation_sequences=5)
    about = lengths(20, 0.15, 3.0)
    ids = vocabulary(data.config)
    batch = data.batch(2)
    assert {name: array.shape for name, array in batch.items()} == {
        "tokens": (4, 20),
        "decoder_tokens": (4, about.targets),
        "labels": (4, about.targets),
    }
    np.testing.assert_array_equal(batch["decoder_tokens"][:, 1:], batch["labels"][:, :-1])
    assert (batch["decoder_tokens"][:, 0] == ids.start).all()
    assert (ids.separator, ids.end, ids.start, ids.size) == (256, 257, 258, 259 + about.spans)
    rows = [
        fill_in(batch["tokens"][row], batch["labels"][row], ids.size - 1, ids.end, ids.sentinels) for row in range(4)
    ]
    assert {len(row) for row in rows} == {about.raw}
    assert len(windows_of(data, np.stack(rows))) == 4


def test_an_epoch_of_spans_reads_every_window_once(config) -> None:
    data = load(config(**SPAN, batch_size=1), seed=3, evaluation_sequences=1)
    ids, count = data.ids, int(data.steps_per_epoch)
    read = []
    for step in range(count):
        batch = data.batch(step)
        read.append(fill_in(batch["tokens"][0], batch["labels"][0], ids.size - 1, ids.end, ids.sentinels))
    whole = data.streams["train"].astype(np.int32)
    raw = lengths(20, 0.15, 3.0).raw
    assert sorted(map(bytes, read)) == sorted(bytes(whole[at * raw : at * raw + raw]) for at in range(count))
    assert count == len(whole) // raw


@pytest.mark.parametrize("chosen", [MASKED, SPAN, {**MASKED, "masked": {"masking": "static"}}], ids=str)
def test_a_batch_depends_on_seed_and_step_alone_and_shards_are_its_parts(chosen, config) -> None:
    """What resuming rests on: a run that was cut off asks a fresh process for the steps that are left."""
    first, other = (load(config(**chosen, batch_size=8), seed=3, evaluation_sequences=1) for _ in range(2))
    for step in (1000, 0, 7, 10**9):
        whole = first.batch(step)
        halves = [other.batch(step, shard=(part, 2)) for part in range(2)]
        for name, array in whole.items():
            np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), array)
    different = load(config(**chosen, batch_size=8), seed=4, evaluation_sequences=1).batch(0)
    assert (different["tokens"] != first.batch(0)["tokens"]).any()


@pytest.mark.parametrize("chosen", [MASKED, SPAN], ids=["masked", "span"])
def test_evaluation_is_fixed_for_every_seed_and_fills_its_last_batch_with_unscored_rows(chosen, config) -> None:
    first, other = (load(config(**chosen), seed=seed, evaluation_sequences=6) for seed in (0, 1))
    batches = first.evaluation("test")
    assert len(batches) == 2
    for mine, theirs in zip(batches, other.evaluation("test"), strict=True):
        for name, array in mine.items():
            np.testing.assert_array_equal(array, theirs[name])
    assert (batches[1]["labels"][2:] == -1).all()
    assert (batches[1]["labels"][:2] != -1).any()


def test_masked_documents_keep_their_segments(config) -> None:
    data = load(config(**MASKED, packing="documents"), seed=0, evaluation_sequences=1)
    found = [data.batch(step) for step in range(20)]
    assert any(batch["segment_ids"].max() > 1 for batch in found)
    for batch in found:
        whole = restored(batch)
        opens = whole == 256
        opens[:, 0] = True
        np.testing.assert_array_equal(batch["segment_ids"], np.cumsum(opens, axis=1))
        assert (batch["labels"] != 256).all(), "a separator is never chosen"


def test_objectives_share_the_token_files(config) -> None:
    folder = prepare(config())
    for chosen in (MASKED, SPAN):
        assert prepare(config(**chosen)) == folder
        assert fingerprint(config(**chosen)) == fingerprint(config())
    assert [vocab_size(config(**chosen)) for chosen in ({}, MASKED, SPAN)] == [257, 258, 260]
    assert vocab_size(config(**SPAN, span={"sentinels": 100})) == 359
    data = load(config(**SPAN), seed=0, evaluation_sequences=1)
    assert data.token_bytes.tolist() == [1] * 256 + [0] * 4


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ({"objective": "span", "packing": "documents"}, r"packing: 'documents' is not allowed"),
        ({"objective": "span", "seq_len": 2}, r"seq_len: 2 is not allowed"),
        ({"objective": "span", "seq_len": 512, "span": {"sentinels": 27}}, r"span\.sentinels: 27 .* row has 28 spans"),
        ({"objective": "mask"}, r"objective: 'mask' is not allowed; did you mean 'masked'"),
        ({"objective": "masked", "masked": {"rate": 0.0}}, r"masked\.rate: 0\.0 is not allowed"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_at_the_border(chosen, problem) -> None:
    values = {"source": "stdlib", "seq_len": 64, "batch_size": 4, **chosen}
    with pytest.raises(ConfigError, match=problem):
        DataConfig(**values)
