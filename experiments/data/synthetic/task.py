"""What a synthetic task is, and what its rows and scores share.

A row is a pure function of one random key, with static shapes, so that the compiled step makes a batch by itself:

    {"tokens": (L,), "labels": (L,)}                                     a label a position
    {"tokens": (L,), "label_positions": (K,), "labels": (K,)}            labels at K positions

A label is what the model answers at its position; -1 is not scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from hybrid.lazy import jax, jnp, np
from hybrid.validation import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORED = -1

Row: TypeAlias = "dict[str, Any]"
Scores: TypeAlias = "Callable[[Any, NDArray, NDArray], dict[str, float]]"


def _nothing_else(config: Any, seq_len: int) -> None:
    """Any length is allowed."""


# --- scores -----------------------------------------------------------------------------------------------------------


def accuracy(config: Any, answers: NDArray, labels: NDArray) -> dict[str, float]:
    """Of answers and labels (N, K): the share of labels that were answered, and of rows without a fault."""
    scored = labels != IGNORED
    right = (answers == labels) & scored
    return {
        "accuracy": float(right.sum() / max(int(scored.sum()), 1)),
        "exact": float((right == scored).all(1).mean()) if len(labels) else 0.0,
    }


def macro_accuracy(config: Any, answers: NDArray, labels: NDArray) -> dict[str, float]:
    """`accuracy`, and the mean over classes of the share of a class's labels that were answered.

    As MAD's metric has it, a class that was never asked for and was answered all the same counts as 0.
    """
    scored = labels != IGNORED
    asked, said = labels[scored], answers[scored]
    shares = [
        float((said[asked == one] == one).mean()) if (asked == one).any() else 0.0 for one in np.union1d(asked, said)
    ]
    return {**accuracy(config, answers, labels), "macro_accuracy": float(np.mean(shares)) if shares else 0.0}


# --- the record -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks."""

    about: str
    source: str
    """Paper, and where the numbers of its defaults stand."""
    config: type
    """Its fields, a Checked dataclass with the paper's names and values."""
    vocab_size: Callable[[Any], int]
    row: Callable[[Any, int, Any, bool], Row]
    """(config, seq_len, random key, whether it is for training) -> a row."""
    chance: Callable[[Any, int], float]
    """(config, seq_len) -> accuracy of the best guess that knows the form of a row and lacks the mechanism."""
    check: Callable[[Any, int], None] = _nothing_else
    """(config, seq_len): raises ConfigError, fields named `seq_len` and `task.FIELD`."""
    scores: Scores = accuracy
    names: tuple[str, ...] = ("accuracy", "exact")
    """Of the scores."""
    readout: Literal["positions", "last"] = "positions"
    """`last`: all labels are answered from the last position, which learns which one is meant (an auto-encoder)."""
    rules: int = 1
    """Raised when the same numbers give other rows."""


MACRO: dict[str, Any] = {"scores": macro_accuracy, "names": ("accuracy", "exact", "macro_accuracy")}
"""Fields of the tasks that are scored as MAD scores."""


def register(tasks: dict[str, Task], name: str, task: Task) -> None:
    """Adds a task under a name that is not taken."""
    if name in tasks:
        raise ConfigError("data.source", f"{name!r} is there already")
    tasks[name] = task


# --- drawing ----------------------------------------------------------------------------------------------------------


def distinct(key: Any, among: int, count: int) -> Any:
    """(count,) different numbers of 0 .. among - 1 in random order, all such rows equally likely.

    Floyd's sampling (Bentley & Floyd 1987): count draws and count² comparisons, however many it chooses among.
    """
    drawing, ordering = jax.random.split(key)
    last = jnp.arange(among - count, among)
    drawn = jax.random.randint(drawing, (count,), 0, last + 1)

    def draw(i: Any, chosen: Any) -> Any:
        return chosen.at[i].set(jnp.where((chosen == drawn[i]).any(), last[i], drawn[i]))

    chosen = jax.lax.fori_loop(0, count, draw, jnp.full((count,), -1, drawn.dtype))
    return jax.random.permutation(ordering, chosen)


def one_of(key: Any, allowed: Any) -> Any:
    """() one of the positions where `allowed` (N,) holds, all equally likely."""
    return jnp.argmax(jnp.where(allowed, jax.random.uniform(key, allowed.shape), -1.0))


def next_tokens(tokens: Any) -> Row:
    """The row of plain next tokens of a sequence (L + 1,), as several papers train."""
    return {"tokens": tokens[:-1], "labels": tokens[1:]}


def must(holds: bool, field: str, problem: str) -> None:
    if not holds:
        raise ConfigError(field, problem)
