"""`D`: the Mamba-2 block (Dao & Gu 2024, section 7): state space duality, one decay a head, all projections parallel.

z, x, B, C and dt come from the input side by side; x, B and C go through the short convolution; B and C are shared by
the heads of a group; the output is gated by z and normalised. Falcon-H1 leaves the norm out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.params import Param, fan_in_uniform, ones, uniform, zeros
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.sublayers.mamba import log_uniform_steps
from hybrid.validation import Checked, ConfigError, NaturalFloat, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from hybrid.config import ModelConfig

STREAMS = ("x", "B", "C")
"""What the short convolution runs over."""


@dataclass(frozen=True)
class Mamba2Config(Checked):
    d_state: PositiveInt = 128
    """N, states a channel."""
    d_conv: PositiveInt = 4
    """Taps of the short convolution."""
    expand: PositiveInt = 2
    """d_inner / d_model, where d_inner is not given."""
    d_inner: PositiveInt | None = None
    """Channels of all heads; None: expand d_model."""
    head_dim: PositiveInt | None = None
    """P, channels a head; None: the greatest common divisor of 64 and d_inner / 2, for two heads at least."""
    n_groups: PositiveInt = 1
    """Pairs of B and C; each serves heads that follow one another."""
    a_min: PositiveFloat = 1.0
    """-A of a head starts uniform between a_min and a_max."""
    a_max: PositiveFloat = 16.0
    dt_min: PositiveFloat = 0.001
    """The steps start log-uniform between dt_min and dt_max, at least dt_floor."""
    dt_max: PositiveFloat = 0.1
    dt_floor: PositiveFloat = 1e-4
    dt_limit_min: NaturalFloat = 0.0
    """Steps are clipped to these limits, after softplus."""
    dt_limit_max: PositiveFloat | None = None
    """None: no limit."""
    conv_bias: bool = True
    proj_bias: bool = False
    """Of the projections from the input."""
    out_bias: bool = False
    norm: Literal["after_gate", "before_gate", "none"] = "after_gate"
    """RMSNorm(y silu(z)), RMSNorm(y) silu(z), or y silu(z)."""
    norm_groups: PositiveInt | None = None
    """Runs of channels that are normalised apart; None: n_groups."""
    norm_eps: PositiveFloat | None = None
    """None: the model's."""
    form: Literal["auto", "chunked", "sequential"] = "auto"
    """Of hybrid.ops.ssd.ssd."""
    chunk: PositiveInt | None = None
    """Positions that are multiplied at once; None: by platform."""

    def stand_ins(self, config: ModelConfig) -> dict[str, Any]:
        """What the fields that are None mean in this model."""
        size = sizes(config)
        return {
            "d_inner": size.d_inner,
            "head_dim": size.head_dim,
            "norm_groups": size.norm_groups,
            "norm_eps": config.norm_eps,
        }

    def check(self) -> None:
        for low, high in (("dt_min", "dt_max"), ("a_min", "a_max"), ("dt_limit_min", "dt_limit_max")):
            least, most = getattr(self, low), getattr(self, high)
            if most is not None and least > most:
                raise ConfigError(low, f"{least} is not allowed; must be at most {high} = {most}")


@struct
class Mamba2State:
    """Constant in length."""

    hidden: Any
    """(batch, heads, head_dim, d_state), at least float32"""
    conv: Any
    """The last d_conv - 1 inputs of the short convolution: {"x": (batch, d_conv - 1, d_inner), "B": ..., "C": ...}"""


@dataclass(frozen=True)
class Sizes:
    d_inner: int
    n_heads: int
    head_dim: int
    d_group: int
    """Width of B and of C: n_groups d_state."""
    norm_groups: int

    @property
    def streams(self) -> dict[str, int]:
        return {"x": self.d_inner, "B": self.d_group, "C": self.d_group}


