"""Equal budgets: one width of a model is chosen so that it costs what it should. Parameters, FLOPs or bytes of state.

    model.match = dict(parameters=1_000_000, by="d_ff")          # as many parameters, within 3 %
    model.match = dict(flops=2_400_000, by="d_model")            # FLOPs of a training step, per token of data.seq_len
    model.match = dict(state_bytes=65_536, by="d_state", multiple=1)     # what decoding carries at data.seq_len

One budget can be equal; the other two are reported (a row of every verdict table, a column of --dry_run). Parameters
are counted without jax. FLOPs and state bytes are read from the traced program, about a second for each width tried,
so that the answer is kept in the cache folder, for as long as the code of `hybrid` stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from experiments.environment import cache_folder, prepare
from experiments.files import read_json, write_json
from experiments.versions import code
from hybrid import accounting
from hybrid.config import ModelConfig
from hybrid.validation import Checked, ConfigError, PositiveFloat, PositiveInt, plain

WIDEST = 2**16
"""Multiples of `match.multiple` that are tried at most."""


@dataclass(frozen=True)
class Match(Checked):
    """`by` is chosen so that the model has one of the budgets, within `tolerance`, in steps of `multiple`."""

    parameters: PositiveInt | None = None
    flops: PositiveInt | None = None
    """Of forward and backward pass per token, on average over a sequence of the trained length."""
    state_bytes: PositiveInt | None = None
    """Of decoding one sequence of the trained length."""
    by: Literal["d_ff", "d_model", "d_state"] = "d_ff"
    tolerance: PositiveFloat = 0.03
    multiple: PositiveInt = 8

    def check(self) -> None:
        if len(self.given) != 1:
            names = " and ".join(self.given) or "none"
            raise ConfigError("parameters", f"one of {', '.join(BUDGETS)} must be given, not {names}")
        if self.budget == "state_bytes" and self.by == "d_ff":
            raise ConfigError("by", "'d_ff' is not allowed with state_bytes, which do not depend on it")

    @property
    def given(self) -> list[str]:
        return [name for name in BUDGETS if getattr(self, name) is not None]

    @property
    def budget(self) -> str:
        """The name of the budget that is equal."""
        return self.given[0]

    @property
    def wanted(self) -> int:
        return getattr(self, self.budget)


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sequence; of what a decoder beside an encoder reads (None: there is none)."""

    read: int
    targets: int | None = None


Cost = Callable[[ModelConfig, Lengths], int]

BUDGETS: dict[str, Cost] = {
    "parameters": lambda model, lengths: accounting.parameters(model).total,
    "flops": lambda model, lengths: (
        accounting.flops(model, lengths.read, targets=lengths.targets).train // lengths.read
    ),
    "state_bytes": lambda model, lengths: accounting.state_bytes(model, lengths.targets or lengths.read),
}
"""Name of a budget -> its count. All but parameters load jax."""


def matched(fields: Mapping[str, Any], match: Match, lengths: Lengths) -> ModelConfig:
    """The ModelConfig whose `match.by` brings it nearest to the wanted budget (which grows with it); else ConfigError.

    fields: of ModelConfig, without what is chosen here.
    """
    widened = _d_state(fields) if match.by == "d_state" else (lambda value: {**fields, match.by: value})
    counted = match.budget != "parameters"

    def make(units: int) -> ModelConfig:
        return ModelConfig(**widened(units * match.multiple))

    def cost(units: int) -> int:
        return BUDGETS[match.budget](make(units), lengths)

    known = _look_up(fields, match, lengths) if counted else None
    if known is not None:
        return make(known)
    if counted:
        make(2)  # what is wrong with the model is said before jax is loaded
        if "jax" not in sys.modules:
            prepare()
    best, found = nearest(cost, match.wanted)
    if abs(found / match.wanted - 1) > match.tolerance:
        reach = f"nearest is {found} at {match.by} = {best * match.multiple}"
        raise ConfigError(f"match.{match.budget}", f"{match.wanted} cannot be reached by {match.by}; {reach}")
    if counted:
        write_json(_file(fields, match, lengths), {"units": best})
    return make(best)


def nearest(cost: Callable[[int], int], wanted: int) -> tuple[int, int]:
    """(units, their cost): the whole number from 1 whose cost is nearest to `wanted`, of a cost that grows.

    Doubling until it is passed; then straight lines and halves in turns, as a count takes a second.
    """
    low, high = 1, 2
    costs = {high: cost(high)}
    while costs[high] < wanted and high < WIDEST:
        low, high = high, 2 * high
        costs[high] = cost(high)
    if low not in costs:
        costs[low] = cost(low)
    straight = True
    while high - low > 1:
        between = (low + high) // 2
        if straight and costs[high] > costs[low]:
            guess = low + (high - low) * (wanted - costs[low]) // (costs[high] - costs[low])
            between = min(max(guess, low + 1), high - 1)
        costs[between] = cost(between)
        low, high = (between, high) if costs[between] <= wanted else (low, between)
        straight = not straight
    best = min((low, high), key=lambda units: abs(costs[units] - wanted))
    return best, costs[best]


def _d_state(fields: Mapping[str, Any]) -> Callable[[int], dict[str, Any]]:
    """Sets d_state in the group of every kind of the pattern that has one."""
    model = ModelConfig(**fields)
    groups = {kind.group for kind, _ in model.parts() if hasattr(getattr(model, kind.group, None), "d_state")}
    if not groups:
        raise ConfigError("match.by", f"'d_state' is not allowed; no sublayer of {model.pattern!r} has a d_state")
    return lambda value: {**fields, **{group: {**fields.get(group, {}), "d_state": value} for group in groups}}


# --- what was solved before -------------------------------------------------------------------------------------------


def _file(fields: Mapping[str, Any], match: Match, lengths: Lengths):
    about = plain({"fields": dict(fields), "match": match, "lengths": lengths})
    text = json.dumps(about, sort_keys=True, default=str)
    return cache_folder() / "matches" / code("hybrid") / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def _look_up(fields: Mapping[str, Any], match: Match, lengths: Lengths) -> int | None:
    try:
        return (read_json(_file(fields, match, lengths)) or {}).get("units")
    except ValueError:  # a damaged entry is solved again
        return None
