"""`[A|M]`: branches side by side. They read the same input; their outputs are summed, or normalised and averaged.

The sum is Falcon-H1's form, the mean of normalised branches Hymba's (Dong et al. 2024, equation 3, with the learned
scale of each norm in the place of its vector beta).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid import pattern as language
from hybrid.lazy import struct
from hybrid.params import Param, ones
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import Checked, ConfigError

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class BranchesConfig(Checked):
    """Nothing of its own: how branches come together is the model's `merge`."""


@struct
class BranchesState:
    branches: tuple[Any, ...]


@functools.cache
def combine(sublayer: str) -> Kind:
    """The kind of a sublayer such as "[A|M]". Its parameters are those of the branches under "0", "1", ..."""
    symbols = language.branches(sublayer)

    def parts(config: ModelConfig) -> list[tuple[Kind, ModelConfig]]:
        return [config.sublayer(symbol) for symbol in symbols]

    def traits(config: ModelConfig) -> Traits:
        return joined([kind.traits(view) for kind, view in parts(config)])

    def check(config: ModelConfig) -> None:
        for kind, view in parts(config):
            kind.check(view)
            if kind.prepare is not None:
                raise ConfigError("pattern", f"{kind.symbol} ({kind.group}) is not allowed as a branch of {sublayer}")

    def spec(config: ModelConfig) -> dict[str, Any]:
        tree: dict[str, Any] = {str(i): kind.spec(view) for i, (kind, view) in enumerate(parts(config))}
        if config.merge == "mean":
            for i in range(len(symbols)):
                tree[f"norm_{i}"] = {"scale": Param((config.d_model,), ("embed",), ones, decay=False)}
        return tree

    def merged(config: ModelConfig, params: Mapping[str, Any], run: Callable[..., Any]) -> tuple[Any, Any]:
        """run(kind, view, params, i) -> (y, rest) of every branch; the merged y, and the rests."""
        from hybrid.norms import rms_norm

        outputs, rests = [], []
        for i, (kind, view) in enumerate(parts(config)):
            y, *rest = run(kind, view, params[str(i)], i)
            if config.merge == "mean":
                y = rms_norm(y, params[f"norm_{i}"]["scale"], config.norm_eps) / len(symbols)
            outputs.append(y)
            rests.append(rest)
        return functools.reduce(lambda a, b: a + b, outputs), rests

    def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
        y, rests = merged(config, params, lambda kind, view, own, _: kind.apply(view, own, x, context))
        return y, together([aux for (aux,) in rests])

    def state(config: ModelConfig, batch: int, capacity: int) -> BranchesState:
        made = [kind.state and kind.state(view, batch, capacity) for kind, view in parts(config)]
        return BranchesState(branches=tuple(made))

    def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: Any, context: Context) -> tuple:
        def run(kind: Kind, view: ModelConfig, own: Any, i: int) -> tuple:
            assert kind.extend is not None
            return kind.extend(view, own, x, state.branches[i], context)

        y, rests = merged(config, params, run)
        states, auxes = zip(*rests, strict=True)
        return y, BranchesState(branches=states), together(auxes)

    def reference(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
        total = 0.0
        for i, (kind, view) in enumerate(parts(config)):
            assert kind.reference is not None
            y = kind.reference(view, params[str(i)], x, context)
            if config.merge == "mean":
                power = (y**2).sum(-1, keepdims=True) / config.d_model
                y = y * (power + config.norm_eps) ** -0.5 * params[f"norm_{i}"]["scale"] / len(symbols)
            total = total + y
        return total

    return Kind(
        symbol=sublayer,
        group="branches",
        config=BranchesConfig,
        traits=traits,
        spec=spec,
        apply=apply,
        reference=reference,
        state=state,
        extend=extend,
        check=check,
    )


def joined(traits: list[Traits]) -> Traits:
    """What all branches together can say of themselves: the farthest reach, the least of the rest."""
    limits = [each.max_length for each in traits if each.max_length is not None]
    return Traits(
        mixer=any(each.mixer for each in traits),
        causal=all(each.causal for each in traits),
        reach=max((each.reach for each in traits), key=("none", "window", "global").index),
        packing="exact" if all(each.packing == "exact" for each in traits) else "refused",
        max_length=min(limits) if limits else None,
        decodable=all(each.decodable for each in traits),
        together=math.lcm(*(each.together for each in traits)),
        whole_rows=any(each.whole_rows for each in traits),
        chunk_exact=all(each.chunk_exact for each in traits),
    )


def together(auxes: Any) -> Aux:
    """One Aux of several branches. A branch's updates are named by its place: "1/bias"."""
    losses: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    updates: dict[str, Any] = {}
    for i, aux in enumerate(auxes):
        for name, value in aux.losses.items():
            losses[name] = losses[name] + value if name in losses else value
        for name, value in aux.metrics.items():
            metrics[name if name not in metrics else f"{name}_{i}"] = value
        updates |= {f"{i}/{name}": value for name, value in aux.updates.items()}
    return Aux(losses=losses, metrics=metrics, updates=updates)
