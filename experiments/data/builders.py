"""TFDS without TensorFlow: our texts are written as array_record files by a builder, and catalogue data sets are read.

TFDS's own download and extract steps need TensorFlow; so raw text is fetched and unpacked before the builder sees it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.data.documents import Document, Progress, document, plain_lines
from experiments.data.places import named_tfds
from hybrid.validation import ConfigError, nearest, unknown

if TYPE_CHECKING:
    from experiments.data.config import DataConfig


@functools.cache
def _builder_class() -> Any:
    import tensorflow_datasets as tfds

    class HybridText(tfds.core.GeneratorBasedBuilder):
        """Documents with an id and the group that is never cut between splits, in the order they were read."""

        VERSION = tfds.core.Version("1.0.0")

        def __init__(self, *, read: Callable[[], Iterable[Document]] = tuple, **options: Any):
            self._read = read
            super().__init__(**options)

        def _info(self) -> Any:
            text = tfds.features.Text
            features = tfds.features.FeaturesDict({"id": text(), "group": text(), "text": text()})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"documents": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
            for number, item in enumerate(self._read()):
                yield number, item._asdict()

    return HybridText


class TextDocuments:
    """The documents of a data set that `HybridText` wrote."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Document]:
        for number in range(len(self)):
            row = self._source[number]
            yield Document(_text(row["id"]), _text(row["text"]), _text(row["group"]))

    @classmethod
    def stored(cls, folder: Path, read: Callable[[], Iterable[Document]], progress: Progress) -> TextDocuments:
        """The data set in `folder`; written first, from the documents of `read()`, where it is not there yet."""
        with _quiet():
            builder = _builder_class()(read=lambda: _not_empty(read()), data_dir=folder, file_format="array_record")
            there = builder.is_prepared()
        if not there:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left; the caller is alone
            progress(f"writing {folder.name} as array_record")
            with _quiet():
                builder.download_and_prepare()
        return cls(builder.as_data_source("documents"))


class NamedDocuments:
    """All splits of a catalogue data set, one after another; empty texts are left out."""

    def __init__(self, config: DataConfig):
        builder = _named(config)
        self.feature = config.feature
        names = sorted(builder.info.splits) or ["train"]
        self._parts = [(name, builder.as_data_source(split=name)) for name in names]

    def __iter__(self) -> Iterator[Document]:
        for name, part in self._parts:
            for number in range(len(part)):
                text = plain_lines(_text(part[number][self.feature]))
                if text.strip():
                    yield document(f"{name}-{number}", text)


def prepare_named(config: DataConfig, progress: Progress) -> None:
    """Sees to it that the catalogue data set of `tfds:NAME` is on disk, or says in one line why it cannot be."""
    import tensorflow_datasets as tfds

    builder = _named(config)
    features = builder.info.features
    if config.feature not in features:
        raise unknown("data.feature", config.feature, list(features), f"{config.feature!r} is no feature")
    if not isinstance(features[config.feature], tfds.features.Text):
        kind = type(features[config.feature]).__name__
        raise ConfigError("data.feature", f"{config.feature!r} holds no text; it is a {kind}")
    with _quiet():
        there = builder.is_prepared()
    if there:
        return
    progress(f"preparing {config.source}")
    try:
        with _quiet():
            builder.download_and_prepare()
    except Exception as error:  # TFDS raises what its many data sets raise
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        problem = f"{config.source!r} is not in {named_tfds()} and could not be prepared there ({why}); "
        advice = "prepare it where TensorFlow is installed, with file_format='array_record', and copy its folder"
        raise ConfigError("data.source", problem + advice) from error


def _named(config: DataConfig) -> Any:
    import tensorflow_datasets as tfds

    name = config.source.removeprefix("tfds:")
    try:
        with _quiet():
            return tfds.builder(name, data_dir=named_tfds(), file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        near = nearest(name, tfds.list_builders(with_community_datasets=False))
        raise ConfigError("data.source", f"{config.source!r} is not in the TFDS catalogue{near}") from None
    except (ImportError, ValueError, AssertionError) as error:
        problem = f"{config.source!r} cannot be read: {str(error).splitlines()[0][:200]}"
        raise ConfigError("data.source", problem) from error


def _not_empty(documents: Iterable[Document]) -> Iterator[Document]:
    return (item for item in documents if item.text.strip())


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints bars whatever the terminal, and warns of every folder that is new; our progress says what matters."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    levels = {log: log.level for log in map(logging.getLogger, ("absl", "urllib3"))}
    try:
        for log in levels:
            log.setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)
