"""Puts the table of presets into docs/published_models.md: their patterns and counts, as this code has them.

    python scripts/refresh_models.py

A test holds the page to the presets, so that the two cannot drift apart.
"""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "published_models.md"
BEGIN, END = "<!-- presets -->", "<!-- end -->"


def table() -> str:
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


def page(text: str) -> str:
    """The page with its table renewed."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
