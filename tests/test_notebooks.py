"""The notebooks run to their end, and what is committed of them is what their sources say."""

import importlib.util
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
specification = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
execute = importlib.util.module_from_spec(specification)
specification.loader.exec_module(execute)
SOURCES = execute.sources(ROOT / "notebooks")


def told(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def outputs(notebook, kind):
    return [output for cell in notebook.cells for output in cell.get("outputs", ()) if kind in output.get("data", {})]


def test_there_are_notebooks():
    assert "quickstart" in [source.stem for source in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_committed_notebook_is_its_source_executed(source):
    kept = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(kept)
    assert told(kept) == told(jupytext.read(source))
    counts = [cell.execution_count for cell in kept.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert source.with_suffix(".ipynb").stat().st_size < 600_000


def test_the_notebook_runs_to_its_end_on_the_committed_results(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a key that the notebook must not see")
    source = Path(shutil.copy(ROOT / "notebooks" / "quickstart.py", tmp_path))
    made = nbformat.read(execute.execute(source, ROOT / "results" / "quickstart"), as_version=4)
    assert all(cell.execution_count for cell in made.cells if cell.cell_type == "code")
    assert len(outputs(made, "image/png")) == 5
    text = "".join(output.get("text", "") for cell in made.cells for output in cell.get("outputs", ()))
    assert "Before you believe it" in text and "WANDB_API_KEY is not set" in text
    assert "Warning" not in text


def test_a_cell_that_fails_is_an_error_and_leaves_no_notebook(tmp_path):
    source = tmp_path / "broken.py"
    source.write_text(f"{execute.HEADER}\n#   jupytext: {{}}\n# ---\n\n# %%\n1 / 0\n")
    assert execute.sources(tmp_path) == [source]
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute.execute(source, tmp_path)
    assert not source.with_suffix(".ipynb").exists()
