"""FASTA files, plain or gzip, one record at a time. Standard library only.

    >name of the record and whatever else
    ACGTNacgtn...            letters of IUPAC, in lines of any length

Bases come out in upper case: A C G T, and N for every letter that leaves a choice (R Y S W K M B D H V N). U is read as
T. Lower case (soft masking) is not kept.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIXES = tuple(f"{name}{packed}" for name in (".fasta", ".fa", ".fna") for packed in ("", ".gz"))
KNOWN, AMBIGUOUS = b"ACGT", b"NRYSWKMBDHV"
LETTERS = KNOWN + AMBIGUOUS + b"U"
_READ = bytes.maketrans(LETTERS + LETTERS.lower(), (KNOWN + b"N" * len(AMBIGUOUS) + b"T") * 2)
_BLANKS = b" \t\r\n\v\f"


class FastaError(ValueError):
    """A file that is no FASTA; the text begins with its name and line."""


class Record(NamedTuple):
    name: str
    """The first word of the header."""
    description: str
    """The whole header, without >."""
    sequence: str
    """A, C, G, T and N."""


def records(path: Path) -> Iterator[Record]:
    """The records of a file, in order, each made when it is asked for: memory is that of the longest one.

    Empty lines and lines that begin with ; are passed over. Raises FastaError for letters before the first header, a
    letter that is none of IUPAC, a header without a name or without bases, a file without records or cut short.
    """
    header, begun, number = None, 0, 0
    sequence = bytearray()
    for number, line in enumerate(_lines(path), 1):
        if line.startswith(b">"):
            if header is not None:
                yield _record(path, begun, header, sequence)
            header, begun, sequence = line[1:].strip(), number, bytearray()
        elif not line.startswith(b";"):
            bases = line.translate(_READ, _BLANKS)
            if bases and header is None:
                raise FastaError(f"{path}, line {number}: bases before the first header (a line that begins with >)")
            if bases.translate(None, KNOWN + b"N"):
                raise FastaError(f"{path}, line {number}: {_stranger(line)}")
            sequence += bases
    if header is None:
        raise FastaError(f"{path}, line {number}: the file ends without a record (a line that begins with >)")
    yield _record(path, begun, header, sequence)


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file; gzip is known by its first bytes, whatever the name."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    number = 0
    with gzip.open(path, "rb") if packed else open(path, "rb") as lines:
        try:
            for line in lines:
                number += 1
                yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FastaError(f"{path}, after line {number}: the gzip file is damaged ({error})") from error


def _record(path: Path, line: int, header: bytes, sequence: bytearray) -> Record:
    text = header.decode("utf-8", "replace")
    if not text:
        raise FastaError(f"{path}, line {line}: a header without a name")
    name = text.split()[0]
    if not sequence:
        raise FastaError(f"{path}, line {line}: the record {name!r} has no bases")
    return Record(name, text, sequence.decode("ascii"))


def _stranger(line: bytes) -> str:
    """The first letter of a line that is no base."""
    column, letter = next(
        (i, chr(byte)) for i, byte in enumerate(line, 1) if byte not in LETTERS + LETTERS.lower() + _BLANKS
    )
    gap = "; gaps of alignments are not read" if letter in "-." else ""
    return f"{letter!r} in column {column} is no letter for a base{gap}"
