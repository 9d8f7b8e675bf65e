"""The code of README.md and of the pages of docs/ runs; blocks of a page share their names, as a reader types them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mktestdocs import check_md_file

from experiments.data.synthetic import TASKS
from hybrid import pattern
from hybrid.sublayers import KINDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.fixture(autouse=True)
def as_before(tmp_path, monkeypatch):
    """In an empty folder with data of its own, and what a page registers is gone after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYBRID_DATA", str(tmp_path / "data"))
    kinds, symbols, tasks = dict(KINDS), dict(pattern.SYMBOLS), dict(TASKS)
    yield
    for table, old in ((KINDS, kinds), (pattern.SYMBOLS, symbols), (TASKS, tasks)):
        table.clear()
        table.update(old)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_code_of_the_pages_runs(page):
    check_md_file(page, memory=True, lang="python")
