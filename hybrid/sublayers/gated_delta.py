"""`G`: Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, section 3.4; grouped heads as in Qwen3-Next).

Queries, keys and values are projections with a short convolution and SiLU each, queries and keys of length one; the
memory of each value head follows the gated delta rule (hybrid/ops/delta.py) with

    alpha = exp(-exp(A_log) softplus(x W_decay + dt_bias))        beta = sigmoid(x W_beta)

and what it answers goes through an RMSNorm of each head, times SiLU of a gate, to the output projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.params import Param, fan_in_uniform, ones, uniform, zeros
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.sublayers.mamba import log_uniform_steps
from hybrid.validation import Checked, ConfigError, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from hybrid.config import ModelConfig

UNIT_EPS = 1e-6
"""Added to the squared length of a query or key before it is divided by its root."""


@dataclass(frozen=True)
class GatedDeltaConfig(Checked):
    n_key_heads: PositiveInt | None = None
    """Heads of queries and keys; None: n_heads."""
    n_value_heads: PositiveInt | None = None
    """Heads of values, each with a memory; a multiple of the key heads. None: as many."""
    key_dim: PositiveInt | None = None
    """Of a head; None: 3/4 d_model / key heads, rounded down, which gives the sublayer a Mamba block's 6 d_model^2."""
    value_dim: PositiveInt | None = None
    """Of a head; None: so that all values have twice the width of all keys, rounded down."""
    d_conv: PositiveInt = 4
    """Taps of the short convolutions."""
    conv_bias: bool = False
    eigenvalues: Literal["positive", "signed"] = "positive"
    """Of the transition: beta up to 1, or up to 2 (Grazzi et al. 2024), with which it can count parity."""
    dt_min: PositiveFloat = 0.001
    dt_max: PositiveFloat = 0.1
    dt_floor: PositiveFloat = 1e-4
    """Initial steps, as Mamba's; initial exp(A_log) are uniform up to 16."""
    form: Literal["auto", "sequential", "chunked"] = "auto"
    """The form of hybrid.ops.delta."""
    chunk: PositiveInt | None = None
    """Positions a chunk; None: by platform."""

    def check(self) -> None:
        if self.dt_min > self.dt_max:
            raise ConfigError("dt_min", f"{self.dt_min} is not allowed; must be at most dt_max = {self.dt_max}")

    def stand_ins(self, config: ModelConfig) -> dict[str, Any]:
        """What the fields that are not given stand for."""
        size = sizes(config)
        heads = {"n_key_heads": size.key_heads, "n_value_heads": size.value_heads}
        return {**heads, "key_dim": size.key_dim, "value_dim": size.value_dim}


@struct
class GatedDeltaState:
    """Constant in length."""

    memory: Any
    """(batch, value heads, key_dim, value_dim), at least float32"""
    query: Any
    """(batch, d_conv - 1, width): the last inputs of each short convolution"""
    key: Any
    value: Any


@dataclass(frozen=True)
class Sizes:
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int

    @property
    def widths(self) -> dict[str, int]:
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        return {"query": keys, "key": keys, "value": values}


