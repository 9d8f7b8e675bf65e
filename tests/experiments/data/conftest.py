"""A data folder and a folder of texts of the test's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from experiments.data.config import DataConfig

settings.register_profile("data", deadline=None)  # a loaded machine is no fault of an example
settings.load_profile("data")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder, empty."""
    monkeypatch.setenv("HYBRID_DATA", str(tmp_path / "home"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "home"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """40 documents of 100 to 400 characters, some of them not ASCII."""
    words = "the winter naïve of 语言 our discontent 🎭 made glorious\n summer".split(" ")
    source, folder = random.Random(7), tmp_path / "texts"
    for number in range(40):
        path = folder / f"{number % 3}" / f"{number:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number} " + " ".join(source.choices(words, k=source.randint(20, 70))), encoding="utf-8")
    return folder


@pytest.fixture
def config(texts: Path) -> Callable[..., DataConfig]:
    """A DataConfig over `texts`; keywords change it."""

    def make(**changes: object) -> DataConfig:
        values = {"source": "folder", "folder": str(texts), "seq_len": 16, "batch_size": 4, **changes}
        return DataConfig(**values)  # type: ignore[arg-type]

    return make
