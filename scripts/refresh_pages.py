"""Renews what pages say of results and of presets, between their markers, and the figure of the README.

    python scripts/refresh_pages.py

`<!-- results/NAME -->` ... `<!-- end -->` holds the table of results/NAME and what it says in words, `<!-- presets -->`
... `<!-- end -->` the published models by name. A test holds the pages to both, so that nothing drifts apart.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
FIGURE = ROOT / "docs" / "images" / "quickstart.png"
MARKED = re.compile("<!-- (results/[a-z_]+|presets) -->.*?<!-- end -->", re.DOTALL)
COLUMNS = ("arm", "stack", "parameters", "FLOPs/token", "test", "difference", "verdict")


def results(name: str) -> str:
    """The verdict table of results/NAME, and its conclusion."""
    from experiments.report_text import HEADER, cells, conclusion, grid
    from experiments.results import load

    study = load(ROOT / "results" / name)
    data = study.table()
    places = [HEADER.index(column) for column in COLUMNS]
    rows = [[row[i] for i in places] for row in cells(data)]
    return "\n".join([*grid(COLUMNS, rows, code=1), *(f"- {line}" for line in conclusion(study, data))])


def presets() -> str:
    """A row a preset; notes below it."""
    from hybrid.accounting import parameters
    from hybrid.pattern import compact
    from hybrid.presets import PRESETS, preset

    lines = ["| preset | stack | parameters | of them a token uses | stated |", "|---|---|---|---|---|"]
    for name, entry in PRESETS.items():
        config = preset(name)
        counts = parameters(config)
        encoder = "" if config.encoder_config is None else f"`{compact(config.encoder_config.sequence)}` and "
        stack = f"{encoder}`{compact(config.sequence)}`".replace("|", "\\|")
        active = f"{counts.active:,}" if counts.active != counts.total else ""
        lines.append(f"| {name} | {stack} | {counts.total:,} | {active} | {entry.stated} |")
    notes = [f"- {name}: {entry.note}" for name, entry in PRESETS.items() if entry.note]
    return "\n".join([*lines, "", "Where ours is not what was published:", "", *notes])


def renewed(text: str) -> str:
    """A page with all that is marked made again."""

    def make(match: re.Match[str]) -> str:
        what = match[1]
        made = presets() if what == "presets" else results(what.removeprefix("results/"))
        return f"<!-- {what} -->\n{made}\n<!-- end -->"

    return MARKED.sub(make, text)


def main() -> None:
    from experiments.figures import verdicts
    from experiments.results import load

    figure, _ = verdicts(load(ROOT / "results" / "quickstart"))
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=160, metadata={"Software": None})
    for page in PAGES:
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