def sizes(config: ModelConfig) -> Sizes:
    group = config.mamba2
    d_inner = group.d_inner or group.expand * config.d_model
    head_dim = group.head_dim or math.gcd(64, max(d_inner // 2, 1))
    return Sizes(
        d_inner, d_inner // head_dim, head_dim, group.n_groups * group.d_state, group.norm_groups or group.n_groups
    )


def check(config: ModelConfig) -> None:
    size = sizes(config)
    if size.d_inner % size.head_dim:
        raise ConfigError("mamba2.head_dim", f"{size.head_dim} is not allowed; must divide d_inner = {size.d_inner}")
    if size.n_heads % config.mamba2.n_groups:
        field, heads = config.mamba2.n_groups, size.n_heads
        raise ConfigError("mamba2.n_groups", f"{field} is not allowed; must divide the {heads} heads")
    if size.d_inner % size.norm_groups:
        allowed = f"must divide d_inner = {size.d_inner}"
        raise ConfigError("mamba2.norm_groups", f"{size.norm_groups} is not allowed; {allowed}")


def _a_log(low: float, high: float) -> Any:
    """-A uniform between low and high."""
    return lambda key, shape, dtype: jnp.log(jax.random.uniform(key, shape, dtype, low, high))


def spec(config: ModelConfig) -> dict[str, Any]:
    group, d_model, size = config.mamba2, config.d_model, sizes(config)
    depth = config.n_layers**-0.5 if config.residual_init == "depth" else 1.0
    # Heads are cut over devices; B and C, which all heads of a group read, are not.
    projections: dict[str, tuple[int, str | None]] = {
        "z": (size.d_inner, "inner"),
        "x": (size.d_inner, "inner"),
        "dt": (size.n_heads, "inner"),
    }
    projections |= dict.fromkeys(("B", "C"), (size.d_group, None))
    taps = fan_in_uniform(group.d_conv)
    tree = {}
    for name, (width, axis) in projections.items():
        tree[f"in_{name}"] = Param((d_model, width), ("embed", axis), fan_in_uniform(d_model))
        if group.proj_bias:
            tree[f"in_{name}_bias"] = Param((width,), (axis,), zeros, decay=False)
        if name in STREAMS:
            tree[f"conv_{name}"] = Param((group.d_conv, width), (None, axis), taps)
            if group.conv_bias:
                tree[f"conv_{name}_bias"] = Param((width,), (axis,), taps, decay=False)
    steps = log_uniform_steps(group.dt_min, group.dt_max, group.dt_floor)
    per_head = {"dt_bias": steps, "A_log": _a_log(group.a_min, group.a_max), "D": ones}
    for name, init in per_head.items():
        tree[name] = Param((size.n_heads,), ("inner",), init, decay=False, dtype="float32")
    if group.norm != "none":
        tree["norm"] = Param((size.d_inner,), ("inner",), ones, decay=False)
    tree["out"] = Param((size.d_inner, d_model), ("inner", "embed"), uniform(size.d_inner**-0.5 * depth))
    if group.out_bias:
        tree["out_bias"] = Param((d_model,), ("embed",), zeros, decay=False)
    return tree


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    y, _ = _mix(config, params, x, None, context)
    return y, Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> Mamba2State:
    """d_inner d_state precise numbers and (d_conv - 1)(d_inner + 2 n_groups d_state) others, whatever the length."""
    size, taps = sizes(config), config.mamba2.d_conv - 1
    shape = (batch, size.n_heads, size.head_dim, config.mamba2.d_state)
    return Mamba2State(
        hidden=jnp.zeros(shape, jnp.promote_types(config.compute_dtype, "float32")),
        conv={name: jnp.zeros((batch, taps, width), config.compute_dtype) for name, width in size.streams.items()},
    )


def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: Mamba2State, context: Context) -> tuple:
    """x, y: (batch, new tokens, d_model). Padding stands before the tokens of a row."""
    y, state = _mix(config, params, x, state, context)
    return y, state, Aux()


def _mix(
    config: ModelConfig, params: Mapping[str, Any], x: Any, state: Mamba2State | None, context: Context
) -> tuple[Any, Mamba2State]:
    from hybrid.ops.linear import linear
    from hybrid.ops.on_mesh import causal_conv, ssd
    from hybrid.ops.short_conv import past_padding

    group, size = config.mamba2, sizes(config)
    rows = x.shape[:2]

    def hide(value: Any) -> Any:
        """Zero at padding: behind the projection, so that its bias is hidden too."""
        return value if context.padding is None else value * context.padding[..., None].astype(value.dtype)

    def project(name: str) -> Any:
        return linear(x, params[f"in_{name}"], params.get(f"in_{name}_bias"))

    mixed, last = {}, {}
    for name in STREAMS:
        u, before = hide(project(name)), None if state is None else state.conv[name]
        if before is not None and context.padding is not None:
            before, u = past_padding(before, u, context.padding)
        taps, bias = params[f"conv_{name}"], params.get(f"conv_{name}_bias")
        u, last[name] = causal_conv(u, taps, bias, initial=before, segment_ids=context.segment_ids)
        mixed[name] = hide(jax.nn.silu(u))
    precise = jnp.promote_types(x.dtype, jnp.float32)
    dt = jax.nn.softplus(project("dt").astype(precise) + params["dt_bias"].astype(precise))
    dt = hide(jnp.clip(dt, group.dt_limit_min, group.dt_limit_max))
    per_group = (*rows, group.n_groups, group.d_state)
    y, hidden = ssd(
        mixed["x"].reshape(*rows, size.n_heads, size.head_dim), dt, -jnp.exp(params["A_log"].astype(precise)),
        mixed["B"].reshape(per_group), mixed["C"].reshape(per_group), params["D"].astype(precise),
        initial_state=None if state is None else state.hidden, segment_ids=context.segment_ids,
        form=group.form, chunk=group.chunk,
    )  # fmt: skip
    y = _gated(config, params.get("norm"), y.reshape(*rows, size.d_inner), project("z"))
    return linear(y, params["out"], params.get("out_bias")), Mamba2State(hidden=hidden, conv=last)


def _gated(config: ModelConfig, scale: Any, y: Any, z: Any) -> Any:
    """y (..., d_inner) gated by z, with the norm where the config has it; at least float32 inside."""
    from hybrid.ops.spread import spread

    group, groups = config.mamba2, sizes(config).norm_groups
    precise = jnp.promote_types(y.dtype, jnp.float32)
    wide, gate = y.astype(precise), jax.nn.silu(z.astype(precise))
    if group.norm != "before_gate":
        wide = wide * gate
    if group.norm != "none":
        parts = wide.reshape(*y.shape[:-1], groups, -1)
        power = jnp.einsum("...gd,...gd->...g", parts, parts)[..., None] / parts.shape[-1]
        wide = (parts * jax.lax.rsqrt(power + (group.norm_eps or config.norm_eps))).reshape(y.shape)
        wide = wide * spread(scale.astype(precise), y.shape)
    if group.norm == "before_gate":
        wide = wide * gate
    return wide.astype(y.dtype)


def reference(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
    """One position at a time, with the last inputs of the convolution in a list (no shared code with `apply`)."""
    group, size = config.mamba2, sizes(config)
    batch, length, _ = x.shape
    real = jnp.ones((batch, length), x.dtype) if context.padding is None else context.padding.astype(x.dtype)
    document = jnp.zeros((batch, length), jnp.int32) if context.segment_ids is None else context.segment_ids
    channel = jnp.arange(size.d_inner)
    head, part = channel // size.head_dim, channel // (size.d_inner // size.norm_groups)
    group_of_head = jnp.arange(size.n_heads) // (size.n_heads // group.n_groups)
    limit = jnp.inf if group.dt_limit_max is None else group.dt_limit_max

    def project(x: Any, name: str) -> Any:
        return x @ params[f"in_{name}"] + params.get(f"in_{name}_bias", 0.0)

    def silu(v: Any) -> Any:
        return v / (1.0 + jnp.exp(-v))

    def scaled(v: Any) -> Any:
        if group.norm == "none":
            return v
        same = part[:, None] == part[None, :]
        mean = (jnp.where(same, v[:, None, :] ** 2, 0.0)).sum(-1) / same.sum(-1)
        return v / jnp.sqrt(mean + (group.norm_eps or config.norm_eps)) * params["norm"]

    def position(before: tuple[Any, Any, Any], now: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any, Any], Any]:
        inputs, documents, h = before  # the last inputs and their documents, newest last
        x, real, document = now
        documents = jnp.concatenate([documents[1:], document[None]])
        inputs = {n: jnp.concatenate([old[1:], (project(x, n) * real[:, None])[None]]) for n, old in inputs.items()}
        mixed = {}
        for name, seen in inputs.items():
            value = params.get(f"conv_{name}_bias", 0.0)
            for tap in range(group.d_conv):
                near = (documents[tap + 1] == document)[:, None]
                value = value + params[f"conv_{name}"][tap] * jnp.where(near, seen[tap], 0.0)
            mixed[name] = silu(value) * real[:, None]
        dt = jnp.log1p(jnp.exp(project(x, "dt") + params["dt_bias"]))
        dt = jnp.minimum(jnp.maximum(dt, group.dt_limit_min), limit) * real[:, None]
        b, c = (mixed[n].reshape(batch, group.n_groups, group.d_state)[:, group_of_head] for n in ("B", "C"))
        h = jnp.where((documents[-2] == document)[:, None, None, None], h, 0.0)
        decay = jnp.exp(-dt * jnp.exp(params["A_log"]))
        drive = (dt[:, head] * mixed["x"]).reshape(batch, size.n_heads, size.head_dim)
        h = decay[:, :, None, None] * h + drive[..., None] * b[:, :, None, :]
        y = (h * c[:, :, None, :]).sum(-1).reshape(batch, size.d_inner) + params["D"][head] * mixed["x"]
        gate = silu(project(x, "z"))
        y = scaled(y) * gate if group.norm == "before_gate" else scaled(y * gate)
        return (inputs, documents, h), y @ params["out"] + params.get("out_bias", 0.0)

    start = (
        {name: jnp.zeros((group.d_conv, batch, width), x.dtype) for name, width in size.streams.items()},
        jnp.full((group.d_conv + 1, batch), -1, document.dtype),
        jnp.zeros((batch, size.n_heads, size.head_dim, group.d_state), x.dtype),
    )
    _, y = jax.lax.scan(position, start, (x.swapaxes(0, 1), real.T, document.T))
    return y.swapaxes(0, 1)


KIND = Kind(
    symbol="D",
    group="mamba2",
    config=Mamba2Config,
    traits=lambda config: Traits(),
    spec=spec,
    apply=apply,
    reference=reference,
    state=state,
    extend=extend,
    check=check,
    counted={"form": "chunked", "chunk": 64},  # what is counted does not go by platform
)
