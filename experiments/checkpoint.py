"""Checkpoints that are believed only when their bytes are what was written.

    with Checkpoints(run.checkpoints, keep=2) as checkpoints:
        checkpoints.save(step, tree, about)                 # tree: nested dicts of host arrays, about: plain values
        found = checkpoints.newest(shapes)                  # the newest that verifies, None where there is none

Orbax writes; it renames a step's folder when all of it is on disk, and notices neither a flipped bit nor another type.
So each leaf's CRC-32 is kept beside it and compared after reading, what does not verify is passed over, and the steps
are those that the disk has. No jax at import.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.validation import ConfigError

Tree = Any

SETTLED = (MemoryError, PermissionError)
"""Errors of the machine, which say nothing about the bytes of a checkpoint."""


class Damaged(Exception):  # noqa: N818  (a state of the file rather than a fault of ours)
    """A checkpoint that is not what was written."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that verified."""

    step: int
    tree: Tree
    about: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. Who writes holds the run's lock."""

    def __init__(self, folder: Path, keep: int | None, on_refused: Callable[[int, str], None] | None = None):
        """keep: how many; None: to read only. on_refused: called with (step, reason) where one is passed over."""
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = Path(folder).absolute()
        self._ocp = ocp
        self._keep = keep
        self._on_refused = on_refused or (lambda step, reason: None)
        if keep is not None:
            _remove_unfinished(self.folder)
        self._manager = self._open()

    def _open(self) -> Any:
        reads = self._keep is None
        if not reads:
            self.folder.mkdir(parents=True, exist_ok=True)
        options = self._ocp.CheckpointManagerOptions(
            max_to_keep=self._keep, create=False, read_only=reads, multiprocessing_options=self._alone()
        )
        return self._ocp.CheckpointManager(self.folder, options=options)

    def _alone(self) -> Any:
        """Where there are several processes, each opens the folder by itself: one writes, the others read."""
        import jax

        make = self._ocp.options.MultiprocessingOptions
        if jax.process_count() == 1:
            return make()
        me = jax.process_index()
        return make(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}")

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """The steps on disk, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()), reverse=True)

    def save(self, step: int, tree: Tree, about: Mapping[str, Any]) -> None:
        """Begins to write; `wait` returns when it is on disk. An error of the write before is raised here."""
        args = self._ocp.args
        meta = sealed({"step": step, "about": dict(about), "digests": digests(tree)})
        items = args.Composite(state=args.StandardSave(tree), meta=args.JsonSave(meta))
        self.wait()
        with _written(self.folder):
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Returns when the last save is on disk; raises OSError where it could not be written."""
        with _written(self.folder):
            self._manager.wait_until_finished()

    def newest(self, shapes: Tree, check: Callable[[dict[str, Any]], str] = lambda about: "") -> Found | None:
        """The newest checkpoint that verifies, restored as `shapes` asks (jax.ShapeDtypeStruct with shardings).

        check: gives the reason why a checkpoint with this `about` cannot be used, or '', and may raise ConfigError.
        Those that are passed over are removed (unless reading only): training makes them again.
        """
        refused = []
        for step in self.steps():
            try:
                found = self._load(step, shapes, check)
            except Damaged as error:
                refused.append(step)
                self._on_refused(step, str(error))
                continue
            self._forget(refused)
            return found
        self._forget(refused)
        return None

    def _load(self, step: int, shapes: Tree, check: Callable[[dict[str, Any]], str]) -> Found:
        args = self._ocp.args
        meta = self._read(step, meta=args.JsonRestore())["meta"]
        verify_seal(meta)
        if meta["step"] != step:
            raise Damaged(f"it says that it is of step {meta['step']}")
        reason = check(meta["about"])
        if reason:
            raise Damaged(reason)
        tree = self._read(step, state=args.StandardRestore(shapes))["state"]
        there = digests(tree)
        wrong = sorted(name for name in there.keys() | meta["digests"] if there.get(name) != meta["digests"].get(name))
        if wrong:
            raise Damaged(f"{wrong[0]} is not what was written ({len(wrong)} of {len(there)} leaves)")
        return Found(step, tree, meta["about"])

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=self._ocp.args.Composite(**items))
        except SETTLED:
            raise
        except Exception as error:  # whatever damaged files make the libraries below raise
            raise Damaged(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error

    def _forget(self, steps: list[int]) -> None:
        if not steps or self._keep is None:
            return
        self._manager.close()
        for step in steps:
            shutil.rmtree(self.folder / str(step))
        self._manager = self._open()


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Whatever the libraries below raise when the disk is full or gone, as OSError."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise OSError(f"{folder}: a checkpoint could not be written ({reason})") from error


def _remove_unfinished(folder: Path) -> None:
    """Removes what a killed save left: a step's folder has its plain name only when all of it was written."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.isdecimal():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- digests ----------------------------------------------------------------------------------------------------------


def digests(tree: Tree) -> dict[str, str]:
    """Path -> CRC-32 of the type, the shape and the bytes of each leaf."""
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): digest(leaf) for path, leaf in leaves}


def digest(leaf: Any) -> str:
    import numpy as np

    array: Any = np.ascontiguousarray(leaf)
    head = f"{array.dtype} {np.shape(leaf)}".encode()
    return f"{zlib.crc32(array.reshape(-1).view(np.uint8), zlib.crc32(head)):08x}"


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with a digest over them."""
    plain = json.loads(json.dumps(meta))
    return {**plain, "seal": _seal(plain)}


def verify_seal(meta: Any) -> None:
    if not isinstance(meta, dict) or meta.get("seal") != _seal({k: v for k, v in meta.items() if k != "seal"}):
        raise Damaged("its description is not what was written")


def _seal(plain: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


# --- what a checkpoint is of ------------------------------------------------------------------------------------------


def difference(before: Any, now: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """(dotted field, value before, value now) of the first difference between two plain values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*now, *before]):
            found = difference(before.get(name), now.get(name), f"{path}.{name}" if path else name)
            if found:
                return found
        return None
    before, now = (list(value) if isinstance(value, tuple) else value for value in (before, now))
    return None if before == now else (path, before, now)


def refuse_other(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """ConfigError with the first field in which two identities differ."""
    found = difference(before, now)
    if found is None:
        return
    field, was, value = found
    if field == "fingerprint":
        problem = f"the data or the tokenizer have changed (fingerprint {was!r}, now {value!r})"
        raise ConfigError("data", f"{problem} since {where} was begun; give another --workdir, or the old data back")
    problem = f"{value!r} is not what {where} was begun with ({was!r}); give another --workdir, or the value of before"
    raise ConfigError(field, problem)
