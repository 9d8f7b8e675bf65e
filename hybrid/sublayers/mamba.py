"""`M`: the Mamba block with its selective scan (S6; Gu & Dao 2023, section 3 and algorithm 2).

The input matrix is discretised as dt * B (Euler), as the published code and weights have it, not by equation (4).
`conv` and `selective` take parts away: what an ablation asks of the short convolution and of the selection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.params import Param, fan_in_uniform, normal, ones, uniform, zeros
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import Checked, ConfigError, PositiveFloat, PositiveInt, unknown

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


SELECTIVE = ("dt", "B", "C")


@dataclass(frozen=True)
class MambaConfig(Checked):
    d_state: PositiveInt = 16
    """N, states a channel."""
    conv: bool = True
    """Whether the short convolution stands before the scan; its activation stays."""
    d_conv: PositiveInt = 4
    """Taps of the short convolution."""
    selective: str | tuple[str, ...] = "dt,B,C"
    """Which of dt, B and C depend on the input, or "none" (section 4.6, table 7). The others are learned constants, B
    and C of each channel and state, as in S4D. Kept as one string in this order."""
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
        given = self.selective.split(",") if isinstance(self.selective, str) else self.selective
        names = [name.strip() for name in given if name.strip() not in ("", "none")]
        for name in names:
            if name not in SELECTIVE:
                raise unknown("selective", name, (*SELECTIVE, "none"), f"{name!r} is not allowed")
        object.__setattr__(self, "selective", ",".join(name for name in SELECTIVE if name in names) or "none")

    def selects(self, name: str) -> bool:
        """Whether `dt`, `B` or `C` depends on the input."""
        return name in self.selective.split(",")  # type: ignore[union-attr]


@struct
class MambaState:
    """Constant in length."""

    hidden: Any
    """(batch, d_inner, d_state), at least float32"""
    conv: Any
    """(batch, d_conv - 1, d_inner): the last inputs of the short convolution (none without one)"""


def sizes(config: ModelConfig) -> tuple[int, int]:
    """(d_inner, dt_rank)."""
    return config.mamba.expand * config.d_model, config.mamba.dt_rank or math.ceil(config.d_model / 16)


def taps(config: ModelConfig) -> int:
    """Of the short convolution; 1 where there is none."""
    return config.mamba.d_conv if config.mamba.conv else 1


def widths(config: ModelConfig) -> dict[str, int]:
    """Columns of `x_proj` that each selective parameter takes, in their order."""
    group, (_, dt_rank) = config.mamba, sizes(config)
    columns = {"dt": dt_rank, "B": group.d_state, "C": group.d_state}
    return {name: columns[name] for name in SELECTIVE if group.selects(name)}


def _a_log(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A = -(1, 2, ..., N) in every channel (S4D-Real, table 8)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=dtype)), shape)


def log_uniform_steps(low: float, high: float, floor: float) -> Any:
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
        "dt_bias": Param(
            (d_inner,), ("inner",), log_uniform_steps(group.dt_min, group.dt_max, group.dt_floor), False, "float32"
        ),
        "A_log": Param((d_inner, n), ("inner", None), _a_log, decay=False, dtype="float32"),
        "D": Param((d_inner,), ("inner",), ones, decay=False, dtype="float32"),
        "out": Param((d_inner, d_model), ("inner", "embed"), uniform(d_inner**-0.5 * depth)),
    }
    if group.conv:
        tree["conv"] = Param((group.d_conv, d_inner), (None, "inner"), fan_in_uniform(group.d_conv))
    if group.conv and group.conv_bias:
        tree["conv_bias"] = Param((d_inner,), ("inner",), fan_in_uniform(group.d_conv), decay=False)
    if columns := widths(config):
        tree["x_proj"] = Param((d_inner, sum(columns.values())), ("inner", None), inner)
    if "dt" in columns:
        tree["dt_proj"] = Param((dt_rank, d_inner), (None, "inner"), uniform(dt_rank**-0.5))
    for name, start in (("B", ones), ("C", normal(1.0))):  # S4D-Real's
        if name not in columns:
            tree[name] = Param((d_inner, n), ("inner", None), start, decay=False, dtype="float32")
    if group.proj_bias:
        tree["in_x_bias"] = Param((d_inner,), ("inner",), zeros, decay=False)
        tree["in_z_bias"] = Param((d_inner,), ("inner",), zeros, decay=False)
        tree["out_bias"] = Param((d_model,), ("embed",), zeros, decay=False)
    if group.inner_norm:
        for name, width in columns.items():
            tree[f"{name}_norm"] = Param((width,), (None,), ones, decay=False)
    return tree


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    y, _ = _mix(config, params, x, None, context)
    return y, Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> MambaState:
    """d_inner (d_state precise + (taps - 1) compute) numbers a sequence, whatever its length."""
    d_inner, _ = sizes(config)
    return MambaState(
        hidden=jnp.zeros((batch, d_inner, config.mamba.d_state), jnp.promote_types(config.compute_dtype, "float32")),
        conv=jnp.zeros((batch, taps(config) - 1, d_inner), config.compute_dtype),
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
    from hybrid.ops.on_mesh import causal_conv, selective_scan
    from hybrid.ops.short_conv import past_padding

    group, real = config.mamba, context.padding
    if real is not None:
        x = x * real[..., None].astype(x.dtype)
    u = linear(x, params["in_x"], params.get("in_x_bias"))
    z = linear(x, params["in_z"], params.get("in_z_bias"))
    last = None if state is None else state.conv
    if group.conv:
        if real is not None:
            u = u * real[..., None].astype(u.dtype)  # of a bias
            if last is not None:
                last, u = past_padding(last, u, real)
        u, last = causal_conv(u, params["conv"], params.get("conv_bias"), initial=last, segment_ids=context.segment_ids)
    u = jax.nn.silu(u)
    precise = jnp.promote_types(x.dtype, jnp.float32)
    chosen = {name: params[name].astype(precise) for name in ("B", "C") if name in params}
    if columns := widths(config):
        ends = list(itertools.accumulate(columns.values()))
        parts = jnp.split(linear(u, params["x_proj"]), ends[:-1], axis=-1)
        for name, part in zip(columns, parts, strict=True):
            chosen[name] = rms_norm(part, params[f"{name}_norm"], group.inner_norm_eps) if group.inner_norm else part
    step = linear(chosen["dt"], params["dt_proj"]).astype(precise) if "dt" in chosen else jnp.zeros(u.shape, precise)
    dt = jax.nn.softplus(step + params["dt_bias"].astype(precise))
    if real is not None:  # a step of length 0 leaves the state as it was
        dt = dt * real[..., None].astype(precise)
    a = -jnp.exp(params["A_log"].astype(precise))
    y, hidden = selective_scan(
        u, dt, a, chosen["B"], chosen["C"], params["D"].astype(precise),
        initial_state=None if state is None else state.hidden, segment_ids=context.segment_ids, form=group.scan,
    )  # fmt: skip
    y = linear(y.astype(x.dtype) * jax.nn.silu(z), params["out"], params.get("out_bias"))
    return y, MambaState(hidden=hidden, conv=u[:, :0] if last is None else last)


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
        inputs = jnp.concatenate([inputs[1:], ((x @ params["in_x"] + bias("in_x_bias")) * real[:, None])[None]])
        documents = jnp.concatenate([documents[1:], document[None]])
        u = inputs[-1]
        if group.conv:
            u = bias("conv_bias")
            for tap in range(group.d_conv):
                u = u + params["conv"][tap] * jnp.where((documents[tap + 1] == document)[:, None], inputs[tap], 0.0)
        u = u / (1.0 + jnp.exp(-u))
        chosen, at = {}, 0
        for name, width in (("dt", dt_rank), ("B", group.d_state), ("C", group.d_state)):
            if name not in group.selective.split(","):
                chosen[name] = params.get(name, jnp.zeros((1, 1)))[None]
                continue
            values = u @ params["x_proj"][:, at : at + width]
            at += width
            if group.inner_norm:
                values = scaled(values, params[f"{name}_norm"])
            chosen[name] = values @ params["dt_proj"] if name == "dt" else values[:, None, :]
        dt = jnp.log1p(jnp.exp(chosen["dt"].reshape(-1, chosen["dt"].shape[-1]) + params["dt_bias"])) * real[:, None]
        h = jnp.where((documents[-2] == document)[:, None, None], h, 0.0)
        h = jnp.exp(-dt[:, :, None] * jnp.exp(params["A_log"])) * h + (dt * u)[:, :, None] * chosen["B"]
        y = (h * chosen["C"]).sum(-1) + params["D"] * u
        z = x @ params["in_z"] + bias("in_z_bias")
        return (inputs, documents, h), (y * z / (1.0 + jnp.exp(-z))) @ params["out"] + bias("out_bias")

    start = (
        jnp.zeros((taps(config), batch, d_inner), x.dtype),
        jnp.full((taps(config) + 1, batch), -1, document.dtype),
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
