"""Renews what pages say of results, claims and presets, between their markers, and their figures.

    python scripts/refresh_pages.py

Between `<!-- results/NAME -->` and `<!-- end -->` stands the table of results/NAME and what it says in words; after
`<!-- claim NAME -->` the findings of a claim on the study kept for it, after `<!-- claims -->` a line of each, after
`<!-- presets -->` the published models by name. A test holds the pages to all of them, so that nothing drifts apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.results import Results

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
IMAGES = ROOT / "docs" / "images"
FIGURES = (
    ("quickstart", "verdicts", "quickstart.png"),
    ("sharp_four", "response", "sharp_four.png"),
    ("zoology_mqar", "state", "zoology_mqar.png"),
    ("recall_ratio", "placement", "recall_ratio.png"),
    ("recall_depth", "curves", "recall_depth.png"),
    ("recall_placement", "curves", "recall_placement.png"),
    ("selective_copying", "curves", "selective_copying.png"),
    ("few_shot", "curves", "few_shot.png"),
    ("text_placement", "placement", "text_placement.png"),
)
"""Name of the kept study, function of experiments.figures, file in docs/images. Its data stands beside it as CSV."""
MARKED = re.compile("<!-- (results/[a-z_]+|claim [a-z-]+|claims|presets) -->.*?<!-- end -->", re.DOTALL)
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


def claim(name: str) -> str:
    """The findings of a claim on what is kept of its study, how small that was, and what it took."""
    from experiments.claims import CLAIMS
    from experiments.report_text import grid
    from experiments.reproduce import HEADER, cells, judged, kept

    about = CLAIMS[name]
    findings, study = judged(about, kept(about))
    lines = [f"Source: {about.source}.", "", *grid(HEADER, map(cells, findings))]
    if about.details is not None and study is not None:
        lines += about.details(study)
    scale = about.scales["cpu"]
    if scale.reduced:
        lines.append(f"Reduced protocol: {scale.reduced}.")
    if study is not None:
        floor = about.floor(study) if about.floor is not None else ""
        lines += [f"Noise floor: {floor}."] if floor else []
        lines.append(f"`python -m experiments.reproduce {name}`: {cost(study)}.")
    return "\n".join(lines)


def cost(study: Results) -> str:
    """Runs, and the sum of the minutes that they took, as they say themselves."""
    from experiments.results import digest

    minutes = study.runs["seconds"].sum() / 60
    return f"{len(study.runs)} runs ({digest(study.runs['id'])}), {minutes:.0f} minutes of one core in all"


def claims() -> str:
    """A row a claim whose study is kept, or that is computed."""
    from experiments.claims import CLAIMS
    from experiments.claims.claim import overall
    from experiments.reproduce import judged, kept

    lines = ["| claim | question | here | of its statements | |", "|---|---|---|---|---|"]
    for name, about in CLAIMS.items():
        if about.judge is not None and not kept(about).is_dir():
            continue
        findings, study = judged(about, kept(about))
        counts = Counter(finding.verdict for finding in findings)
        words = {"agrees": "agree", "undecided": "undecided", "disagrees": "disagree"}
        said = ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items() if counts[verdict])
        took = "nothing is trained" if study is None else cost(study)
        lines.append(f"| {name} | {about.about} | **{overall(findings)}** | {said} | {took} |")
    return "\n".join(lines)


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


MADE: dict[str, Callable[..., str]] = {"results": results, "claim": claim, "claims": claims, "presets": presets}
"""Kind of a marker -> what makes its text, given the marker's name where it has one."""


def renewed(text: str) -> str:
    """A page with all that is marked made again."""

    def make(match: re.Match[str]) -> str:
        what = match[1]
        kind, _, name = what.replace("/", " ", 1).partition(" ")
        made = MADE[kind](name) if name else MADE[kind]()
        return f"<!-- {what} -->\n{made}\n<!-- end -->"

    return MARKED.sub(make, text)


def main() -> None:
    from experiments import figures
    from experiments.results import load

    IMAGES.mkdir(parents=True, exist_ok=True)
    for study, function, name in FIGURES:
        figure, data = getattr(figures, function)(load(ROOT / "results" / study))
        figure.savefig(IMAGES / name, dpi=160, metadata={"Software": None})
        data.write_csv((IMAGES / name).with_suffix(".csv"))
    for page in PAGES:
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
