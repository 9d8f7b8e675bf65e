"""What an error that ended a run is called."""

from pathlib import Path

import pytest

from experiments.failures import one_line, phase_of
from experiments.files import Held


@pytest.mark.parametrize(
    ("error", "phase"),
    [
        (ValueError("a shape"), "train"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), "oom"),
        (MemoryError(), "oom"),
        (OSError(28, "No space left on device"), "files"),
        (Held(Path("runs/lock"), 7, "here"), "held"),
    ],
)
def test_the_phase_follows_from_the_error(error: Exception, phase: str) -> None:
    assert phase_of(error, "train") == phase


def test_an_error_that_says_nothing_more_keeps_the_phase_that_was_reached() -> None:
    assert phase_of(ValueError("a field"), "start") == "start"


def test_an_error_is_one_line_of_its_type_and_text() -> None:
    assert one_line(ValueError("two\n  lines")) == "ValueError: two lines"
    assert one_line(MemoryError()) == "MemoryError"
    assert len(one_line(ValueError("long" * 500))) == 500
