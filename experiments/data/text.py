"""Batches from the flat streams: a pure function of (seed, step), through grain.

Window w of a stream of N tokens is tokens[w·stride : w·stride + width]. For next tokens, with L = seq_len, the stride
is L and the width L + 1, so every token but the first is a label once and there are (N - 1) // L windows; other
objectives have other widths (experiments/data/objectives.py). An epoch visits all training windows in an order drawn
from (seed, epoch); batches run over the ends of epochs. What an objective draws depends on (seed, step, row) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.data.bases import complement_tokens
from experiments.data.chance import uniforms
from experiments.data.objectives import IGNORED, OBJECTIVES, Batch, Rows
from experiments.data.splits import SPLITS
from experiments.data.vocabulary import Vocabulary, vocabulary
from experiments.files import read_json
from hybrid.lazy import np
from hybrid.validation import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from experiments.data.config import DataConfig

HeldOut = Literal["validation", "test"]


@dataclass(frozen=True, eq=False)
class Data:
    """What a run reads. Made by `load`; arrays of the streams are mapped from disk."""

    config: DataConfig
    seed: int
    evaluation_sequences: int
    fingerprint: str
    token_bytes: NDArray[np.int32]
    """(vocab_size,) bytes of UTF-8 of each token, 0 for the separator and what the objective adds.

    Bits per byte (of DNA per base) = sum of nats / (ln 2 · sum of token_bytes[labels]) over scored positions.
    """
    streams: dict[str, NDArray[np.uint16]]
    ids: Vocabulary
    _orders: dict[int, Any] = field(default_factory=dict, repr=False)

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    @property
    def separator(self) -> int:
        """The token before each document."""
        return self.ids.separator

    @property
    def steps_per_epoch(self) -> float:
        return self._count("train") / self.config.batch_size

    def _count(self, split: str) -> int:
        """Windows of a split."""
        return windows(len(self.streams[split]), self.config)

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
        wanted, size = self.evaluation_sequences, self.config.batch_size
        rows = -(-wanted // size) * size
        chosen = np.zeros(rows, np.int64)
        chosen[:wanted] = np.arange(wanted) * self._count(split) // wanted
        whole = self._made(split, chosen, place=chosen, epoch=np.zeros_like(chosen), seed=0)
        whole["labels"][wanted:] = IGNORED
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
        order = grain.MapDataset.range(self._count("train")).seed(self.seed).shuffle().repeat()
        return order.batch(self.config.batch_size // count).map_with_index(self._training)

    def _training(self, index: int, chosen: NDArray[Any]) -> Batch:
        """The `index`-th part of all training rows: the windows `chosen`, read from the other strand where so drawn."""
        place = np.int64(index) * len(chosen) + np.arange(len(chosen))
        return self._made("train", chosen, place=place, epoch=place // self._count("train"), seed=self.seed)

    def _made(self, split: str, chosen: NDArray[Any], *, place: NDArray, epoch: NDArray, seed: int) -> Batch:
        objective = OBJECTIVES[self.config.objective]
        at = np.asarray(chosen, np.int64)[:, None] * objective.stride(self.config)
        tokens = self.streams[split][at + np.arange(objective.width(self.config))].astype(np.int32)
        if split == "train" and self.config.dna.reverse_complement == "half":
            turned = uniforms(seed, "strand", place, 1) < 0.5
            tokens = np.where(turned, complement_tokens(tokens), tokens)
        return objective.make(self.config, self.ids, Rows(tokens, place, chosen, epoch, seed, split))


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


def windows(tokens: int, config: DataConfig) -> int:
    """How many windows of `config` a stream of `tokens` has."""
    objective = OBJECTIVES[config.objective]
    stride, width = objective.stride(config), objective.width(config)
    return max(tokens - (width - stride), 0) // stride


def check_lengths(config: DataConfig, tokens: dict[str, int], evaluation_sequences: int) -> None:
    """Raises ConfigError where a split is too short for seq_len or for the number of evaluation sequences."""
    for split in SPLITS:
        if windows(tokens[split], config) < 1:
            problem = f"the {split} split of {config.source!r} has only {tokens[split]} tokens"
            raise ConfigError("data.seq_len", f"{config.seq_len} is not allowed; {problem}")
    for split in SPLITS[1:]:
        most = windows(tokens[split], config)
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
    ids = vocabulary(config)
    token_bytes = np.pad(token_bytes, (0, ids.size - len(token_bytes)))
    return Data(config, seed, evaluation_sequences, about["fingerprint"], token_bytes, streams, ids)
