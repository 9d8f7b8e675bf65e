from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data.fasta import FastaError, Record, records


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_records_are_read_in_any_case_and_line_length(packed: bool, tmp_path: Path) -> None:
    text = b"; a comment\n>one first of two\r\nACGT\r\nacgtn\r\n\r\nA C\tG\n>two\nRYSWKMBDHVu\nGATTACA"
    path = write(tmp_path / "genome.fa", gzip.compress(text) if packed else text)  # known by its bytes, not its name
    assert list(records(path)) == [
        Record("one", "one first of two", "ACGTACGTNACG"),
        Record("two", "two", "NNNNNNNNNNTGATTACA"),
    ]


@given(st.lists(st.text("ACGTN", min_size=1, max_size=90), min_size=1, max_size=4), st.integers(1, 30))
def test_what_is_written_is_read(sequences: list[str], width: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        text = ""
        for number, sequence in enumerate(sequences):
            lines = [sequence[at : at + width] for at in range(0, len(sequence), width)]
            text += f">r{number}\n" + "\n".join(lines) + "\n"
        path = write(Path(folder, "x.fasta"), text.encode())
        assert [(record.name, record.sequence) for record in records(path)] == [
            (f"r{number}", sequence) for number, sequence in enumerate(sequences)
        ]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b"ACGT\n>one\nA\n", 1, "bases before the first header"),
        (b">one\nACGT\nAC!T\n", 3, r"'!' in column 3 is no letter for a base"),
        (b">one\nACGT\nAC-T\n", 3, r"'-' in column 3 .*gaps of alignments are not read"),
        (b">protein\nMKLV\nPQE", 2, r"'L' in column 3"),
        (b">one\n>two\nA\n", 1, "the record 'one' has no bases"),
        (b">one\nA\n>two\n", 3, "the record 'two' has no bases"),
        (b">one\nA\n> \nA\n", 3, "a header without a name"),
        (b"", 0, "ends without a record"),
        (b"\n\n", 2, "ends without a record"),
        (b">one\nACGT\n\xff\xfe\n", 3, r"'ÿ' in column 1"),
    ],
)
def test_an_error_names_file_and_line(content: bytes, line: int, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.fasta", content)
    with pytest.raises(FastaError, match=rf"bad\.fasta, line {line}: .*{problem}"):
        list(records(path))


def test_a_gzip_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b">one\n" + b"ACGTTGCA\n" * 5000)
    path = write(tmp_path / "cut.fasta.gz", whole[: len(whole) // 2])
    with pytest.raises(FastaError, match=r"cut\.fasta\.gz, after line \d+: the gzip file is damaged"):
        list(records(path))
    harmed = bytearray(whole)
    harmed[-6] ^= 1  # of the checksum
    with pytest.raises(FastaError, match="the gzip file is damaged"):
        list(records(write(tmp_path / "harmed.fasta.gz", bytes(harmed))))


def test_records_are_made_one_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "two.fa", b">one\nACGT\n>two\nA!\n")
    reader = records(path)
    assert next(reader).name == "one"
    with pytest.raises(FastaError, match="line 4"):
        next(reader)
