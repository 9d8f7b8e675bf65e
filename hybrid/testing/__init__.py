"""The contract of a sublayer as functions: what every kind is held to, by what it declares of itself.

    hybrid.testing.check("M")                                    # a kind under its default config
    hybrid.testing.check(kind, ModelConfig(pattern="Z", ...))    # one of your own, in your own tests

A check that fails raises AssertionError with what it found. They run in float64, on arrays of a few hundred numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hybrid.config import ModelConfig
from hybrid.sublayers import Kind
from hybrid.testing import stack, sublayer
from hybrid.testing.subject import Subject, example
from hybrid.validation import unknown

__all__ = ["CHECKS", "DEVICES", "STACK_CHECKS", "SUBLAYER_CHECKS", "Subject", "check", "example"]

SUBLAYER_CHECKS: dict[str, Callable[[Subject], None]] = {
    "reference": sublayer.check_reference,
    "masks": sublayer.check_masks,
    "causality": sublayer.check_causality,
    "reach": sublayer.check_reach,
    "packing": sublayer.check_packing,
    "lengths": sublayer.check_lengths,
    "chunks": sublayer.check_chunks,
    "state": sublayer.check_state,
    "left_padding": sublayer.check_left_padding,
    "initial": sublayer.check_initial,
    "precision": sublayer.check_precision,
}
STACK_CHECKS: dict[str, Callable[[Subject], None]] = {
    "compilation": stack.check_compilation,
    "transforms": stack.check_transforms,
    "capacity": stack.check_capacity,
    "dropout": stack.check_dropout,
    "sharding": stack.check_sharding,
    "sequence": stack.check_sequence,
}
CHECKS = {**SUBLAYER_CHECKS, **STACK_CHECKS}
DEVICES = ("sharding", "sequence")
"""Checks that need several devices."""


def check(kind: Kind | str, config: ModelConfig | None = None, only: Iterable[str] | None = None) -> None:
    """Holds a kind to the contract. config: a model whose pattern has the kind; None: a small one of its defaults.

    only: names of CHECKS. Left out, all of them run; those of DEVICES only where jax has 8 devices (simulated ones will
    do: XLA_FLAGS=--xla_force_host_platform_device_count=8).
    """
    import jax

    names = [name for name in CHECKS if name not in DEVICES or jax.device_count() >= 8] if only is None else list(only)
    subject = Subject(kind, config)
    for name in names:
        if name not in CHECKS:
            raise unknown("only", name, CHECKS, f"{name!r} is not a check")
        CHECKS[name](subject)
