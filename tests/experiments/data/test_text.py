from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from experiments.data import Data, check, load, prepare
from experiments.data.config import DataConfig
from experiments.data.objectives import packed_documents
from experiments.data.text import windows
from hybrid.validation import ConfigError


@pytest.fixture
def data(config) -> Data:
    return load(config(), seed=3, evaluation_sequences=5)


def test_labels_are_the_next_tokens_of_windows_of_the_stream(data: Data) -> None:
    stream = data.streams["train"].astype(np.int32)
    parts = {tuple(stream[at : at + 17]) for at in range(0, len(stream) - 16, 16)}
    batch = data.batch(0)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "tokens": ((4, 16), np.int32),
        "labels": ((4, 16), np.int32),
    }
    for tokens, labels in zip(batch["tokens"], batch["labels"], strict=True):
        assert (*tokens, labels[-1]) in parts
        np.testing.assert_array_equal(tokens[1:], labels[:-1])


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order(config) -> None:
    data = load(config(batch_size=1), seed=3, evaluation_sequences=1)
    count = int(data.steps_per_epoch)
    assert count == windows(len(data.streams["train"]), data.config)
    epochs = [[bytes(data.batch(step)["tokens"]) for step in range(at, at + count)] for at in (0, count)]
    whole = data.streams["train"][: count * 16].astype(np.int32).reshape(count, 16)
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(bytes(row) for row in whole)
    assert epochs[0] != epochs[1]


def test_a_batch_depends_on_seed_and_step_alone(config) -> None:
    first, other = (load(config(), seed=3, evaluation_sequences=1) for _ in range(2))
    for step in (1000, 0, 7, 10**9):  # whatever was read before
        for name, array in first.batch(step).items():
            np.testing.assert_array_equal(array, other.batch(step)[name])
    assert (first.batch(0)["tokens"] != first.batch(1)["tokens"]).any()
    assert (first.batch(0)["tokens"] != load(config(), seed=4, evaluation_sequences=1).batch(0)["tokens"]).any()


@pytest.mark.parametrize("packing", ["windows", "documents"])
def test_shards_are_the_parts_of_the_same_batch(packing: str, config) -> None:
    data = load(config(batch_size=8, packing=packing), seed=3, evaluation_sequences=1)
    for step in (0, 5, 123):
        whole = data.batch(step)
        for count in (1, 2, 4, 8):
            parts = [data.batch(step, shard=(index, count)) for index in range(count)]
            for name, array in whole.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
    with pytest.raises(ConfigError, match=r"data\.batch_size: 8 .* divide by 3"):
        data.batch(0, shard=(0, 3))
    for step, shard in [(-1, (0, 1)), (0, (2, 2)), (0, (-1, 2))]:
        with pytest.raises(ValueError, match="out of range"):
            data.batch(step, shard)


