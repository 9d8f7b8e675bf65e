"""DNA as a source: genomes out of FASTA files, cut into what trains and what is held out.

A genome is a file; its species is the folder that the file lies in, its strain the file's name. Splits are those of
DnaConfig:

- `region`: each record is cut into `regions` equal stretches, each stretch into ten parts, of which one is held out:
  its first half for validation, its second half for test. Of each species one strain is read, the first one that
  data.dna.genomes finds: two strains are near copies, and a model that trains on the other one has seen the answer.
- `species`: the species of the named genomes are held out, all strains of them; strains of a held-out species that
  are not named are left out.
- `strain`: the named genomes alone are held out. Their relatives train, so scores tell of memory.

Held-out pieces are never read from the other strand, and training pieces have no base in common with them. Genes that
a genome has twice, and genes that species share, are still on both sides of any split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.data import places
from experiments.data.documents import Document, Progress
from experiments.data.fasta import SUFFIXES, FastaError, records
from experiments.data.source import Fetched, Source, files, near
from hybrid.validation import ConfigError, nearest

if TYPE_CHECKING:
    from experiments.data.config import DataConfig, DnaConfig

ALIASES = {"NC_000913": "MG1655", "U00096": "MG1655"}
"""Accession -> strain, for genomes whose files do not say it."""

FOLDS = 10
"""Parts of a stretch; one of them is held out."""

SEPARATOR = "\t"
"""Between the words of a group."""

PARTS = {"region": "trains, a tenth held out", "train": "trains", "validation": "validation", "test": "test"}


class Genome(NamedTuple):
    species: str
    strain: str

    @property
    def name(self) -> str:
        return "/".join(dict.fromkeys(self))


def genome_of(path: Path) -> Genome:
    """Species and strain of a path below the folder of genomes: its last folder but `references`, and its name.

    A file that lies in no folder is a species of its own.
    """
    stem = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        stem = stem.removesuffix(suffix)
    folders = [part for part in path.parent.parts if part != "references"]
    return Genome(folders[-1] if folders else stem, stem)


def found(wanted: str, genomes: Sequence[Genome]) -> list[Genome]:
    """Genomes whose "species strain", or strain alone, begins with `wanted`; only letters and digits are compared."""
    key = _key(ALIASES.get(wanted.partition(".")[0], wanted))
    return [one for one in genomes if _key(one.name).startswith(key) or _key(one.strain).startswith(key)] if key else []


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def chosen(names: Iterable[str], genomes: Sequence[Genome], field: str) -> list[Genome]:
    """All genomes that one of `names` finds, in the order of the names; raises ConfigError for one that finds none."""
    picked: list[Genome] = []
    for name in names:
        these = found(name, genomes)
        if not these:
            words = [*dict.fromkeys(one.species for one in genomes), *(one.strain for one in genomes)]
            allowed = ", ".join(one.name for one in genomes)
            problem = f"{name!r} is no genome here{nearest(name, words)} (allowed: {allowed})"
            raise ConfigError(f"data.dna.{field}", problem)
        picked += [one for one in these if one not in picked]
    return picked


def assign(genomes: Sequence[Genome], config: DnaConfig) -> dict[Genome, str]:
    """Genome -> "train", "validation", "test", or "region" where it gives to all three; others are left out."""
    picked = chosen(config.genomes, genomes, "genomes") if config.genomes else list(genomes)
    if config.split == "region":
        species: dict[str, Genome] = {}
        for one in picked:
            species.setdefault(one.species, one)
        return dict.fromkeys(species.values(), "region")
    split = dict.fromkeys(picked, "train")
    for part, names in (("validation", config.validation), ("test", config.test)):
        for one in chosen(names, genomes, part):
            if split.get(one, "train") != "train":
                raise ConfigError(f"data.dna.{part}", f"{one.name} is held out for {split[one]} too")
            split[one] = part
    if config.split == "species":
        out = {one.species: part for one, part in split.items() if part == "validation"}
        both = [one.species for one, part in split.items() if part == "test" and one.species in out]
        if both:
            raise ConfigError("data.dna.test", f"{both[0]} is held out for validation too; one of its strains is here")
        out |= {one.species: part for one, part in split.items() if part == "test"}
        split = {one: part for one, part in split.items() if part != "train" or one.species not in out}
    if "train" not in split.values():
        raise ConfigError("data.dna.genomes", "leaves no genome to train on")
    return split


def pieces(length: int, regions: int, fold: int) -> list[tuple[int, int, str]]:
    """(start, stop, split) that cover `length` bases, in order; neighbours are of different splits.

    A stretch is held out from the part FOLDS - 1 - fold mod FOLDS on, so fold 0 is the end of it.
    """
    cut: list[tuple[int, int, str]] = []
    for region in range(regions):
        start, stop = (length * i // regions for i in (region, region + 1))
        part = FOLDS - 1 - fold % FOLDS
        edges = [
            start + (stop - start) * i // (2 * FOLDS) for i in (0, 2 * part, 2 * part + 1, 2 * part + 2, 2 * FOLDS)
        ]
        for at, to, name in zip(edges, edges[1:], ("train", "validation", "test", "train"), strict=False):
            if at == to:
                continue
            if cut and cut[-1][2] == name:
                at = cut.pop()[0]
            cut.append((at, to, name))
    return cut


class Pieces:
    """The records of genomes, cut as a DnaConfig says; can be walked more than once."""

    def __init__(self, whole: Iterable[Document], split: Mapping[Genome, str], config: DataConfig):
        self._whole, self._split, self._config = whole, split, config

    def __iter__(self) -> Iterator[Document]:
        for record in self._whole:
            genome = Genome(*record.group.split(SEPARATOR))
            part = self._split.get(genome)
            if part is None:
                continue
            length = len(record.text)
            cut = [(0, length, part)]
            if part == "region":
                cut = pieces(length, self._config.dna.regions, self._config.split_seed)
            for start, stop, name in cut:
                place = f"{genome.name} {record.id}:{start + 1}-{stop}"
                yield Document(place, record.text[start:stop], f"{name}{SEPARATOR}{genome.name}")


@dataclass(frozen=True)
class Dna(Source):
    """What the sources of DNA share. Whole records are kept as array_record, and cut when they are read."""

    def root(self, config: DataConfig) -> Path:
        """The folder of the FASTA files."""
        raise NotImplementedError

    def paths(self, config: DataConfig) -> list[Path]:
        return files(self.root(config), SUFFIXES)

    def assigned(self, config: DataConfig) -> dict[Genome, str]:
        root = self.root(config)
        genomes = dict.fromkeys(genome_of(path.relative_to(root)) for path in self.paths(config))
        return assign(list(genomes), config.dna)

    def read(self, config: DataConfig) -> Iterator[Document]:
        """Whole records, a document each; the group is species and strain."""
        root = self.root(config)
        for path in self.paths(config):
            genome = genome_of(path.relative_to(root))
            try:
                for record in records(path):
                    yield Document(record.name, record.sequence, SEPARATOR.join(genome))
            except FastaError as error:
                raise ConfigError("data.source", str(error)) from None

    def documents(self, config: DataConfig, progress: Progress) -> Iterable[Document]:
        split = self.assigned(config)
        for genome, part in split.items():
            progress(f"{genome.name}: {PARTS[part]}")
        return Pieces(super().documents(config, progress), split, config)

    def split(self, sizes: Mapping[str, int], config: DataConfig) -> dict[str, str]:
        return {group: group.partition(SEPARATOR)[0] for group in sizes}

    def split_by(self, config: DataConfig) -> list[Any]:
        about = config.dna
        fold = config.split_seed % FOLDS if about.split == "region" else None
        return [about.genomes, about.split, about.regions, about.validation, about.test, fold, FOLDS, sorted(ALIASES)]


@dataclass(frozen=True)
class Genomes(Dna, Fetched):
    """The genomes of a package that scripts/fetch_data.py fetches."""

    def root(self, config: DataConfig) -> Path:
        return places.raw(config.source)

    def look(self, config: DataConfig) -> None:
        super().look(config)
        self.assigned(config)


@dataclass(frozen=True)
class FastaFolder(Dna):
    """The FASTA files of a folder of one's own: species/strain.fasta, or a genome a file."""

    def root(self, config: DataConfig) -> Path:
        return Path(config.folder).expanduser().absolute()

    def content(self, config: DataConfig) -> str | None:
        from experiments.data.digests import of_files

        root = self.root(config)
        return of_files(root, self.paths(config)) if root.is_dir() else None

    def look(self, config: DataConfig) -> None:
        root = self.root(config)
        if not root.is_dir():
            raise ConfigError("data.folder", f"{config.folder!r} is no folder{near(root)}")
        if not self.paths(config):
            problem = f"{config.folder!r} holds no FASTA (files that end in {', '.join(SUFFIXES)})"
            raise ConfigError("data.folder", problem)
        self.assigned(config)
