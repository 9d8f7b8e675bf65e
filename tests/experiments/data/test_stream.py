from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.data import check, fingerprint, load, meta, prepare, sources, stream, vocab_size
from experiments.data.config import DataConfig
from experiments.data.splits import SPLITS
from experiments.data.tokenizers import KINDS, BytePair
from hybrid.validation import ConfigError

TOKENIZERS = pytest.mark.parametrize("chosen", [{}, {"tokenizer": "bpe", "vocab_size": 300}], ids=["bytes", "bpe"])


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "documents.tsv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@TOKENIZERS
def test_streams_hold_every_document_once_behind_a_separator(chosen: dict, config, texts: Path) -> None:
    made = config(**chosen)
    folder = prepare(made)
    tokenizer = KINDS[made.tokenizer].load(folder, vocab_size(made))
    token_bytes = np.load(folder / "token_bytes.npy")
    seen = []
    for split in SPLITS:
        tokens, starts = np.load(folder / f"{split}.npy"), np.load(folder / f"{split}_documents.npy")
        assert tokens.dtype == np.uint16
        np.testing.assert_array_equal(np.flatnonzero(tokens == vocab_size(made) - 1), starts)
        rows = [row for row in table(folder) if row["split"] == split]
        for row, document in zip(rows, np.split(tokens, starts[1:].astype(int)), strict=True):
            text = (texts / row["id"]).read_text(encoding="utf-8")
            assert tokenizer.decode(document[1:]) == text
            assert token_bytes[document].sum() == int(row["bytes"]) == len(text.encode())
            seen.append(row["id"])
        about = meta(made)["splits"][split]
        assert about == {"documents": len(rows), "bytes": token_bytes[tokens].sum(), "tokens": len(tokens)}
    assert sorted(seen) == sorted(path.relative_to(texts).as_posix() for path in texts.rglob("*.txt"))


def test_no_text_is_in_two_splits(config, texts: Path) -> None:
    for number in range(10):  # a copy of ten texts under other names
        (texts / f"copy-{number}.md").write_bytes((texts / f"{number % 3}" / f"{number:02d}.txt").read_bytes())
    for split_seed in range(5):
        rows = table(prepare(config(split_seed=split_seed)))
        assert len(rows) == 50
        found = {split: {(texts / row["id"]).read_bytes() for row in rows if row["split"] == split} for split in SPLITS}
        assert not found["train"] & found["validation"]
        assert not found["train"] & found["test"]
        assert not found["validation"] & found["test"]


def test_bpe_learns_from_the_training_split_alone(config, texts: Path, monkeypatch) -> None:
    learnt: list[str] = []

    def spy(given, size):
        learnt.extend(given)
        return BytePair.train(learnt, size)

    monkeypatch.setitem(KINDS, "bpe", dataclasses.replace(KINDS["bpe"], train=spy))
    rows = table(prepare(config(tokenizer="bpe", vocab_size=300)))
    training = [(texts / row["id"]).read_text(encoding="utf-8") for row in rows if row["split"] == "train"]
    assert learnt == training
    assert len(training) < len(rows)


def test_the_fingerprint_changes_with_what_is_read_and_with_nothing_else(config, texts: Path) -> None:
    def after(**changes: object) -> str | None:
        prepare(config(**changes))
        return fingerprint(config(**changes))

    first = after()
    assert first is not None
    assert len(first) == 16
    for same in ({"seq_len": 8}, {"batch_size": 1}, {"packing": "documents"}, {"folder": f"{texts}/../texts"}):
        assert after(**same) == first
    bpe = {"tokenizer": "bpe", "vocab_size": 300}
    others = [after(split_seed=1), after(**bpe), after(**{**bpe, "vocab_size": 301})]
    path = texts / "0" / "00.txt"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    others.append(after())
    path.write_bytes(content)
    path.rename(texts / "0" / "renamed.txt")
    others.append(after())
    (texts / "0" / "renamed.txt").rename(path)
    assert len({first, *others}) == 6
    assert after() == first


def test_the_fingerprint_changes_with_the_rules_of_reading_and_of_the_tokenizer(config, monkeypatch) -> None:
    made = config()
    first = prepare(made)
    monkeypatch.setattr(stream, "FORMAT", stream.FORMAT + 1)
    assert fingerprint(made) is None
    monkeypatch.undo()
    monkeypatch.setenv("HYBRID_DATA", str(first.parents[1]))
    assert fingerprint(made) == meta(made)["fingerprint"]
    monkeypatch.setitem(sources.SOURCES, "folder", sources.Folder("", "", rules=2))
    assert fingerprint(made) is None


