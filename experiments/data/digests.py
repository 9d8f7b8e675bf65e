"""A digest of many files that is asked for often: read once, then remembered as long as nothing about them changed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.data import places
from experiments.files import write_json

SETTLED = 2.0
"""Seconds. A file changed more recently than this could change again within one tick of the file system's clock."""


def of_files(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 over names (relative to `root`) and bytes of `files`.

    The memory is keyed by path, size, inode and both times of every file, as version control does it, and only used
    once these have settled.
    """
    state = [_state(path) for path in files]
    key = hashlib.sha256(json.dumps([str(root), [str(path) for path in files], state]).encode()).hexdigest()
    memory = places.root() / "raw" / "folder" / f"{hashlib.sha256(str(root).encode()).hexdigest()[:16]}.json"
    try:
        known = json.loads(memory.read_text())
        if known["key"] == key:
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    whole = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        whole.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        whole.update(content)
    newest = max((max(times) for _, _, *times in state), default=0) / 1e9
    if newest < time.time() - SETTLED and state == [_state(path) for path in files]:
        _remember(memory, {"key": key, "digest": whole.hexdigest()})
    return whole.hexdigest()


def _state(path: Path) -> tuple[int, int, int, int]:
    about = path.stat()
    return about.st_size, about.st_ino, about.st_mtime_ns, about.st_ctime_ns


def _remember(memory: Path, value: dict[str, str]) -> None:
    try:
        write_json(memory, value)
    except OSError:  # only speed is lost
        return
