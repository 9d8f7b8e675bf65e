"""Where data lie on this machine. Nothing here reads or writes."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "HYBRID_DATA"
"""Environment variable that names the data folder; without it `data/` under the project's root."""


def root() -> Path:
    """The data folder: raw/ (as fetched), tfds/ (array_record files), tokens/ (flat streams)."""
    given = os.environ.get(VARIABLE)
    return Path(given).expanduser().absolute() if given else Path(__file__).resolve().parents[2] / "data"


def raw(source: str) -> Path:
    """What scripts/fetch_data.py unpacked."""
    return root() / "raw" / source


def tfds() -> Path:
    """Prepared TFDS data sets. TFDS's own variable wins for those that a person prepared elsewhere."""
    return root() / "tfds"


def named_tfds() -> Path:
    """Where data sets asked for by name are looked for."""
    given = os.environ.get("TFDS_DATA_DIR")
    return Path(given).expanduser().absolute() if given else tfds()


def tokens() -> Path:
    return root() / "tokens"


def weights() -> Path:
    """What scripts/fetch_weights.py unpacked."""
    return root() / "weights"
