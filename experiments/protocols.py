"""Protocols: the values that a config leaves unset, as a paper ran its tasks. No jax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybrid.validation import unknown

PROTOCOLS: dict[str, Any] = {}


def completed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a config and, where it names a protocol, what that gives for the fields that it leaves unset."""
    name = values.get("protocol") or ""
    if not name:
        return values
    if name not in PROTOCOLS:
        raise unknown("protocol", str(name), PROTOCOLS, f"{name!r} is not a known protocol")
    return values
