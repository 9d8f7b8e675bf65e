"""Batches of next-token prediction from the flat streams: a pure function of (seed, step), through grain.

Letters: B sequences, L = seq_len tokens. Window w of a stream of N tokens is tokens[w·L : w·L + L + 1], so every token
but the first is a label once; there are (N - 1) // L windows. An epoch visits all training windows in an order drawn
from (seed, epoch); batches run over the ends of epochs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from experiments.data.splits import SPLITS
from experiments.files import read_json
from hybrid.lazy import np
from hybrid.validation import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from experiments.data.config import DataConfig

Batch: TypeAlias = "dict[str, NDArray[np.int32]]"
"""tokens (B, L), labels (B, L) with -1 = not scored, and for packed documents segment_ids (B, L), 1 and up."""

HeldOut = Literal["validation", "test"]


@dataclass(frozen=True, eq=False)
class Data:
    """What a run reads. Made by `load`; arrays of the streams are mapped from disk."""

    config: DataConfig
    seed: int
    evaluation_sequences: int
    fingerprint: str
    token_bytes: NDArray[np.int32]
    """(vocab_size,) bytes of UTF-8 of each token, 0 for the separator.

    Bits per byte = sum of nats / (ln 2 · sum of token_bytes[labels]) over scored positions.
    """
    streams: dict[str, NDArray[np.uint16]]
    _orders: dict[int, Any] = field(default_factory=dict, repr=False)

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    @property
    def separator(self) -> int:
        """The token before each document."""
        return self.vocab_size - 1

    @property
    def steps_per_epoch(self) -> float:
        return windows(len(self.streams["train"]), self.config.seq_len) / self.config.batch_size

    def batch(self, step: int, shard: tuple[int, int] = (0, 1)) -> Batch:
        """The training batch of `step` = 0, 1, ...; with shard = (i, n), the i-th of n equal parts of its rows.

        The n parts, one after another, are the whole batch, whoever makes them.
        """
        index, count = shard
        if step < 0 or not 0 <= index < count:
            raise ValueError(f"step {step}, shard {index} of {count}: out of range")
        return self._parts(count)[step * count + index]

    def batches(self, start_step: int = 0, shard: tuple[int, int] = (0, 1), ahead: int = 2) -> Batches:
        """The batches of start_step, start_step + 1, ... without end, made by a thread up to `ahead` steps early."""
        return Batches(self, start_step, shard, ahead)

    def evaluation(self, split: HeldOut) -> list[Batch]:
        """`evaluation_sequences` windows evenly spread over `split`, the same for every seed, in batches of batch_size.

        The last batch is filled up with rows that are not scored, so that all have one shape.
        """
        stream, wanted, size = self.streams[split], self.evaluation_sequences, self.config.batch_size
        chosen = np.arange(wanted) * windows(len(stream), self.config.seq_len) // wanted
        rows = -(-wanted // size) * size
        whole = self._window(split, np.concatenate([chosen, np.zeros(rows - wanted, chosen.dtype)]))
        whole["labels"][wanted:] = -1
        return [{name: array[at : at + size] for name, array in whole.items()} for at in range(0, rows, size)]

    def _parts(self, count: int) -> Any:
        """Random access to the parts of all batches: element step·count + i is part i of `step`."""
        if count not in self._orders:
            self._orders[count] = self._ordered(count)
        return self._orders[count]

    def _ordered(self, count: int) -> Any:
        import grain

        if self.config.batch_size % count:
            raise ConfigError("data.batch_size", f"{self.config.batch_size} is not allowed; must divide by {count}")
        number = windows(len(self.streams["train"]), self.config.seq_len)
        order = grain.MapDataset.range(number).seed(self.seed).shuffle().repeat()
        return order.batch(self.config.batch_size // count).map(functools.partial(self._window, "train"))

    def _window(self, split: str, index: NDArray[Any]) -> Batch:
        length = self.config.seq_len
        at = np.asarray(index, np.int64)[:, None] * length + np.arange(length + 1)
        return PACKINGS[self.config.packing](self.streams[split][at].astype(np.int32), self.separator)


def packed_windows(tokens: NDArray[np.int32], separator: int) -> Batch:
    """(B, L + 1) -> plain windows: a document sees what stood before it."""
    return {"tokens": tokens[:, :-1].copy(), "labels": tokens[:, 1:].copy()}


def packed_documents(tokens: NDArray[np.int32], separator: int) -> Batch:
    """(B, L + 1) -> the same windows with documents numbered from 1; no label from one document into the next.

    A separator opens its document and nothing else is one, so segments need no table of offsets.
    """
    opens = tokens == separator
    opens[:, 0] = True
    segments = np.cumsum(opens, axis=1, dtype=np.int32)
    labels = np.where(opens[:, 1:], np.int32(-1), tokens[:, 1:])
    return {"tokens": tokens[:, :-1].copy(), "labels": labels, "segment_ids": segments[:, :-1].copy()}


PACKINGS = {"windows": packed_windows, "documents": packed_documents}


class Batches:
    """An endless iterator over batches with a thread that works ahead. Close it, or use it in a `with` block.

    It keeps no state worth saving: the next batch is the one of `step`.
    """

    def __init__(self, data: Data, start_step: int, shard: tuple[int, int], ahead: int):
        self.step = start_step
        self._data, self._shard = data, shard
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._waiting: list[Future[Batch]] = []
        for step in range(start_step, start_step + max(ahead, 1)):
            self._ask(step)

    def _ask(self, step: int) -> None:
        self._waiting.append(self._thread.submit(self._data.batch, step, self._shard))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._waiting:
            raise StopIteration  # closed
        self._ask(self.step + len(self._waiting))
        batch = self._waiting.pop(0).result()
        self.step += 1
        return batch

    def close(self) -> None:
        """Ends the thread; calling it again does nothing."""
        self._waiting.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def windows(tokens: int, length: int) -> int:
    """How many windows of `length` + 1 tokens a stream has, each beginning where the one before ends."""
    return max(tokens - 1, 0) // length


def check_lengths(config: DataConfig, tokens: dict[str, int], evaluation_sequences: int) -> None:
    """Raises ConfigError where a split is too short for seq_len or for the number of evaluation sequences."""
    for split in SPLITS:
        if windows(tokens[split], config.seq_len) < 1:
            problem = f"the {split} split of {config.source!r} has only {tokens[split]} tokens"
            raise ConfigError("data.seq_len", f"{config.seq_len} is not allowed; {problem}")
    for split in SPLITS[1:]:
        most = windows(tokens[split], config.seq_len)
        if most < evaluation_sequences:
            problem = f"{evaluation_sequences} is not allowed; the {split} split of {config.source!r} has {most}"
            raise ConfigError("evaluate.sequences", f"{problem} sequences of data.seq_len = {config.seq_len}")


def open_data(folder: Path, config: DataConfig, seed: int, evaluation_sequences: int) -> Data:
    """Data over a prepared token folder."""
    try:
        about = read_json(folder / "meta.json") or {"splits": {}}
        streams = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in SPLITS}
        token_bytes = np.load(folder / "token_bytes.npy")
        tokens = {name: split["tokens"] for name, split in about["splits"].items()}
        if tokens != {name: len(stream) for name, stream in streams.items()}:
            raise ValueError("a stream has another length than meta.json says")
    except (OSError, ValueError, EOFError, LookupError) as error:
        problem = f"the token files in {folder} are damaged ({error}); remove that folder, and they are made again"
        raise ConfigError("data.source", problem) from error
    check_lengths(config, tokens, evaluation_sequences)
    return Data(config, seed, evaluation_sequences, about["fingerprint"], token_bytes, streams)
