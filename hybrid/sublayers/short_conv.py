"""`C`: a short causal depthwise convolution, the control of recall ablations: it mixes `width` positions and no more.

    gated      y = (x W + b) * conv(x)       BaseConv with a short filter (Arora et al. 2023, "Zoology", section 4)
    projected  y = conv(x W_in) W_out        a recurrence's convolution without the recurrence
    plain      y = conv(x)

Each factor of `gated`, and the convolution of the others, goes through `activation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.params import Param, fan_in_uniform, uniform
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import Checked, PositiveInt

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class ShortConvConfig(Checked):
    width: PositiveInt = 3
    """Taps: an output sees its own position and width - 1 before it."""
    form: Literal["gated", "projected", "plain"] = "gated"
    activation: Literal["none", "silu"] = "none"
    bias: bool = True
    """Of the convolution and of the projections."""

    @property
    def window(self) -> int:
        """The reach, its own position included."""
        return self.width


@struct
class ShortConvState:
    """Constant in length."""

    inputs: Any
    """(batch, width - 1, d_model): the last inputs of the convolution"""


_PROJECTIONS = {"gated": ("gate",), "projected": ("in", "out"), "plain": ()}


def _activate(config: ModelConfig, x: Any) -> Any:
    return jax.nn.silu(x) if config.short_conv.activation == "silu" else x


def spec(config: ModelConfig) -> dict[str, Any]:
    group, d_model = config.short_conv, config.d_model
    depth = config.n_layers**-0.5 if config.residual_init == "depth" else 1.0
    tree = {"conv": Param((group.width, d_model), (None, "embed"), fan_in_uniform(group.width))}
    for name in _PROJECTIONS[group.form]:
        bound = d_model**-0.5 * (depth if name == "out" else 1.0)
        axes = ("inner", "embed") if name == "out" else ("embed", "inner")
        tree[name] = Param((d_model, d_model), axes, uniform(bound))
        if group.bias:
            tree[f"{name}_bias"] = Param((d_model,), (axes[1],), fan_in_uniform(d_model), decay=False)
    if group.bias:
        tree["conv_bias"] = Param((d_model,), ("embed",), fan_in_uniform(group.width), decay=False)
    return tree


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    y, _ = _mix(config, params, x, None, context)
    return y, Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> ShortConvState:
    """(width - 1) d_model numbers a sequence, whatever its length."""
    return ShortConvState(jnp.zeros((batch, config.short_conv.width - 1, config.d_model), config.compute_dtype))


def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: ShortConvState, context: Context) -> tuple:
    """x, y: (batch, new tokens, d_model)."""
    y, state = _mix(config, params, x, state, context)
    return y, state, Aux()


def _mix(
    config: ModelConfig, params: Mapping[str, Any], x: Any, state: ShortConvState | None, context: Context
) -> tuple[Any, ShortConvState]:
    from hybrid.ops.linear import linear
    from hybrid.ops.on_mesh import causal_conv
    from hybrid.ops.short_conv import past_padding

    form = config.short_conv.form
    u = linear(x, params["in"], params.get("in_bias")) if form == "projected" else x
    before = None if state is None else state.inputs
    if context.padding is not None:
        u = u * context.padding[..., None].astype(u.dtype)
        if before is not None:
            before, u = past_padding(before, u, context.padding)
    y, last = causal_conv(
        u, params["conv"], params.get("conv_bias"), initial=before, segment_ids=context.segment_ids,
        channels="inner" if form == "projected" else None,
    )  # fmt: skip
    y = _activate(config, y)
    if form == "projected":
        y = linear(y, params["out"], params.get("out_bias"))
    elif form == "gated":
        y = y * _activate(config, linear(x, params["gate"], params.get("gate_bias")))
    return y, ShortConvState(last)


def reference(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
    """A sum over taps of the inputs shifted back, those of other documents and of padding left out."""
    group, (batch, length, _) = config.short_conv, x.shape
    real = jnp.ones((batch, length), bool) if context.padding is None else context.padding
    document = jnp.zeros((batch, length), int) if context.segment_ids is None else context.segment_ids

    def dense(name: str, v: Any) -> Any:
        return v @ params[name] + params.get(f"{name}_bias", 0.0)

    def active(v: Any) -> Any:
        return v / (1.0 + jnp.exp(-v)) if group.activation == "silu" else v

    u = dense("in", x) if group.form == "projected" else x
    total = params.get("conv_bias", jnp.zeros(config.d_model)) + jnp.zeros_like(u)
    for back in range(min(group.width, length)):
        now, then = slice(back, None), slice(None, length - back)
        seen = (document[:, now] == document[:, then]) & real[:, then]
        tap = params["conv"][group.width - 1 - back] * u[:, then]
        total = total.at[:, now].add(jnp.where(seen[..., None], tap, 0.0))
    y = active(total)
    if group.form == "projected":
        return dense("out", y)
    return y * active(dense("gate", x)) if group.form == "gated" else y


KIND = Kind(
    symbol="C",
    group="short_conv",
    config=ShortConvConfig,
    traits=lambda config: Traits(reach="window"),
    spec=spec,
    apply=apply,
    reference=reference,
    state=state,
    extend=extend,
)
