"""The README says what the committed results say."""

from pathlib import Path

from scripts import refresh_readme

ROOT = Path(__file__).resolve().parents[1]


def test_table_is_that_of_the_committed_quick_start():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert refresh_readme.BEGIN in text
    assert refresh_readme.readme(text) == text


def test_figure_is_there():
    assert refresh_readme.FIGURE.read_bytes().startswith(b"\x89PNG")
