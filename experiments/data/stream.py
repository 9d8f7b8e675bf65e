"""Tokenised once: documents -> one flat stream of tokens for each split, in a folder that is complete or not there.

tokens/<source>-<tokenizer>[-<vocab>]-<fingerprint>/
    train.npy  validation.npy  test.npy    uint16 (tokens,): separator, document, separator, document, ...
    train_documents.npy  ...               uint64 (documents,): where each document's separator stands
    token_bytes.npy                        int32 (vocab_size,)
    tokenizer.json                         of a BPE
    documents.tsv                          split, tokens, bytes, group and id of every document
    meta.json                              fingerprint, what it was made of, counts
"""

from __future__ import annotations

import contextlib
import csv
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from experiments.data import places
from experiments.data.documents import Document, Progress
from experiments.data.source import digest
from experiments.data.sources import find
from experiments.data.splits import SPLITS
from experiments.data.tokenizers import KINDS, Tokenizer, chunks
from experiments.data.turns import alone
from experiments.files import read_json, write_json
from hybrid.lazy import np
from hybrid.validation import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from experiments.data.config import DataConfig

FORMAT = 1
"""Raised when the files of a token folder change their meaning."""


def _tokens(config: DataConfig) -> int:
    """Tokens of the tokenizer, the separator among them; what an objective adds is in no file."""
    return KINDS[config.tokenizer].vocab_size(config)


def ingredients(config: DataConfig) -> dict[str, Any] | None:
    """All that decides the token files; None where the raw text is not on this machine."""
    source = find(config.source)
    content = source.content(config)
    if content is None:
        return None
    return {
        "format": FORMAT,
        "source": config.source,
        "content": content,
        "rules": source.rules,
        "tokenizer": config.tokenizer,
        "tokenizer_version": KINDS[config.tokenizer].version(),
        "vocab_size": _tokens(config),
        "split": source.split_by(config),
    }


def fingerprint(config: DataConfig) -> str | None:
    """16 hexadecimal digits that name the token files, or None while they are not prepared.

    They change with the raw text, the tokenizer, its size, the split and its seed; not with lengths, batch, packing
    nor with the objective, which are read from the same files.
    """
    folder = _folder(config)
    return folder.name.rpartition("-")[2] if folder is not None and (folder / "meta.json").is_file() else None


def prepare(config: DataConfig, progress: Progress = lambda message: None) -> Path:
    """The token folder of `config`, made if it is not there; raises ConfigError where the source cannot be had.

    Any number of processes may call it at once: one works and the others wait. A process killed in the middle leaves
    nothing that counts, and the next call starts again.
    """
    folder = _folder(config)
    if folder is not None and (folder / "meta.json").is_file():
        return folder
    source = find(config.source)
    source.look(config)
    try:
        with alone(places.tokens() / f".{_plain(config.source)}.lock"):
            source.require(config, progress)
            folder = _folder(config)
            assert folder is not None, "require() found the source"
            if not (folder / "meta.json").is_file():
                _write_whole(folder, config, progress)
            return folder
    except OSError as error:
        what = f"{error.filename or places.root()}: {error.strerror or error}"
        problem = f"{config.source!r} cannot be prepared ({what}); {places.VARIABLE} names the folder for data"
        raise ConfigError("data.source", problem) from error


def meta(config: DataConfig) -> dict[str, Any] | None:
    """The content of meta.json, None while nothing is prepared."""
    folder = _folder(config)
    return None if folder is None else read_json(folder / "meta.json")


def _folder(config: DataConfig) -> Path | None:
    made_of = ingredients(config)
    if made_of is None:
        return None
    size = f"-{config.vocab_size}" if config.vocab_size else ""
    return places.tokens() / f"{_plain(config.source)}-{config.tokenizer}{size}-{digest(made_of)[:16]}"


def _plain(source: str) -> str:
    """The source's name as a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", source)


def _write_whole(folder: Path, config: DataConfig, progress: Progress) -> None:
    """Makes `folder` appear in one rename."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed: we are alone
    unfinished.mkdir()
    try:
        _write(unfinished, config, progress)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(folder: Path, config: DataConfig, progress: Progress) -> None:
    """Fills `folder`; meta.json comes last."""
    made_of = ingredients(config)
    documents = find(config.source).documents(config, progress)
    sizes: dict[str, int] = {}
    for item in documents:
        sizes[item.group] = sizes.get(item.group, 0) + len(item.text.encode())
    split = find(config.source).split(sizes, config)

    kind = KINDS[config.tokenizer]
    progress(f"tokenising {config.source} with {config.tokenizer}")
    training = (item.text for item in documents if split[item.group] == "train")
    tokenizer = kind.train(training, _tokens(config))
    tokenizer.save(folder)
    np.save(folder / "token_bytes.npy", tokenizer.token_bytes())
    counts = _write_streams(folder, documents, split, tokenizer)
    for name, count in counts.items():
        progress(f"{name}: {count['documents']:,} documents, {count['bytes']:,} bytes, {count['tokens']:,} tokens")
    about = {"fingerprint": digest(made_of)[:16], "vocab_size": tokenizer.vocab_size, "splits": counts}
    if ingredients(config) != made_of:
        raise ConfigError("data.source", f"{config.source!r} changed while it was read; start again")
    write_json(folder / "meta.json", {**about, "made_of": made_of, "numpy": np.__version__})


def _write_streams(
    folder: Path, documents: Iterable[Document], split: dict[str, str], tokenizer: Tokenizer
) -> dict[str, dict[str, int]]:
    """Writes streams, offsets and documents.tsv; returns documents, bytes and tokens of each split."""
    counts = {name: {"documents": 0, "bytes": 0, "tokens": 0} for name in SPLITS}
    offsets: dict[str, list[int]] = {name: [] for name in SPLITS}
    separator = np.array([tokenizer.separator], np.uint16)
    with contextlib.ExitStack() as stack:
        streams = {name: stack.enter_context(_Stream(folder / f"{name}.npy")) for name in SPLITS}
        table = csv.writer(
            stack.enter_context(open(folder / "documents.tsv", "w", encoding="utf-8", newline="")),
            delimiter="\t",
            lineterminator="\n",
        )
        table.writerow(["split", "tokens", "bytes", "group", "id"])
        for part in chunks(documents):
            for item, tokens in zip(part, tokenizer.encode([item.text for item in part]), strict=True):
                name, size = split[item.group], len(item.text.encode())
                count = counts[name]
                offsets[name].append(count["tokens"])
                streams[name].write(separator)
                streams[name].write(tokens)
                count["documents"] += 1
                count["bytes"] += size
                count["tokens"] += 1 + len(tokens)
                table.writerow([name, 1 + len(tokens), size, item.group, item.id])
    for name in SPLITS:
        np.save(folder / f"{name}_documents.npy", np.asarray(offsets[name], np.uint64))
    return counts


class _Stream:
    """A .npy file of uint16 that grows: the header is written again, with the length, at the end."""

    def __init__(self, path: Path):
        self._path, self._count = path, 0

    def __enter__(self) -> _Stream:
        self._file: BinaryIO = open(self._path, "w+b")
        self._start = self._header()
        return self

    def write(self, tokens: NDArray[np.uint16]) -> None:
        self._file.write(tokens.astype("<u2", copy=False).tobytes())
        self._count += len(tokens)

    def _header(self) -> int:
        about = {"descr": "<u2", "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, about)
        return self._file.tell()

    def __exit__(self, *_exception: object) -> None:
        with self._file:
            self._file.seek(0)
            if self._header() != self._start:  # numpy leaves room for any length
                raise RuntimeError("the header of a .npy file changed its size")
