"""Trials of a protocol, as few fields as it can do with."""

from __future__ import annotations

from typing import Any

from experiments.config import Trial, trial_from


def trial(protocol: str, source: str | None = None, pattern: str = "AA", **groups: Any) -> Trial:
    """groups: further fields, as data={"seq_len": 512}."""
    values = {"protocol": protocol, "model": {"pattern": pattern}, **({"data": {"source": source}} if source else {})}
    for name, fields in groups.items():
        values[name] = {**values.get(name, {}), **fields}
    return trial_from(values)
