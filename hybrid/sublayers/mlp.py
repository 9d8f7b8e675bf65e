"""`-`: the dense MLP, a channel sublayer. ReLU and GELU (Vaswani et al. 2017) or SwiGLU (Shazeer 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.params import Param, normal, zeros
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import Checked

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class MlpConfig(Checked):
    """The width is the model's d_ff."""

    activation: Literal["relu", "gelu", "swiglu"] = "swiglu"
    bias: bool = False


@struct
class MlpState:
    """Nothing is carried."""


ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda up: jax.nn.relu(up),
    # With erf, as published models have it; jax.nn.gelu takes erfc, which XLA writes out as 60 operations.
    "gelu": lambda up: 0.5 * up * (1.0 + jax.lax.erf(up * math.sqrt(0.5))),
    "swiglu": lambda up, gate: jax.nn.silu(gate) * up,
}


def spec(config: ModelConfig) -> dict[str, Any]:
    inner, outer = (config.d_model, config.width_ff), (config.width_ff, config.d_model)
    tree = {
        "up": Param(inner, ("embed", "mlp"), normal(config.init_std)),
        "down": Param(outer, ("mlp", "embed"), normal(config.output_std)),
    }
    if config.mlp.activation == "swiglu":
        tree["gate"] = Param(inner, ("embed", "mlp"), normal(config.init_std))
    if config.mlp.bias:
        tree["up_bias"] = Param((config.width_ff,), ("mlp",), zeros, decay=False)
        tree["down_bias"] = Param((config.d_model,), ("embed",), zeros, decay=False)
    return tree


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    from hybrid.ops.linear import linear

    hidden = [linear(x, params["up"], params.get("up_bias"))]
    if "gate" in params:
        hidden.append(linear(x, params["gate"]))
    return linear(ACTIVATIONS[config.mlp.activation](*hidden), params["down"], params.get("down_bias")), Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> MlpState:
    return MlpState()


def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: MlpState, context: Context) -> tuple:
    y, aux = apply(config, params, x, context)
    return y, state, aux


def reference(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
    """The formulas of the papers."""
    from jax.scipy.special import erf

    up = x @ params["up"] + params.get("up_bias", 0.0)
    if config.mlp.activation == "relu":
        hidden = jnp.where(up > 0, up, 0.0)
    elif config.mlp.activation == "gelu":
        hidden = up * (1.0 + erf(up / math.sqrt(2.0))) / 2.0
    else:
        gate = x @ params["gate"]
        hidden = gate / (1.0 + jnp.exp(-gate)) * up
    return hidden @ params["down"] + params.get("down_bias", 0.0)


KIND = Kind(
    symbol="-",
    group="mlp",
    config=MlpConfig,
    traits=lambda config: Traits(mixer=False, reach="none"),
    spec=spec,
    apply=apply,
    reference=reference,
    state=state,
    extend=extend,
)
