"""Documents: the texts that a source gives, one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Progress = Callable[[str], None]
"""Is told, in a few words, what is being done."""


class Document(NamedTuple):
    """A text that is never cut between splits. Documents of one `group` stay in one split (editions of one play)."""

    id: str
    text: str
    group: str


def document(name: str, text: str, group: str = "") -> Document:
    """A document; texts that are equal share a group, so that a copy of a training text is never a test text."""
    return Document(name, text, group or hashlib.sha256(text.encode()).hexdigest())


def text_of(path: Path) -> str:
    """A UTF-8 file with \\n at its line ends and no byte order mark."""
    return plain_lines(path.read_bytes().decode("utf-8-sig"))


def plain_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
