"""docs/performance.md: the newest figures of each suite, and their history as ratios. Its words stand around markers.

Between `<!-- SUITE -->` and `<!-- end -->` stands the table of a suite, between `<!-- history -->` and `<!-- end -->`
one column a commit of every figure that has a bar, `<!-- about -->` holds commit, versions and machine.
"""

from __future__ import annotations

import re
from typing import Any

from benchmarks.history import ROOT, all_kept
from benchmarks.rows import Row, cells, number

PAGE = ROOT / "docs" / "performance.md"
COLUMNS = 8
"""Commits that the history shows."""
HEAD = (
    "| work | against | figure | quartiles | bar | ours, ms (CPU, busiest thread) | theirs |\n"
    "|---|---|---:|---:|---:|---:|---:|"
)


def renew() -> None:
    PAGE.write_text(renewed(PAGE.read_text(), all_kept()))


def renewed(text: str, kept: list[dict[str, Any]]) -> str:
    """The page with its tables made anew; a suite that was not measured keeps its place and says so."""

    def replace(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{_part(match[1], kept)}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


def _part(name: str, kept: list[dict[str, Any]]) -> str:
    if name == "about":
        return _about(kept)
    if name == "history":
        return _history(kept)
    holding = [one for one in kept if name in one["suites"]]
    if not holding:
        return "Not measured yet."
    suite = holding[-1]["suites"][name]
    rows = [_row(record) for record in suite["rows"]]
    lines = [HEAD, *("| " + " | ".join(cells(row)) + " |" for row in rows)]
    notes = [f"- {row.work}, {row.against or 'alone'}: {row.note}" for row in rows if row.note]
    words = f"Measured at commit {holding[-1]['commit']} in {suite['seconds']:.0f} s, {suite['measured']}."
    return "\n".join([words, "", *lines, *(["", *notes] if notes else [])])


def _row(record: dict[str, Any]) -> Row:
    return Row(**{name: value for name, value in record.items() if name not in ("function", "holds")})


def _about(kept: list[dict[str, Any]]) -> str:
    if not kept:
        return "Nothing was measured yet."
    newest = kept[-1]
    machine = newest["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    features = f" ({', '.join(machine['features'])})" if machine["features"] else ""
    return f"{machine['processor']}{features}, {machine['cores']} cores. {versions}."


def _history(kept: list[dict[str, Any]]) -> str:
    """Figures with a bar, one column a commit, newest last."""
    kept = kept[-COLUMNS:]
    figures: dict[tuple[str, str, str], dict[str, str]] = {}
    for one in kept:
        for row in (_row(record) for suite in one["suites"].values() for record in suite["rows"]):
            if row.bar:
                key = (row.work, row.against, row.bar)
                figures.setdefault(key, {})[one["commit"]] = f"{number(row.figure)} {row.unit}"
    commits = [one["commit"] for one in kept]
    head = f"| {' | '.join(('work', 'against', 'bar', *commits))} |\n|---|---|{'---:|' * (1 + len(commits))}"
    rows = [f"| {' | '.join((*key, *(at.get(commit, '') for commit in commits)))} |" for key, at in figures.items()]
    return "\n".join([head, *rows])
