"""What an error that ended a run means: its phase, and one line about it.

Phases: `start` (before training), `train`, `oom`, `files` (the disk's fault), `held` (somebody else trains the run).
"""

from __future__ import annotations

from experiments.files import Held


def phase_of(error: Exception, reached: str) -> str:
    """The phase of an error; `reached` (start or train) where its kind tells nothing more."""
    if isinstance(error, MemoryError) or is_out_of_memory(str(error)):
        return "oom"
    if isinstance(error, Held):
        return "held"
    return "files" if isinstance(error, OSError) else reached


def is_out_of_memory(text: str) -> bool:
    """Whether an error's text is one of those that mean that memory was not enough."""
    return any(words in text for words in ("RESOURCE_EXHAUSTED", "Out of memory", "std::bad_alloc", "MemoryError"))


def one_line(error: Exception) -> str:
    """The type and the text of an error, at most 500 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__
