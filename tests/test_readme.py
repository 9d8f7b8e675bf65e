"""The README says what the committed results say, and the page of published models what the presets are."""

from pathlib import Path

from scripts import refresh_models, refresh_readme

ROOT = Path(__file__).resolve().parents[1]


def test_table_is_that_of_the_committed_quick_start():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert refresh_readme.BEGIN in text
    assert refresh_readme.readme(text) == text


def test_figure_is_there():
    assert refresh_readme.FIGURE.read_bytes().startswith(b"\x89PNG")


def test_the_page_of_published_models_has_the_counts_of_the_presets():
    text = refresh_models.PAGE.read_text(encoding="utf-8")
    assert refresh_models.BEGIN in text
    assert refresh_models.page(text) == text
