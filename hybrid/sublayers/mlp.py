"""`-`: the dense MLP, a channel sublayer.

    y = down(f(up(x)))                relu, relu2, gelu, gelu_tanh, silu
    y = down(f(gate(x)) * up(x))      swiglu, geglu, geglu_tanh

ReLU (Vaswani et al. 2017), GELU (Hendrycks and Gimpel 2016; `gelu` is exact, `gelu_tanh` the approximation that GPT-2
and Gemma have), squared ReLU (So et al. 2021; Nemotron), gated units (Shazeer 2020).
"""

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

ActivationName = Literal["relu", "relu2", "gelu", "gelu_tanh", "silu", "swiglu", "geglu", "geglu_tanh"]


@dataclass(frozen=True)
class MlpConfig(Checked):
    """The width is the model's d_ff."""

    activation: ActivationName = "swiglu"
    bias: bool = False
    """On all its products, that of the gate too."""


@struct
class MlpState:
    """Nothing is carried."""


@dataclass(frozen=True)
class Activation:
    """f of the formulas above, and whether it is applied to a gate beside `up`."""

    function: Callable[[Any], Any]
    gated: bool = False

    def __call__(self, up: Any, gate: Any = None) -> Any:
        """up, gate: any one shape; the gate is given where the activation is gated."""
        return self.function(gate) * up if self.gated else self.function(up)


def gelu(x: Any) -> Any:
    """x Phi(x). With erf, as published models have it; jax.nn.gelu takes erfc, which XLA writes as 60 operations."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Any) -> Any:
    """The tanh approximation of GELU."""
    return 0.5 * x * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(lambda x: jax.nn.relu(x)),
    "relu2": Activation(lambda x: jnp.square(jax.nn.relu(x))),
    "gelu": Activation(gelu),
    "gelu_tanh": Activation(gelu_tanh),
    "silu": Activation(lambda x: jax.nn.silu(x)),
    "swiglu": Activation(lambda x: jax.nn.silu(x), gated=True),
    "geglu": Activation(gelu, gated=True),
    "geglu_tanh": Activation(gelu_tanh, gated=True),
}


def spec(config: ModelConfig) -> dict[str, Any]:
    inner, outer = (config.d_model, config.width_ff), (config.width_ff, config.d_model)
    into = ("up", "gate") if ACTIVATIONS[config.mlp.activation].gated else ("up",)
    tree = {name: Param(inner, ("embed", "mlp"), normal(config.init_std)) for name in into}
    tree["down"] = Param(outer, ("mlp", "embed"), normal(config.output_std))
    if config.mlp.bias:
        for name in into:
            tree[f"{name}_bias"] = Param((config.width_ff,), ("mlp",), zeros, decay=False)
        tree["down_bias"] = Param((config.d_model,), ("embed",), zeros, decay=False)
    return tree


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    from hybrid.ops.linear import linear

    hidden = [linear(x, params[name], params.get(f"{name}_bias")) for name in ("up", "gate") if name in params]
    return linear(ACTIVATIONS[config.mlp.activation](*hidden), params["down"], params.get("down_bias")), Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> MlpState:
    return MlpState()


def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: MlpState, context: Context) -> tuple:
    y, aux = apply(config, params, x, context)
    return y, state, aux


def _reference_gelu(x: Any) -> Any:
    from jax.scipy.stats import norm

    return x * norm.cdf(x)


REFERENCES: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: jnp.where(x > 0, x, 0.0),
    "relu2": lambda x: jnp.where(x > 0, x * x, 0.0),
    "gelu": _reference_gelu,
    # 1 + tanh(a) = 2 / (1 + exp(-2a))
    "gelu_tanh": lambda x: x / (1.0 + jnp.exp(-2.0 * jnp.sqrt(2.0 / jnp.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1.0 + jnp.exp(-x)),
}
"""The functions of the papers, written another way."""
REFERENCES |= {"swiglu": REFERENCES["silu"], "geglu": REFERENCES["gelu"], "geglu_tanh": REFERENCES["gelu_tanh"]}


def reference(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
    """The formulas of the papers."""
    f = REFERENCES[config.mlp.activation]
    up = x @ params["up"] + params.get("up_bias", 0.0)
    if "gate" in params:
        hidden = f(x @ params["gate"] + params.get("gate_bias", 0.0)) * up
    else:
        hidden = f(up)
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
