"""The pages say what the committed results and the presets say."""

import pytest

from experiments.claims import CLAIMS
from experiments.reproduce import kept
from scripts import refresh_pages

MARKED = [page for page in refresh_pages.PAGES if refresh_pages.MARKED.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", MARKED, ids=[page.name for page in MARKED])
def test_tables_are_those_of_results_and_presets(page):
    text = page.read_text(encoding="utf-8")
    assert refresh_pages.renewed(text) == text


def test_every_committed_result_stands_on_a_page():
    told = {match[1] for page in MARKED for match in refresh_pages.MARKED.finditer(page.read_text(encoding="utf-8"))}
    assert "presets" in told
    tables = {name.removeprefix("results/") for name in told if name.startswith("results/")}
    claims = {kept(CLAIMS[name.removeprefix("claim ")]).name for name in told if name.startswith("claim ")}
    assert {folder.name for folder in (refresh_pages.ROOT / "results").iterdir()} <= tables | claims


@pytest.mark.parametrize("name", [name for _, _, name in refresh_pages.FIGURES])
def test_figure_is_there_and_stands_on_a_page(name):
    assert (refresh_pages.IMAGES / name).read_bytes().startswith(b"\x89PNG")
    assert any(f"images/{name}" in page.read_text(encoding="utf-8") for page in refresh_pages.PAGES)
