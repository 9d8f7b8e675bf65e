"""The host's side of a synthetic task: which rows a step reads. The device's side: the rows themselves.

A batch is {"rows": (B, 4) uint32}: task_seed, stream, seed, number. The compiled step makes the tokens of each row from
these alone (`made`), so nothing is stored and any row can be made again. Streams: validation 0, test 1, training 2 and
on (one a part of a mix). Training, validation and test are different by their keys.

Forms of another length or with other fields (a slice, a part of a mix) have a name: {"rows:NAME": (B, 4)}. It belongs
to the structure of the batch and so to the compiled program.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.data.chance import uniforms
from experiments.data.config import DataConfig, Form
from experiments.data.synthetic import TASKS
from experiments.data.synthetic.task import Row, Task
from hybrid.lazy import jax, jnp, np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = "rows"
STREAMS = {"validation": 0, "test": 1, "train": 2}
COLUMNS = 4


# --- on the device ----------------------------------------------------------------------------------------------------


def made(config: DataConfig, batch: Mapping[str, Any], training: bool) -> Mapping[str, Any]:
    """The batch itself, with the tokens and labels of its rows where it only numbers them. Traced.

    On a mesh each device makes its own rows: left to itself XLA would gather what a task sorts.
    """
    from hybrid.sharding import per_device

    for name, rows in batch.items():
        if name.partition(":")[0] == ROWS:
            make = functools.partial(_row, TASKS[config.source], forms(config)[name], training)
            whole = per_device(jax.vmap(make), [("batch", None)], ("batch",))(rows)
            return {name: array.astype(jnp.int32) for name, array in whole.items()}
    return batch


def _row(task: Task, form: Form, training: bool, row: Any) -> Row:
    return task.row(form.task, form.seq_len, key_of(row), training)


def key_of(row: Any) -> Any:
    """The random key of a row (4,) uint32."""
    key = jax.random.key(row[0])
    for number in (row[1], row[2], row[3]):
        key = jax.random.fold_in(key, number)
    return key


def forms(config: DataConfig) -> dict[str, Form]:
    """Name of a batch's array -> what its rows are."""
    own = {ROWS: Form(seq_len=config.seq_len, task=config.task)}
    slices = {slice_name(each.name): Form(each.seq_len, each.task) for each in config.slices}
    return own | slices | {mix_name(i): Form(part.seq_len, part.task) for i, part in enumerate(config.mix)}


def slice_name(name: str) -> str:
    return f"{ROWS}:{name}"


def mix_name(index: int) -> str:
    return f"{ROWS}:mix {index}"


# --- on the host ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A stretch of the training of one form: fresh rows without end, or a fixed set again and again."""

    name: str
    stream: int
    examples: int
    """0: no row comes twice."""


