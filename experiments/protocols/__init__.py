"""Protocols: the values that a config leaves unset, as a paper ran its tasks, quirks included. The table; no jax.

    {"protocol": "zoology-iclr24", "model": {"pattern": "AA", "d_model": 64}, "optimizer": {"learning_rate": 1e-3}}

A field that the config sets stays as it is; what a protocol gave is written out in the run's config.json with all other
fields, so nothing is hidden and a frozen run does not ask again. `PROTOCOLS[name].quirks` says what is unusual about
the paper's way, `.differs` where this code does otherwise. One file a paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.protocols import h3, mad, mamba, ours, zoology
from experiments.protocols.mad import MAD_DECAYS, MAD_ROWS, MAD_SETTINGS
from experiments.protocols.protocol import Protocol
from experiments.protocols.zoology import STATE_MIX, STATE_SLICES
from hybrid.validation import ConfigError, unknown

__all__ = [
    "MAD_DECAYS", "MAD_ROWS", "MAD_SETTINGS", "PROTOCOLS", "STATE_MIX", "STATE_SLICES", "Protocol", "completed"
]  # fmt: skip

PROTOCOLS: dict[str, Protocol] = {
    "zoology-iclr24": zoology.FIGURE_2,
    "zoology-state": zoology.STATE,
    "mad": mad.MAD,
    "h3": h3.H3,
    "mamba-e1": mamba.MAMBA,
    "hybrid": ours.OURS,
}


def completed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a config and, where it names a protocol, what that gives for the fields that it leaves unset."""
    name = values.get("protocol") or ""
    if not name:
        return values
    if name not in PROTOCOLS:
        raise unknown("protocol", str(name), PROTOCOLS, f"{name!r} is not a known protocol")
    protocol = PROTOCOLS[name]
    whole = _copied(values)
    data = whole.setdefault("data", {})
    if protocol.tasks:
        source = data.setdefault("source", protocol.tasks[0])
        if source not in protocol.tasks:
            allowed = ", ".join(protocol.tasks)
            raise ConfigError("data.source", f"{source!r} is not allowed; {name} is about {allowed}")
    for field, value in protocol.values(_dotted(whole)).items():
        _set(whole, field, value)
    return whole


def _copied(values: Any) -> Any:
    return {name: _copied(value) for name, value in values.items()} if isinstance(values, Mapping) else values


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _set(values: dict[str, Any], field: str, value: Any) -> None:
    """Where nothing stands there."""
    *groups, leaf = field.split(".")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            return  # a dataclass or something wrong: the reader says
    values.setdefault(leaf, value)
