"""`M`: the Mamba block with its selective scan (S6; Gu & Dao 2023, section 3 and algorithm 2).

The input matrix is discretised as dt * B (Euler), as the published code and weights have it, not by equation (4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.params import Param, fan_in_uniform, ones, uniform, zeros
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import Checked, ConfigError, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class MambaConfig(Checked):
    d_state: PositiveInt = 16
    """N, states a channel."""
    d_conv: PositiveInt = 4
    """Taps of the short convolution."""
    expand: PositiveInt = 2
    """d_inner / d_model."""
    dt_rank: PositiveInt | None = None
    """None: ceil(d_model / 16)."""
    dt_min: PositiveFloat = 0.001
    dt_max: PositiveFloat = 0.1
    dt_floor: PositiveFloat = 1e-4
    conv_bias: bool = True
    proj_bias: bool = False
    inner_norm: bool = False
    """RMSNorm of dt, B and C (Lieber et al. 2024, section 6.3)."""
    inner_norm_eps: PositiveFloat = 1e-6
    scan: Literal["auto", "associative", "sequential", "chunked"] = "auto"
    """The form of hybrid.ops.scan.selective_scan."""

    def check(self) -> None:
        if self.dt_min > self.dt_max:
            raise ConfigError("dt_min", f"{self.dt_min} is not allowed; must be at most dt_max = {self.dt_max}")


@struct
class MambaState:
    """Constant in length."""

    hidden: Any
    """(batch, d_inner, d_state), at least float32"""
    conv: Any
    """(batch, d_conv - 1, d_inner): the last inputs of the short convolution"""


def sizes(config: ModelConfig) -> tuple[int, int]:
    """(d_inner, dt_rank)."""
    return config.mamba.expand * config.d_model, config.mamba.dt_rank or math.ceil(config.d_model / 16)


def _a_log(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A = -(1, 2, ..., N) in every channel (S4D-Real, table 8)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=dtype)), shape)


def _dt_bias(low: float, high: float, floor: float) -> Any:
    """softplus(bias) is log-uniform between low and high, at least floor."""

    def make(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        dt = jnp.exp(jax.random.uniform(key, shape, dtype) * math.log(high / low) + math.log(low))
        dt = jnp.maximum(dt, floor)
        return dt + jnp.log(-jnp.expm1(-dt))

    return make


def spec(config: ModelConfig) -> dict[str, Any]:
    group, d_model = config.mamba, config.d_model
    d_inner, dt_rank = sizes(config)
    n = group.d_state
    depth = config.n_layers**-0.5 if config.residual_init == "depth" else 1.0
    inner = fan_in_uniform(d_inner)
    tree = {
        "in_x": Param((d_model, d_inner), ("embed", "inner"), fan_in_uniform(d_model)),
        "in_z": Param((d_model, d_inner), ("embed", "inner"), fan_in_uniform(d_model)),
        "conv": Param((group.d_conv, d_inner), (None, "inner"), fan_in_uniform(group.d_conv)),
        "x_proj": Param((d_inner, dt_rank + 2 * n), ("inner", None), inner),
        "dt_proj": Param((dt_rank, d_inner), (None, "inner"), uniform(dt_rank**-0.5)),
        "dt_bias": Param(
            (d_inner,), ("inner",), _dt_bias(group.dt_min, group.dt_max, group.dt_floor), False, "float32"
        ),
        "A_log": Param((d_inner, n), ("inner", None), _a_log, decay=False, dtype="float32"),
        "D": Param((d_inner,), ("inner",), ones, decay=False, dtype="float32"),
        "out": Param((d_inner, d_model), ("inner", "embed"), uniform(d_inner**-0.5 * depth)),
    }
    if group.conv_bias:
        tree["conv_bias"] = Param((d_inner,), ("inner",), fan_in_uniform(group.d_conv), decay=False)
    if group.proj_bias:
        tree["in_x_bias"] = Param((d_inner,), ("inner",), zeros, decay=False)
        tree["in_z_bias"] = Param((d_inner,), ("inner",), zeros, decay=False)
        tree["out_bias"] = Param((d_model,), ("embed",), zeros, decay=False)
    if group.inner_norm:
        tree["dt_norm"] = Param((dt_rank,), (None,), ones, decay=False)
        tree["B_norm"] = Param((n,), (None,), ones, decay=False)
        tree["C_norm"] = Param((n,), (None,), ones, decay=False)
    return tree


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    y, _ = _mix(config, params, x, None, context)
    return y, Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> MambaState:
    """d_inner (d_state precise + (d_conv - 1) compute) numbers a sequence, whatever its length."""
    d_inner, _ = sizes(config)
    return MambaState(
        hidden=jnp.zeros((batch, d_inner, config.mamba.d_state), jnp.promote_types(config.compute_dtype, "float32")),
        conv=jnp.zeros((batch, config.mamba.d_conv - 1, d_inner), config.compute_dtype),
    )


def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: MambaState, context: Context) -> tuple:
    """x, y: (batch, new tokens, d_model)."""
    y, state = _mix(config, params, x, state, context)
    return y, state, Aux()


def _mix(
    config: ModelConfig, params: Mapping[str, Any], x: Any, state: MambaState | None, context: Context
) -> tuple[Any, MambaState]:
    from hybrid.norms import rms_norm
    from hybrid.ops.linear import linear
    from hybrid.ops.scan import selective_scan
    from hybrid.ops.short_conv import causal_conv

    group = config.mamba
    _, dt_rank = sizes(config)
    if context.padding is not None:
        x = x * context.padding[..., None].astype(x.dtype)
    u = linear(x, params["in_x"], params.get("in_x_bias"))
    z = linear(x, params["in_z"], params.get("in_z_bias"))
    before = None if state is None else state.conv
    u, last = causal_conv(u, params["conv"], params.get("conv_bias"), initial=before, segment_ids=context.segment_ids)
    u = jax.nn.silu(u)
    if context.padding is not None:
        u = u * context.padding[..., None].astype(u.dtype)
    dt, b, c = jnp.split(linear(u, params["x_proj"]), [dt_rank, dt_rank + group.d_state], axis=-1)
    if group.inner_norm:
        dt = rms_norm(dt, params["dt_norm"], group.inner_norm_eps)
        b = rms_norm(b, params["B_norm"], group.inner_norm_eps)
        c = rms_norm(c, params["C_norm"], group.inner_norm_eps)
    precise = jnp.promote_types(x.dtype, jnp.float32)
    dt = jax.nn.softplus(linear(dt, params["dt_proj"]).astype(precise) + params["dt_bias"].astype(precise))
    a = -jnp.exp(params["A_log"].astype(precise))
    y, hidden = selective_scan(
        u, dt, a, b, c, params["D"].astype(precise), initial_state=None if state is None else state.hidden,
        segment_ids=context.segment_ids, form=group.scan,
    )  # fmt: skip
    y = linear(y.astype(x.dtype) * jax.nn.silu(z), params["out"], params.get("out_bias"))
    return y, MambaState(hidden=hidden, conv=last)


def reference(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
    """Algorithm 2 as a loop over positions, tap by tap; the state is forgotten where a document begins."""
    group, (d_inner, dt_rank) = config.mamba, sizes(config)
    batch, length, _ = x.shape
    real = jnp.ones((batch, length), x.dtype) if context.padding is None else context.padding.astype(x.dtype)
    document = jnp.zeros((batch, length), int) if context.segment_ids is None else context.segment_ids

    def bias(name: str) -> Any:
        return params.get(name, 0.0)

    def scaled(v: Any, scale: Any) -> Any:
        return v / jnp.sqrt(jnp.mean(v**2, axis=-1, keepdims=True) + group.inner_norm_eps) * scale

    def position(before: tuple[Any, Any, Any], now: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any, Any], Any]:
        inputs, documents, h = before  # the last inputs and their documents, newest last
        x, real, document = now
        x = x * real[:, None]
        inputs = jnp.concatenate([inputs[1:], (x @ params["in_x"] + bias("in_x_bias"))[None]])
        documents = jnp.concatenate([documents[1:], document[None]])
        u = bias("conv_bias")
        for tap in range(group.d_conv):
            u = u + params["conv"][tap] * jnp.where((documents[tap + 1] == document)[:, None], inputs[tap], 0.0)
        u = u / (1.0 + jnp.exp(-u)) * real[:, None]
        dt, b, c = jnp.split(u @ params["x_proj"], [dt_rank, dt_rank + group.d_state], axis=-1)
        if group.inner_norm:
            dt, b, c = scaled(dt, params["dt_norm"]), scaled(b, params["B_norm"]), scaled(c, params["C_norm"])
        dt = jnp.log1p(jnp.exp(dt @ params["dt_proj"] + params["dt_bias"]))
        h = jnp.where((documents[-2] == document)[:, None, None], h, 0.0)
        h = jnp.exp(-dt[:, :, None] * jnp.exp(params["A_log"])) * h + (dt * u)[:, :, None] * b[:, None, :]
        y = (h * c[:, None, :]).sum(-1) + params["D"] * u
        z = x @ params["in_z"] + bias("in_z_bias")
        return (inputs, documents, h), (y * z / (1.0 + jnp.exp(-z))) @ params["out"] + bias("out_bias")

    start = (
        jnp.zeros((group.d_conv, batch, d_inner), x.dtype),
        jnp.full((group.d_conv + 1, batch), -1, document.dtype),
        jnp.zeros((batch, d_inner, group.d_state), x.dtype),
    )
    _, y = jax.lax.scan(position, start, (x.swapaxes(0, 1), real.T, document.T))
    return y.swapaxes(0, 1)


KIND = Kind(
    symbol="M",
    group="mamba",
    config=MambaConfig,
    traits=lambda config: Traits(),
    spec=spec,
    apply=apply,
    reference=reference,
    state=state,
    extend=extend,
    counted={"scan": "sequential"},
)
