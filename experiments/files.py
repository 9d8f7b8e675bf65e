"""Files that survive being killed at any moment: JSON written whole or not at all, append-only JSON lines, a lock.

Nothing here looks at a clock to decide anything: order is the order of the bytes on disk, and a lock is freed by the
kernel when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def encode(value: Any) -> str:
    """One line of strict JSON: keys in their order, nan and infinity as null, array scalars as numbers."""
    return json.dumps(_strict(value), ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if hasattr(value, "item"):  # a scalar of numpy or jax
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` in one step: readers see the old content or the new, also after a power cut."""
    write_text(path, json.dumps(_strict(value), ensure_ascii=False, allow_nan=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """As `write_json`, for any text."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_temporary(folder: Path) -> None:
    """Removes what `write_text` left in `folder` when its process was killed in the middle."""
    for path in folder.glob(".*.*"):
        if path.name.rpartition(".")[2].isdigit():
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any | None:
    """The content of a JSON file, or None where there is no such file (a file that is not JSON raises ValueError)."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


class Lines:
    """A file of JSON objects, one a line, that only grows at its end; one process writes at a time.

    A row is one `write`, so that a reader never sees two rows mixed. A tail that was torn (by a full disk or a power
    cut) is skipped by readers, and the next row starts on a line of its own.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._descriptor: int | None = None
        self._last: set[bytes] = set()  # the lines of the newest step, to write a replayed row once

    def append(self, row: Mapping[str, Any], *, once: bool = False) -> None:
        """Adds one row. With `once`, a row that equals one already there at the newest step is left out."""
        line = encode(row).encode() + b"\n"
        if self._descriptor is None:
            self._open()
        assert self._descriptor is not None
        if once:
            if line in self._last:
                return
            if any(json.loads(known).get("step") != row.get("step") for known in self._last):
                self._last.clear()
            self._last.add(line)
        if os.write(self._descriptor, line) != len(line):
            self.close()  # the next append starts on a new line
            raise OSError(f"{self.path}: a row could not be written whole (is the disk full?)")

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")
        rows = list(self._scan())
        self._last = {line for row, line in rows if row.get("step") == rows[-1][0].get("step")}

    def _scan(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """(row, line) of every readable row. A proper prefix of an object is never an object: torn is unreadable."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        for line in content.split(b"\n"):
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row, line + b"\n"

    def rows(self) -> list[dict[str, Any]]:
        """All readable rows, oldest first."""
        return [row for row, _ in self._scan()]

    def cut(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Keeps only the rows that `keep` accepts, and no torn line."""
        content = b"".join(line for row, line in self._scan() if keep(row))
        self.close()
        if self.path.exists() and self.path.read_bytes() != content:
            write_text(self.path, content.decode())

    def sync(self) -> None:
        """Brings what was appended to the disk itself."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._last = set()


class Held(RuntimeError):  # noqa: N818  (a state of the folder rather than a fault)
    """Somebody else holds the lock."""

    def __init__(self, path: Path, pid: int | None, host: str | None):
        self.path, self.pid, self.host = path, pid, host
        who = f"process {pid} on {host}" if pid else "another process"
        super().__init__(f"{path.parent} is held by {who}")


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds `path` until the block ends or the process dies; raises `Held` at once where somebody else does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, path)
        os.ftruncate(descriptor, 0)
        remove_temporary(path.parent)
        os.pwrite(descriptor, encode({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)  # a lock that nobody holds names nobody
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    for _ in range(20):  # `is_locked` of another process holds the lock for an instant: look again before refusing
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.005)
    pid, host = _holder(descriptor)
    raise Held(path, pid, host)


def _holder(descriptor: int) -> tuple[int | None, str | None]:
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
        return int(record["pid"]), str(record["host"])
    except (ValueError, KeyError, TypeError):
        return None, None


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
