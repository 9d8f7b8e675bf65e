"""Puts the committed quick start into the README: its table between the markers, its figure in docs/images.

    python scripts/refresh_readme.py

A test holds the README to results/quickstart, so that the two cannot drift apart.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "results" / "quickstart"
FIGURE = ROOT / "docs" / "images" / "quickstart.png"
BEGIN, END = "<!-- results/quickstart -->", "<!-- end -->"
COLUMNS = ("arm", "stack", "parameters", "FLOPs/token", "test", "difference", "verdict")


def table() -> str:
    """The verdict table of results/quickstart in the README's columns, and what it says in words."""
    from experiments.report_text import HEADER, cells, conclusion, grid
    from experiments.results import load

    results = load(STUDY)
    data = results.table()
    places = [HEADER.index(name) for name in COLUMNS]
    rows = [[row[i] for i in places] for row in cells(data)]
    return "\n".join([*grid(COLUMNS, rows, code=1), *(f"- {line}" for line in conclusion(results, data))])


def readme(text: str) -> str:
    """The README with its table renewed."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.DOTALL)


def main() -> None:
    from experiments.figures import verdicts
    from experiments.results import load

    figure, _ = verdicts(load(STUDY))
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=160, metadata={"Software": None})
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
