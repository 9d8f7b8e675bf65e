"""Rows of every task against its definition, on thousands of rows made in one compiled call a task.

What a lookup table of tokens can know is held to the chance level that the task states: a task that it solves would say
nothing about a model.
"""

from __future__ import annotations

import collections
import functools

import jax
import numpy as np
import pytest

from experiments.data.synthetic import TASKS
from experiments.data.synthetic.rows import key_of
from hybrid.testing.subject import compiled

ROWS = 3000
LENGTHS = {
    "mqar": 64, "mad-in-context-recall": 32, "mad-noisy-recall": 32, "mad-fuzzy-recall": 48,
    "mad-selective-copying": 64, "mad-memorization": 32, "mad-compression": 16, "associative-recall": 42,
    "h3-induction-heads": 31, "selective-copying": 64, "induction-heads": 32, "few-shot": 90, "needle": 64,
    "parity": 16, "cumulative-parity": 16, "majority": 17,
}  # fmt: skip
FIELDS = {"mqar": {"vocab_size": 64, "num_kv_pairs": 4}, "needle": {"needles": 2, "digits": 3}}


@functools.cache
def config_of(name):
    return TASKS[name].config(**FIELDS.get(name, {}))


@functools.cache
def rows_of(name, training=False, count=ROWS, stream=0, **fields):
    """The rows of a task as numpy arrays: (N, L), (N, K), (N, K); positions filled in where every one has a label."""
    task, config = TASKS[name], config_of(name)
    numbers = np.zeros((count, 4), np.uint32)
    numbers[:, 1], numbers[:, 3] = stream, np.arange(count)
    make = compiled(jax.vmap(lambda row: task.row(config, LENGTHS[name], key_of(row), training)))
    made = {key: np.asarray(value) for key, value in make(numbers).items()}
    positions = made.get("label_positions", np.broadcast_to(np.arange(LENGTHS[name]), made["tokens"].shape))
    return made["tokens"], positions, made["labels"]


@pytest.mark.parametrize("name", TASKS)
def test_rows_have_the_length_and_the_vocabulary_that_they_say(name):
    task, config = TASKS[name], config_of(name)
    task.check(config, LENGTHS[name])
    tokens, positions, labels = rows_of(name)
    assert tokens.shape == (ROWS, LENGTHS[name])
    assert positions.shape == labels.shape
    assert tokens.min() >= 0 and tokens.max() < task.vocab_size(config)
    assert labels.min() >= -1 and labels.max() < task.vocab_size(config)
    assert positions.min() >= 0 and positions.max() < LENGTHS[name]
    assert (labels != -1).any(1).mean() > 0.5
    assert len(np.unique(tokens, axis=0)) > (0.9 * ROWS if task.vocab_size(config) > 2 else 0.02 * ROWS)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "mad-memorization"])
def test_a_table_of_tokens_is_no_better_than_chance(name):
    """The most frequent label of the token at the position and the one before it, learned on half of the rows."""
    tokens, positions, labels = rows_of(name)
    if name == "mad-compression":  # a position sees the whole row there; the last one's token says nothing
        assert (tokens[:, -1] == config_of(name).vocab_size - 1).all()
        return
    before = np.concatenate([np.full((ROWS, 1), -1), tokens[:, :-1]], 1)
    seen = np.take_along_axis(tokens, positions, 1), np.take_along_axis(before, positions, 1)
    half, table = ROWS // 2, collections.defaultdict(collections.Counter)
    for *words, label in zip(*(part[:half].ravel() for part in (*seen, labels)), strict=True):
        if label != -1:
            table[tuple(words)][label] += 1
    best = {words: counts.most_common(1)[0][0] for words, counts in table.items()}
    right = total = 0
    for *words, label in zip(*(part[half:].ravel() for part in (*seen, labels)), strict=True):
        if label != -1:
            right, total = right + (best.get(tuple(words)) == label), total + 1
    chance = TASKS[name].chance(config_of(name), LENGTHS[name])
    assert right / total < chance + 0.04 + 2 / total**0.5, (right / total, chance)