@dataclass(frozen=True, eq=False)
class TaskData:
    """What a run of a task reads: numbers of rows, as a function of (seed, step)."""

    config: DataConfig
    seed: int
    evaluation_sequences: int
    fingerprint: str
    token_bytes: NDArray[np.int32]
    """(vocab_size,) zeros: a task has no bytes."""
    rows_together: int = 1
    """The rows of a batch are a multiple of this: devices that share them."""

    @property
    def parts(self) -> list[Part]:
        config, first = self.config, STREAMS["train"]
        if not config.mix:
            return [Part(ROWS, first, config.examples)]
        return [Part(mix_name(i), first + i, part.examples) for i, part in enumerate(config.mix)]

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    def batch(self, step: int, shard: tuple[int, int] = (0, 1)) -> dict[str, NDArray]:
        """The numbers of the rows of `step` = 0, 1, ...; with shard = (i, n), of the i-th of n equal parts."""
        index, count = shard
        if step < 0 or not 0 <= index < count:
            raise ValueError(f"step {step}, shard {index} of {count}: out of range")
        part, epoch, at = self._place(step)
        size = self.config.batch_size
        numbers = step * size + np.arange(size) if not part.examples else self._of_set(part, epoch, at)
        seed = self.seed if not part.examples else 0
        share = size // count
        return {part.name: self._rows(part.stream, numbers[index * share : (index + 1) * share], seed)}

    def _place(self, step: int) -> tuple[Part, int, int]:
        """(part, epoch, batch of the part in this epoch). Parts of a mix follow each other; none is cut by another."""
        parts = self.parts
        if len(parts) == 1:  # batches run over the ends of epochs
            return parts[0], 0, step
        epoch, at = divmod(step, epoch_steps(self.config))
        for part in parts:
            batches = -(-part.examples // self.config.batch_size)
            if at < batches:
                return part, epoch, at
            at -= batches
        raise AssertionError("a step lies in an epoch")

    def _of_set(self, part: Part, epoch: int, at: int) -> NDArray:
        """Numbers of a fixed set: batch `at` of its endless order, which begins with `epoch`."""
        places = at * self.config.batch_size + np.arange(self.config.batch_size)
        if len(self.parts) > 1:  # the last batch is filled up from the beginning of the part
            return self._order(part, epoch)[places % part.examples]
        epochs = places // part.examples
        orders = {int(each): self._order(part, int(each)) for each in np.unique(epochs)}
        return np.array([orders[int(e)][p % part.examples] for e, p in zip(epochs, places, strict=True)])

    def _order(self, part: Part, epoch: int) -> NDArray:
        if self.config.order == "fixed":
            return np.arange(part.examples)
        return _shuffled(self.seed, part.stream, epoch, part.examples)

    def _rows(self, stream: int, numbers: NDArray, seed: int) -> NDArray[np.uint32]:
        rows = np.empty((len(numbers), COLUMNS), np.uint32)
        rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3] = self.config.task_seed, stream, seed, numbers
        return rows

    def batches(self, start_step: int = 0) -> TaskBatches:
        return TaskBatches(self, start_step)

    def evaluation(self, split: str) -> list[dict[str, NDArray]]:
        """Batches of a held-out split, or of the test rows of a slice (`slices/NAME`). The last one is filled up:
        only the first `wanted(split)` rows count."""
        kind, _, name = split.partition("/")
        if kind != "slices":
            return self._held_out(ROWS, STREAMS[split], self.wanted(split), self.config.batch_size)
        each = self.config.slice(name)
        size = min(self.config.batch_size, max(1, self.config.batch_size * self.config.seq_len // each.seq_len))
        size = -(-size // self.rows_together) * self.rows_together
        return self._held_out(slice_name(name), STREAMS["test"], self.wanted(split), size)

    def wanted(self, split: str) -> int:
        kind, _, name = split.partition("/")
        own = self.config.slice(name).sequences if kind == "slices" else None
        return own or self.evaluation_sequences

    def _held_out(self, name: str, stream: int, wanted: int, size: int) -> list[dict[str, NDArray]]:
        rows = self._rows(stream, np.arange(-(-wanted // size) * size), 0)
        return [{name: rows[at : at + size]} for at in range(0, len(rows), size)]


@functools.lru_cache(maxsize=8)
def _shuffled(seed: int, stream: int, epoch: int, examples: int) -> NDArray:
    """The order of a fixed set in an epoch. Kept, because each of its batches asks for it."""
    return np.argsort(uniforms(seed, f"order {stream}", np.array([epoch]), examples)[0], kind="stable")


class TaskBatches:
    """The batches of start_step, start_step + 1, ... without end. They cost nothing, so no thread works ahead."""

    def __init__(self, data: TaskData, step: int):
        self.step = step
        self._data = data

    def __iter__(self) -> Iterator[dict[str, NDArray]]:
        return self

    def __next__(self) -> dict[str, NDArray]:
        self.step += 1
        return self._data.batch(self.step - 1)

    def close(self) -> None: ...

    def __enter__(self) -> TaskBatches:
        return self

    def __exit__(self, *_exception: object) -> None: ...


def epoch_steps(config: DataConfig) -> int:
    """Steps of an epoch of the fixed training set; 0 where rows are always fresh."""
    sizes = [part.examples for part in config.mix] if config.mix else [config.examples]
    return sum(-(-size // config.batch_size) for size in sizes)


def tokens_read(config: DataConfig, steps: int) -> int:
    """Tokens of so many training batches: parts of a mix have lengths of their own."""
    if not config.mix:
        return steps * config.batch_size * config.seq_len
    batches = [-(-part.examples // config.batch_size) for part in config.mix]
    epochs, left = divmod(steps, sum(batches))
    rows = 0
    for part, count in zip(config.mix, batches, strict=True):
        rows += (epochs * count + min(left, count)) * part.seq_len
        left -= min(left, count)
    return rows * config.batch_size