def sizes(config: ModelConfig) -> Sizes:
    """Heads and widths; ConfigError where they do not fit."""
    group = config.gated_delta
    key_heads = group.n_key_heads or config.n_heads
    if key_heads is None:
        raise ConfigError("gated_delta.n_key_heads", "must be given where the model has no n_heads")
    value_heads = group.n_value_heads or key_heads
    if value_heads % key_heads:
        raise ConfigError(
            "gated_delta.n_value_heads", f"{value_heads} is not allowed; must be a multiple of {key_heads}"
        )
    key_dim = group.key_dim or max(1, 3 * config.d_model // (4 * key_heads))
    value_dim = group.value_dim or max(1, 2 * key_dim * key_heads // value_heads)
    return Sizes(key_heads, value_heads, key_dim, value_dim)


def check(config: ModelConfig) -> None:
    sizes(config)


def _a_log(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The logarithm of numbers uniform between 0.01 and 16."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 0.01, 16.0))


def spec(config: ModelConfig) -> dict[str, Any]:
    group, d_model, size = config.gated_delta, config.d_model, sizes(config)
    depth = config.n_layers**-0.5 if config.residual_init == "depth" else 1.0
    heads, values = size.value_heads, size.widths["value"]
    steps = log_uniform_steps(group.dt_min, group.dt_max, group.dt_floor)
    tree = {
        "gate": Param((d_model, values), ("embed", "heads"), fan_in_uniform(d_model)),
        "beta": Param((d_model, heads), ("embed", "heads"), fan_in_uniform(d_model)),
        "decay": Param((d_model, heads), ("embed", "heads"), fan_in_uniform(d_model)),
        "dt_bias": Param((heads,), ("heads",), steps, decay=False, dtype="float32"),
        "A_log": Param((heads,), ("heads",), _a_log, decay=False, dtype="float32"),
        "norm": Param((size.value_dim,), (None,), ones, decay=False),
        "out": Param((values, d_model), ("heads", "embed"), uniform(values**-0.5 * depth)),
    }
    for name, width in size.widths.items():
        axis = "heads" if name == "value" else "kv_heads"
        tree[name] = Param((d_model, width), ("embed", axis), fan_in_uniform(d_model))
        tree[f"{name}_conv"] = Param((group.d_conv, width), (None, axis), fan_in_uniform(group.d_conv))
        if group.conv_bias:
            tree[f"{name}_conv_bias"] = Param((width,), (axis,), zeros, decay=False)
    return tree


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    y, _ = _mix(config, params, x, None, context)
    return y, Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> GatedDeltaState:
    """A matrix of key_dim x value_dim a value head, and the tails of the convolutions, whatever the length."""
    size = sizes(config)
    tails = {
        name: jnp.zeros((batch, config.gated_delta.d_conv - 1, width), config.compute_dtype)
        for name, width in size.widths.items()
    }
    shape = (batch, size.value_heads, size.key_dim, size.value_dim)
    return GatedDeltaState(memory=jnp.zeros(shape, jnp.promote_types(config.compute_dtype, "float32")), **tails)


def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: GatedDeltaState, context: Context) -> tuple:
    """x, y: (batch, new tokens, d_model)."""
    y, state = _mix(config, params, x, state, context)
    return y, state, Aux()


def _mix(
    config: ModelConfig, params: Mapping[str, Any], x: Any, state: GatedDeltaState | None, context: Context
) -> tuple[Any, GatedDeltaState]:
    from hybrid.norms import rms_norm
    from hybrid.ops.linear import linear
    from hybrid.ops.on_mesh import causal_conv, gated_delta_rule
    from hybrid.ops.short_conv import past_padding

    group, size, real = config.gated_delta, sizes(config), context.padding
    precise = jnp.promote_types(x.dtype, jnp.float32)
    streams, tails = {}, {}
    for name in size.widths:
        u = linear(x, params[name])
        before = None if state is None else getattr(state, name)
        if real is not None:
            u = u * real[..., None].astype(u.dtype)
            if before is not None:
                before, u = past_padding(before, u, real)
        u, tails[name] = causal_conv(
            u, params[f"{name}_conv"], params.get(f"{name}_conv_bias"), initial=before, segment_ids=context.segment_ids
        )
        heads = size.value_heads if name == "value" else size.key_heads
        streams[name] = jax.nn.silu(u).reshape(*x.shape[:2], heads, -1)
    q, k = (_unit(streams[name].astype(precise)) for name in ("query", "key"))
    beta = jax.nn.sigmoid(linear(x, params["beta"]).astype(precise))
    if group.eigenvalues == "signed":
        beta = 2.0 * beta
    step = jax.nn.softplus(linear(x, params["decay"]).astype(precise) + params["dt_bias"].astype(precise))
    log_decay = -jnp.exp(params["A_log"].astype(precise)) * step
    if real is not None:  # padding leaves the memory as it was
        beta, log_decay = (jnp.where(real[..., None], array, 0.0) for array in (beta, log_decay))
    answers, memory = gated_delta_rule(
        q * size.key_dim**-0.5, k, streams["value"].astype(precise), log_decay, beta,
        initial_state=None if state is None else state.memory, segment_ids=context.segment_ids,
        form=group.form, chunk=group.chunk,
    )  # fmt: skip
    gate = jax.nn.silu(linear(x, params["gate"]).astype(precise)).reshape(answers.shape)
    normal = rms_norm(answers, params["norm"], config.norm_eps) * gate
    y = linear(normal.reshape(*x.shape[:2], -1).astype(x.dtype), params["out"])
    return y, GatedDeltaState(memory=memory, **tails)


def _unit(x: Any) -> Any:
    """x / |x| over the last axis."""
    squares = jnp.einsum("...d,...d->...", x, x)[..., None]
    return x * jax.lax.rsqrt(squares + UNIT_EPS)


def reference(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
    """Position by position, head by head and tap by tap, the transition as a matrix."""
    group, size = config.gated_delta, sizes(config)
    batch, length, _ = x.shape
    real = jnp.ones((batch, length), bool) if context.padding is None else context.padding
    document = jnp.zeros((batch, length), int) if context.segment_ids is None else context.segment_ids
    most = {"positive": 1.0, "signed": 2.0}[group.eigenvalues]

    def sigmoid(v: Any) -> Any:
        return 1.0 / (1.0 + jnp.exp(-v))

    def unit(v: Any) -> Any:
        return v / jnp.sqrt((v**2).sum(-1, keepdims=True) + UNIT_EPS)

    def position(before: tuple[Any, Any, Any], now: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any, Any], Any]:
        inputs, documents, memory = before  # the last inputs and their documents, newest last
        x, real, document = now
        documents = jnp.concatenate([documents[1:], document[None]])
        streams, kept = {}, {}
        for name in size.widths:
            kept[name] = jnp.concatenate([inputs[name][1:], (x @ params[name] * real[:, None])[None]])
            u = params.get(f"{name}_conv_bias", 0.0)
            for tap in range(group.d_conv):
                seen = (documents[tap + 1] == document)[:, None]
                u = u + params[f"{name}_conv"][tap] * jnp.where(seen, kept[name][tap], 0.0)
            streams[name] = u * sigmoid(u)
        memory = jnp.where((documents[-2] == document)[:, None, None, None], memory, 0.0)
        outputs, new = [], []
        for head in range(size.value_heads):
            shared = head * size.key_heads // size.value_heads
            columns = slice(shared * size.key_dim, (shared + 1) * size.key_dim)
            q, k = unit(streams["query"][:, columns]), unit(streams["key"][:, columns])
            own = slice(head * size.value_dim, (head + 1) * size.value_dim)
            beta = most * sigmoid(x @ params["beta"][:, head])[:, None, None]
            step = jnp.log1p(jnp.exp(x @ params["decay"][:, head] + params["dt_bias"][head]))
            alpha = jnp.exp(-jnp.exp(params["A_log"][head]) * step)[:, None, None]
            turn = jnp.eye(size.key_dim) - beta * k[:, :, None] * k[:, None, :]
            written = beta * k[:, :, None] * streams["value"][:, None, own]
            new.append(jnp.where(real[:, None, None], alpha * (turn @ memory[:, head]) + written, memory[:, head]))
            answer = (q[:, :, None] * new[-1]).sum(1) / size.key_dim**0.5
            power = (answer**2).mean(-1, keepdims=True)
            gate = x @ params["gate"][:, own]
            outputs.append(answer / jnp.sqrt(power + config.norm_eps) * params["norm"] * gate * sigmoid(gate))
        return (kept, documents, jnp.stack(new, axis=1)), jnp.concatenate(outputs, axis=-1) @ params["out"]

    start = (
        {name: jnp.zeros((group.d_conv, batch, width), x.dtype) for name, width in size.widths.items()},
        jnp.full((group.d_conv + 1, batch), -1, document.dtype),
        jnp.zeros((batch, size.value_heads, size.key_dim, size.value_dim), x.dtype),
    )
    _, y = jax.lax.scan(position, start, (x.swapaxes(0, 1), real.T, document.T))
    return y.swapaxes(0, 1)


KIND = Kind(
    symbol="G",
    group="gated_delta",
    config=GatedDeltaConfig,
    traits=lambda config: Traits(),
    spec=spec,
    apply=apply,
    reference=reference,
    state=state,
    extend=extend,
    check=check,
    counted={"form": "sequential"},
)