# --- the mechanism of each --------------------------------------------------------------------------------------------


def test_mqar_lists_pairs_and_asks_each_key_once():
    tokens, positions, labels = rows_of("mqar")
    keys, values = tokens[:, 0:8:2], tokens[:, 1:8:2]
    assert keys.min() >= 1 and keys.max() < 32 <= values.min()
    assert all(len(set(row)) == 4 for row in keys) and all(len(set(row)) == 4 for row in values)
    asked = np.take_along_axis(tokens, positions, 1)
    np.testing.assert_array_equal(np.sort(asked, 1), np.sort(keys, 1))
    found = (asked[:, :, None] == keys[:, None]).argmax(-1)
    np.testing.assert_array_equal(np.take_along_axis(values, found, 1), labels)
    assert (positions % 2 == 0).all() and positions.min() == 8 and positions.max() < 64
    assert (np.diff(positions, axis=1) > 0).all()
    assert (tokens[:, 8:] != 0).sum() == 4 * ROWS  # nothing else than the four keys


def test_mqar_gaps_follow_the_power_law():
    """The first draw without replacement has p(g) ~ (g + 1)^(a - 1), and any key may be the first of the list."""
    tokens, positions, _ = rows_of("mqar")
    first = np.take_along_axis(
        positions, (np.take_along_axis(tokens, positions, 1) == tokens[:, :1]).argmax(1)[:, None], 1
    )
    share = np.bincount((first[:, 0] - 8) // 2, minlength=28) / ROWS
    p = np.arange(1, 29) ** (0.01 - 1)
    p /= p.sum()
    assert abs(share[0] - p[0]) < 0.03, (share[0], p[0])  # p = 0.25
    assert abs(share[:4].sum() - p[:4].sum()) < 0.04
    counts = np.bincount(tokens[:, 0], minlength=32)[1:]
    assert counts.min() > 0.5 * ROWS / 31 and counts.max() < 1.5 * ROWS / 31


def test_random_fillers_may_be_keys():
    task, config = TASKS["mqar"], TASKS["mqar"].config(vocab_size=64, fillers="random")
    make = compiled(jax.vmap(lambda key: task.row(config, 64, key, True)))
    made = make(jax.random.split(jax.random.key(0), 500))
    tokens, positions = np.asarray(made["tokens"]), np.asarray(made["label_positions"])
    fillers = np.delete(tokens[0], [*range(8), *positions[0]])
    assert fillers.max() > 31 and len(np.unique(tokens)) == 64
    again = [
        (np.isin(np.delete(row, [*range(8), *at]), row[0:8:2])).any() for row, at in zip(tokens, positions, strict=True)
    ]
    assert np.mean(again) > 0.5


@pytest.mark.parametrize("name", ["mad-in-context-recall", "mad-noisy-recall"])
def test_recall_asks_for_keys_that_were_there_before_and_for_no_others(name):
    tokens, _, labels = rows_of(name)
    keys, values, n_keys = tokens[:, 0::2], tokens[:, 1::2], 8
    noise = keys >= 16
    for row in range(200):
        known = {}
        for pair, key in enumerate(keys[row]):
            if noise[row, pair]:
                assert labels[row, pair] == -1 and values[row, pair] >= 16
                continue
            assert key < n_keys <= values[row, pair] < 16
            assert labels[row, pair] == (known.get(key, -1))
            assert known.setdefault(key, values[row, pair]) == values[row, pair]
        assert labels[row, -1] != -1  # the last pair always comes again
    assert abs(noise[:, :-1].mean() - (0.2 * 14 / 15 if name == "mad-noisy-recall" else 0)) < 0.02
    trained, _, following = rows_of(name, training=True, count=50)
    np.testing.assert_array_equal(following[:, :-1], trained[:, 1:])


def test_fuzzy_recall_maps_motifs_and_shows_the_asked_one_before():
    tokens, _, labels = rows_of("mad-fuzzy-recall")
    scored = 0
    for row in range(300):
        text = [int(token) for token in tokens[row] if token != 15]  # padding stands before
        offset, at, known, asked = 48 - len(text), 0, {}, {}
        while at < len(text):
            key, at = tuple(text[at : at + 3]), at + 3
            assert len(set(key)) == 3 and max(key) < 7
            start = at
            while at < len(text) and text[at] >= 7:
                at += 1
            value = tuple(text[start:at])
            if at == len(text):  # the last token of the last value is no input, and one may be all of it
                assert known[key][: len(value)] == value
                for place, token in enumerate(known[key]):
                    asked[start + place - 1] = token
                break
            assert 1 <= len(value) <= 3 and len(set(value)) == len(value)
            if key in known:
                asked |= {start + place - 1: token for place, token in enumerate(value)}
            assert known.setdefault(key, value) == value
        there = {int(at) - offset: int(labels[row, at]) for at in np.flatnonzero(labels[row] != -1)}
        assert there == asked
        scored += len(there)
    assert scored > 300
    sizes = rows_of("mad-fuzzy-recall", training=True, count=400)[0]
    single = ((sizes[:, 1:-1] < 7) & (sizes[:, :-2] >= 7) & (sizes[:, 2:] >= 7) & (sizes[:, 2:] < 15)).sum()
    assert single > 400  # in training keys of one token too


@pytest.mark.parametrize("name", ["mad-selective-copying", "selective-copying"])
def test_selective_copying_asks_for_the_data_in_their_order(name):
    tokens, positions, labels = rows_of(name)
    noise = 14 if name.startswith("mad") else 0
    read = tokens[:, :47] if name.startswith("mad") else tokens[:, :48]
    for row, wanted in zip(read, labels, strict=True):
        np.testing.assert_array_equal(row[row != noise], wanted)
    np.testing.assert_array_equal(positions, np.broadcast_to(48 + np.arange(16), (ROWS, 16)))
    counts = np.bincount(labels.ravel(), minlength=16)
    assert (counts > 0).sum() == 14 and counts[counts > 0].min() > 0.9 * labels.size / 14
    if name.startswith("mad"):
        assert (tokens[:, 47] == 15).all() and (tokens[:, 48:] == noise).all() and (tokens[:, 46] != noise).all()
    else:
        where = (read != noise).mean(0)
        assert abs(where - 16 / 48).max() < 0.05  # any place is as likely


def test_memorization_has_one_map_that_no_row_shows():
    tokens, positions, labels = rows_of("mad-memorization")
    keys = np.take_along_axis(tokens, positions - 1, 1)
    table = {int(key): set(labels[keys == key].tolist()) for key in np.unique(keys)}
    assert len(table) == 127 and all(len(values) == 1 for values in table.values())
    assert len(set.union(*table.values())) == 127  # different keys have different values
    assert (tokens[:, 1::2] == 255).all() and labels.min() >= 127 > keys.max()


def test_compression_asks_for_all_that_it_read():
    tokens, _, labels = rows_of("mad-compression")
    np.testing.assert_array_equal(tokens, labels)
    assert TASKS["mad-compression"].readout == "last"


def test_associative_recall_asks_for_a_key_that_was_there():
    tokens, positions, labels = rows_of("associative-recall")
    assert (tokens[:, 40] == 18).all() and (positions == 41).all()
    for row, label in zip(tokens[:500], labels[:500, 0], strict=True):
        values = row[1:40:2][row[0:40:2] == row[41]]
        assert values.size and (values == label).all() and row[41] < 9 <= label


@pytest.mark.parametrize("name", ["h3-induction-heads", "induction-heads"])
def test_induction_heads_copy_what_came_after_the_sign(name):
    tokens, positions, labels = rows_of(name)
    sign, length = (18 if name.startswith("h3") else 15), LENGTHS[name]
    assert (positions == length - 1).all() and (tokens[:, -1] == sign).all()
    assert ((tokens == sign).sum(1) == 2).all()
    first = (tokens == sign).argmax(1)
    np.testing.assert_array_equal(tokens[np.arange(ROWS), first + 1], labels[:, 0])
    shares = np.bincount(first, minlength=length)[: length - 2] / ROWS
    assert shares.min() > 0.4 / (length - 2) and first.max() == length - 3


def test_few_shot_maps_change_with_the_prompt_and_are_shown():
    tokens, positions, labels = rows_of("few-shot")
    pairs = collections.Counter()
    for row, label in zip(tokens[:500], labels[:500, 0], strict=True):
        content = row[row.nonzero()[0][0] :]
        assert len(content) == 17 * 5 - 2
        lines = np.append(content, [label, 2]).reshape(17, 5)
        assert (lines[:, 2] == 1).all() and (lines[:, 4] == 2).all()
        shown = {tuple(line[:2].tolist()): int(line[3]) for line in lines[:-1]}
        assert len(shown) == len(set(shown.values())) == 4
        assert all(shown[tuple(line[:2].tolist())] == line[3] for line in lines)
        pairs.update(shown.items())
    assert max(pairs.values()) < 5  # of 2000: no map stays
    words = np.bincount(labels[:, 0], minlength=19)[3:] / ROWS
    assert words.shape == (16,) and abs(words - 1 / 16).max() < 0.02
    assert (positions == LENGTHS["few-shot"] - 1).all()


def test_valid_answers_are_label_words():
    task = TASKS["few-shot"]
    scores = task.scores(task.config(), np.array([[3], [18], [19], [0]]), np.array([[3], [4], [5], [6]]))
    assert scores == {"accuracy": 0.25, "exact": 0.25, "valid": 0.5}


def test_the_needle_that_is_asked_for_stands_in_the_hay():
    tokens, positions, labels = rows_of("needle")
    assert (positions == 61 + np.arange(3)).all()
    where = []
    for row, wanted in zip(tokens, labels, strict=True):
        key = row[61]
        (at,) = np.flatnonzero(row[:61] == key)
        np.testing.assert_array_equal(row[at + 1 : at + 4], wanted)
        np.testing.assert_array_equal(row[62:], wanted[:2])
        assert ((row[:61] >= 10) & (row[:61] < 18)).sum() == 2 and (row[:61] < 10).sum() == 6
        where.append(at)
    assert np.std(np.bincount(np.array(where) // 4, minlength=15)[:14]) < 0.3 * ROWS / 15


def test_depth_places_the_needle():
    task, depths = TASKS["needle"], (0.0, 0.5, 1.0)
    configs = [task.config(depth=depth, digits=3) for depth in depths]
    make = compiled(lambda key: [task.row(config, 64, key, False)["tokens"] for config in configs])
    rows = [np.asarray(row) for row in make(jax.random.key(3))]
    assert [int((row[:61] == row[61]).argmax()) for row in rows] == [0, 28, 57]


def test_bits():
    tokens, _, labels = rows_of("parity")
    np.testing.assert_array_equal(tokens.sum(1) % 2, labels[:, 0])
    tokens, _, labels = rows_of("cumulative-parity")
    np.testing.assert_array_equal(tokens.cumsum(1) % 2, labels)
    tokens, _, labels = rows_of("majority")
    np.testing.assert_array_equal(tokens.sum(1) > 8, labels[:, 0] == 1)
    assert abs(tokens.mean() - 0.5) < 0.01


def test_macro_accuracy_is_the_mean_over_classes():
    task = TASKS["mad-in-context-recall"]
    answers, labels = np.array([[8, 8, 8, 9], [8, 8, 10, 0]]), np.array([[8, 8, 8, 8], [9, 8, 9, -1]])
    scores = task.scores(None, answers, labels)
    assert scores["accuracy"] == pytest.approx(4 / 7)
    assert scores["macro_accuracy"] == pytest.approx((4 / 5 + 0 + 0) / 3)  # 10 was never asked for, and was answered
    assert scores["exact"] == 0