def test_another_process_reads_the_same_batches_and_ends_although_its_reader_is_open(config) -> None:
    made = config()
    data = load(made, seed=3, evaluation_sequences=1)
    code = (
        "import hashlib; from experiments.data.config import DataConfig; from experiments.data import load;"
        f"data = load(DataConfig(source='folder', folder={made.folder!r}, seq_len=16, batch_size=4),"
        " seed=3, evaluation_sequences=1);"
        "reader = data.batches();"
        "print(hashlib.sha256(b''.join(next(reader)['tokens'].tobytes() for _ in range(50))).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    here = hashlib.sha256(b"".join(data.batch(step)["tokens"].tobytes() for step in range(50))).hexdigest()
    assert done.stdout.strip() == here, done.stderr
    assert (done.returncode, done.stderr) == (0, "")


def test_the_order_survives_grains_own_workers_and_threads(data: Data) -> None:
    import grain

    dataset = data._parts(1)
    for options in (grain.ReadOptions(num_threads=0, prefetch_buffer_size=0), grain.ReadOptions(num_threads=3)):
        reader = iter(dataset.to_iter_dataset(options))
        for step in range(10):
            np.testing.assert_array_equal(next(reader)["tokens"], data.batch(step)["tokens"])
        reader.close()


@given(
    arrays.arrays(np.int32, st.tuples(st.integers(1, 4), st.integers(2, 12)), elements=st.integers(0, 3)),
)
def test_segments_and_labels_agree_with_counting_documents_one_token_at_a_time(tokens: np.ndarray) -> None:
    separator = 3
    batch = packed_documents(tokens.copy(), separator)
    for row, window in enumerate(tokens):
        segment, segments = 1, []
        for position, token in enumerate(window):
            segment += bool(position and token == separator)
            segments.append(segment)
        assert batch["segment_ids"][row].tolist() == segments[:-1]
        labels = [int(window[i + 1]) if segments[i] == segments[i + 1] else -1 for i in range(len(window) - 1)]
        assert batch["labels"][row].tolist() == labels
        assert batch["tokens"][row].tolist() == window[:-1].tolist()


def test_segments_agree_with_the_offsets_of_documents(config) -> None:
    made = config(packing="documents", batch_size=1)
    data = load(made, seed=0, evaluation_sequences=1)
    starts = np.load(prepare(made) / "train_documents.npy")
    stream = data.streams["train"]
    document = np.searchsorted(starts, np.arange(len(stream)), side="right")
    expected = []
    for at in range(0, len(stream) - 16, 16):
        owner = document[at : at + 17]
        labels = np.where(owner[1:] == owner[:-1], stream[at + 1 : at + 17].astype(int), -1)
        expected.append([stream[at : at + 16].tolist(), labels.tolist(), (owner - owner[0] + 1)[:16].tolist()])
    epoch = [data.batch(step) for step in range(int(data.steps_per_epoch))]
    found = [[batch[name][0].tolist() for name in ("tokens", "labels", "segment_ids")] for batch in epoch]
    assert sorted(found) == sorted(expected)
    assert sum(-1 in labels for _, labels, _ in found) >= 10


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_reads_fixed_windows_spread_over_the_split(split, config) -> None:
    first, other = (load(config(), seed=seed, evaluation_sequences=6) for seed in (0, 1))
    batches = first.evaluation(split)
    stream = first.streams[split].astype(np.int32)
    count = windows(len(stream), first.config)
    wanted = [stream[16 * (i * count // 6) :][:17] for i in range(6)]
    assert [batch["tokens"].shape for batch in batches] == [(4, 16), (4, 16)]
    tokens, labels = (np.concatenate([batch[name] for batch in batches]) for name in ("tokens", "labels"))
    np.testing.assert_array_equal(tokens[:6], [window[:-1] for window in wanted])
    np.testing.assert_array_equal(labels[:6], [window[1:] for window in wanted])
    assert (labels[6:] == -1).all(), "rows that fill the last batch are not scored"
    for mine, theirs in zip(batches, other.evaluation(split), strict=True):
        np.testing.assert_array_equal(mine["tokens"], theirs["tokens"])


def test_bits_per_byte_of_a_uniform_model_are_those_of_its_tokens(config) -> None:
    """Both vocabularies read the same text: nats per token over bytes per token."""
    for chosen in ({}, {"tokenizer": "bpe", "vocab_size": 300}):
        data = load(config(batch_size=1, seq_len=10, **chosen), seed=0, evaluation_sequences=1)
        nats = scored = 0.0
        for step in range(int(data.steps_per_epoch)):
            labels = data.batch(step)["labels"]
            nats += math.log(data.vocab_size) * labels.size
            scored += data.token_bytes[labels].sum()
        count = windows(len(data.streams["train"]), data.config) * 10
        text = bytes_between(data, 1, count + 1)
        assert scored == text
        assert nats / (math.log(2) * scored) == pytest.approx(math.log2(data.vocab_size) * count / text)


def bytes_between(data: Data, start: int, stop: int) -> int:
    from experiments.data.tokenizers import KINDS

    kind = KINDS[data.config.tokenizer]
    tokenizer = kind.load(prepare(data.config), data.vocab_size)
    tokens = [int(token) for token in data.streams["train"][start:stop] if token != data.separator]
    if data.config.tokenizer == "bytes":
        return len(tokens)
    library = tokenizer._library  # type: ignore[attr-defined]
    return sum(len(library.id_to_token(token)) for token in tokens)


def test_a_length_that_a_split_cannot_give_is_refused(config) -> None:
    prepare(config())
    for ask in (check, lambda config, sequences: load(config, seed=0, evaluation_sequences=sequences)):
        with pytest.raises(ConfigError, match=r"data\.seq_len: 5000 is not allowed; the validation split .* only \d+"):
            ask(config(seq_len=5000), 1)
        with pytest.raises(ConfigError, match=r"evaluate\.sequences: 500 .* validation split .* has \d+ sequences"):
            ask(config(), 500)
        ask(config(), 5)


def test_reading_ahead_gives_the_same_batches_and_ends_its_thread(data: Data) -> None:
    def threads() -> int:
        return sum(thread.name.startswith("batches") for thread in threading.enumerate())

    with data.batches(start_step=7) as reader:
        assert threads() == 1
        for step in range(7, 20):
            assert reader.step == step
            np.testing.assert_array_equal(next(reader)["tokens"], data.batch(step)["tokens"])
    assert threads() == 0
    reader.close()
    with pytest.raises(StopIteration):
        next(reader)


def test_an_error_while_reading_ahead_reaches_the_reader(data: Data, monkeypatch) -> None:
    monkeypatch.setattr(Data, "batch", lambda *_: 1 // 0)
    with data.batches() as reader, pytest.raises(ZeroDivisionError):
        next(reader)


def test_the_data_config_keeps_the_shape_of_the_vocabulary(config) -> None:
    assert load(config(), seed=0, evaluation_sequences=1).vocab_size == 257
    bpe: DataConfig = config(tokenizer="bpe", vocab_size=280)
    data = load(bpe, seed=0, evaluation_sequences=1)
    assert (data.vocab_size, data.separator) == (280, 279)
    assert int(data.streams["train"].max()) == 279
    assert Path(prepare(bpe), "tokenizer.json").is_file()