def test_preparing_again_reads_no_text(config, monkeypatch) -> None:
    folder = prepare(config())
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(sources.Source, "documents", lambda *_: pytest.fail("was read again"))
    assert prepare(config()) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_preparation_that_breaks_off_leaves_nothing_that_counts(config, home: Path) -> None:
    def broken(message: str) -> None:
        if message.startswith("train"):  # all streams are written by then
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config(), broken)
    assert fingerprint(config()) is None
    assert not [path for path in (home / "tokens").iterdir() if path.is_dir()]
    leftover = home / "tokens" / f".{stream._folder(config()).name}.unfinished"
    leftover.mkdir()  # of a process that was killed
    (leftover / "train.npy").write_bytes(b"half")
    for path in (home / "tfds").glob("*/hybrid_text/*"):  # and half of a data set
        path.rename(path.with_name("1.0.0.incomplete.ABC"))
    folder = prepare(config())
    assert not leftover.exists()
    assert [path.name for path in (home / "tfds").glob("*/hybrid_text/*")] == ["1.0.0"]
    assert len(np.load(folder / "train.npy")) > 100


def test_processes_that_prepare_at_once_make_one_whole_folder(config, home: Path) -> None:
    made = config()
    code = (
        "import sys; from experiments.data.config import DataConfig; from experiments.data import prepare;"
        f"print(prepare(DataConfig(source='folder', folder={made.folder!r}, seq_len=16, batch_size=4),"
        " lambda m: print(m, file=sys.stderr)))"
    )
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], answers
    assert {out for out, _ in answers} == {f"{prepare(made)}\n"}
    assert sum("tokenising" in told for _, told in answers) == 1
    check(made)


def test_a_source_that_changes_while_it_is_read_is_refused(config, texts: Path) -> None:
    def meddle(message: str) -> None:
        if message.startswith("tokenising"):
            (texts / "0" / "00.txt").write_text("other")

    with pytest.raises(ConfigError, match=r"data\.source: 'folder' changed while it was read"):
        prepare(config(), meddle)
    assert fingerprint(config()) is None


def test_a_data_folder_that_is_a_file_is_named(config, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYBRID_DATA", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"data\.source: .*file.*Not a directory.*HYBRID_DATA"):
        prepare(config())


@pytest.mark.parametrize("harm", ["cut", "gone", "longer"])
def test_damaged_token_files_are_refused_with_the_way_out(harm: str, config) -> None:
    path = prepare(config()) / "train.npy"
    if harm == "cut":
        os.truncate(path, path.stat().st_size - 100)
    elif harm == "gone":
        path.unlink()
    else:
        np.save(path, np.zeros(10**5, np.uint16))
    with pytest.raises(ConfigError, match=r"data\.source: the token files in .* are damaged .*remove that folder"):
        load(config(), seed=0, evaluation_sequences=1)


def test_a_catalogue_data_set_is_read_by_name(home: Path) -> None:
    import tensorflow_datasets as tfds

    config = DataConfig(source="tfds:imdb_reviews", seq_len=8, batch_size=2)
    with tfds.testing.mock_data(num_examples=60):
        folder = prepare(config)
        for field, problem in [("label", "holds no text; it is a ClassLabel"), ("txt", "did you mean 'text'")]:
            with pytest.raises(ConfigError, match=rf"data\.feature: '{field}'.*{problem}"):
                prepare(DataConfig(source="tfds:imdb_reviews", seq_len=8, batch_size=2, feature=field))
    assert folder.name.startswith("tfds_imdb_reviews-bytes-")
    assert len(table(folder)) == 60
    assert load(config, seed=0, evaluation_sequences=2).batch(3)["tokens"].shape == (2, 8)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("imdb_reveiws", "is not in the TFDS catalogue; did you mean 'imdb_reviews'"),
        ("imdb_reviews:99.0.0", "cannot be read: .*99.0.0"),
        ("../imdb", "cannot be read"),
    ],
)
def test_a_catalogue_name_that_cannot_be_read_is_refused(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.source: 'tfds:{name}' {problem}"):
        prepare(DataConfig(source=f"tfds:{name}", seq_len=8, batch_size=2))
