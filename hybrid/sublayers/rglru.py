"""`L`: Griffin's recurrent block with the real-gated linear recurrent unit, RG-LRU (De et al. 2024, section 2.3, 2.4).

    y = (GeLU(x W_gate) * RGLRU(conv(x W_in))) W_out
    h[t] = a[t] h[t-1] + sqrt(1 - a[t]^2) (i[t] u[t])        a[t] = exp(-c softplus(p) r[t])

u is the convolution's output, and the gates i and r are sigmoids of block-diagonal projections of it. At a document's
first token (position 0) nothing enters and the input is not scaled: h = i u, as the published code has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.params import Param, fan_in_uniform, normal, zeros
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.validation import Checked, ConfigError, PositiveFloat, PositiveInt, Probability

if TYPE_CHECKING:
    from hybrid.config import ModelConfig

STEEPEST_ROOT = 1000.0
"""The greatest derivative of sqrt(1 - a^2); without a bound, a recurrence gate of zero would give no number."""


@dataclass(frozen=True)
class RglruConfig(Checked):
    width: PositiveInt | None = None
    """Channels of the recurrence; None: d_model."""
    blocks: PositiveInt | None = None
    """Of the gates' projections; None: n_heads."""
    d_conv: PositiveInt = 4
    """Taps of the short convolution."""
    c: PositiveFloat = 8.0
    min_radius: Probability = 0.9
    """Initial exp(-softplus(p)), whose squares are uniform between these two. (The published code; the paper has the
    c-th power of it in the same range.)"""
    max_radius: Probability = 0.999
    activation: Literal["gelu", "gelu_tanh"] = "gelu_tanh"
    """Of the gate's branch; `gelu_tanh` is the approximation that the published code has."""
    scan: Literal["auto", "sequential", "associative", "chunked"] = "auto"
    """The form of hybrid.ops.linear_recurrence."""

    def check(self) -> None:
        if not 0 < self.min_radius < self.max_radius:
            raise ConfigError("min_radius", f"{self.min_radius} is not allowed; must be above 0 and below max_radius")

    def stand_ins(self, config: ModelConfig) -> dict[str, Any]:
        """What the fields that are not given stand for."""
        width, blocks = sizes(config)
        return {"width": width, "blocks": blocks}


@struct
class RglruState:
    """Constant in length."""

    hidden: Any
    """(batch, width), at least float32"""
    conv: Any
    """(batch, d_conv - 1, width): the last inputs of the short convolution"""


def sizes(config: ModelConfig) -> tuple[int, int]:
    """(width, blocks of the gates); ConfigError where they do not fit."""
    group = config.rglru
    width, blocks = group.width or config.d_model, group.blocks or config.n_heads
    if blocks is None:
        raise ConfigError("rglru.blocks", "must be given where the model has no n_heads")
    if width % blocks:
        raise ConfigError("rglru.blocks", f"{blocks} is not allowed; must divide the width, {width}")
    return width, blocks


def check(config: ModelConfig) -> None:
    sizes(config)


def _rate(low: float, high: float) -> Any:
    """p with exp(-softplus(p)) = sqrt(u), u uniform between low^2 and high^2."""

    def make(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        squared = jax.random.uniform(key, shape, dtype, low**2, high**2)
        return jnp.log(jnp.expm1(-0.5 * jnp.log(squared)))

    return make


def spec(config: ModelConfig) -> dict[str, Any]:
    d_model, group = config.d_model, config.rglru
    width, blocks = sizes(config)
    depth = config.n_layers**-0.5 if config.residual_init == "depth" else 1.0
    per_block = width // blocks
    tree = {
        "in": Param((d_model, width), ("embed", "inner"), normal(d_model**-0.5)),
        "in_bias": Param((width,), ("inner",), zeros, decay=False),
        "gate": Param((d_model, width), ("embed", "inner"), normal(d_model**-0.5)),
        "gate_bias": Param((width,), ("inner",), zeros, decay=False),
        "conv": Param((group.d_conv, width), (None, "inner"), fan_in_uniform(group.d_conv)),
        "conv_bias": Param((width,), ("inner",), zeros, decay=False),
        "rate": Param((width,), ("inner",), _rate(group.min_radius, group.max_radius), False, "float32"),
        "out": Param((width, d_model), ("inner", "embed"), normal(width**-0.5 * depth)),
        "out_bias": Param((d_model,), ("embed",), zeros, decay=False),
    }
    for name in ("input", "recurrence"):
        tree[f"{name}_gate"] = Param((blocks, per_block, per_block), ("inner", None, None), normal(per_block**-0.5))
        tree[f"{name}_gate_bias"] = Param((width,), ("inner",), zeros, decay=False)
    return tree


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    y, _ = _mix(config, params, x, None, context)
    return y, Aux()


def state(config: ModelConfig, batch: int, capacity: int) -> RglruState:
    """width (1 precise + (d_conv - 1) compute) numbers a sequence, whatever its length."""
    width, _ = sizes(config)
    return RglruState(
        hidden=jnp.zeros((batch, width), jnp.promote_types(config.compute_dtype, "float32")),
        conv=jnp.zeros((batch, config.rglru.d_conv - 1, width), config.compute_dtype),
    )


def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: RglruState, context: Context) -> tuple:
    """x, y: (batch, new tokens, d_model)."""
    y, state = _mix(config, params, x, state, context)
    return y, state, Aux()


def _mix(
    config: ModelConfig, params: Mapping[str, Any], x: Any, state: RglruState | None, context: Context
) -> tuple[Any, RglruState]:
    from hybrid.ops.linear import linear
    from hybrid.ops.on_mesh import causal_conv, linear_recurrence
    from hybrid.ops.short_conv import past_padding

    group = config.rglru
    _, blocks = sizes(config)
    real, first = context.padding, context.positions == 0
    gate = linear(x, params["gate"], params["gate_bias"])
    gate = jax.nn.gelu(gate, approximate=group.activation == "gelu_tanh")
    u = linear(x, params["in"], params["in_bias"])
    before = None if state is None else state.conv
    if real is not None:
        first = first & real
        u = u * real[..., None].astype(u.dtype)
        if before is not None:
            before, u = past_padding(before, u, real)
    u, last = causal_conv(u, params["conv"], params["conv_bias"], initial=before, segment_ids=context.segment_ids)
    precise = jnp.promote_types(u.dtype, jnp.float32)

    def sigmoid_gate(name: str) -> Any:
        # Made precise before the product: XLA on a CPU has no batched one of bfloat16 with a float32 result.
        parts = u.reshape(*u.shape[:2], blocks, -1).astype(precise)
        weight = params[name].astype(u.dtype).astype(precise)
        mixed = jnp.einsum("blnk,nkm->blnm", parts, weight).reshape(u.shape)
        return jax.nn.sigmoid(mixed + params[f"{name}_bias"].astype(precise))

    log_a = -group.c * jax.nn.softplus(params["rate"].astype(precise)) * sigmoid_gate("recurrence_gate")
    # At a first token a = 0, which is the same as log a = -infinity: nothing is kept and the input is not scaled.
    a = jnp.where(first[..., None], 0.0, jnp.exp(log_a))
    scale = jnp.where(first[..., None], 1.0, bounded_sqrt(-jnp.expm1(2.0 * log_a)))
    driven = scale * sigmoid_gate("input_gate") * u.astype(precise)
    if real is not None:  # padding leaves the state as it was
        a, driven = jnp.where(real[..., None], a, 1.0), jnp.where(real[..., None], driven, 0.0)
    states, hidden = linear_recurrence(
        a, driven, initial_state=None if state is None else state.hidden, segment_ids=context.segment_ids,
        form=group.scan,
    )  # fmt: skip
    y = linear(states.astype(x.dtype) * gate, params["out"], params["out_bias"])
    return y, RglruState(hidden=hidden, conv=last)


def bounded_sqrt(x: Any) -> Any:
    """sqrt(x) whose derivative is at most STEEPEST_ROOT."""

    @jax.custom_jvp
    def root(x: Any) -> Any:
        return jnp.sqrt(x)

    @root.defjvp
    def slope(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
        y = jnp.sqrt(primals[0])
        return y, tangents[0] * 0.5 / jnp.maximum(y, 0.5 / STEEPEST_ROOT)

    return root(x)


def reference(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
    """Position by position, block by block and tap by tap, with a as a power of a sigmoid, as the paper writes it."""
    group, (width, blocks) = config.rglru, sizes(config)
    batch, length, _ = x.shape
    size = width // blocks
    real = jnp.ones((batch, length), bool) if context.padding is None else context.padding
    document = jnp.zeros((batch, length), int) if context.segment_ids is None else context.segment_ids

    def sigmoid(v: Any) -> Any:
        return 1.0 / (1.0 + jnp.exp(-v))

    def gelu(v: Any) -> Any:
        if group.activation == "gelu":
            return v * jax.scipy.stats.norm.cdf(v)
        return v * sigmoid(2.0 * jnp.sqrt(2.0 / jnp.pi) * (v + 0.044715 * v**3))

    def block_gate(name: str, u: Any) -> Any:
        parts = [u[:, n * size : (n + 1) * size] @ params[name][n] for n in range(blocks)]
        return sigmoid(jnp.concatenate(parts, axis=-1) + params[f"{name}_bias"])

    def position(before: tuple[Any, Any, Any], now: tuple[Any, Any, Any, Any]) -> tuple[tuple[Any, Any, Any], Any]:
        inputs, documents, h = before  # the last inputs and their documents, newest last
        x, real, document, first = now
        projected = (x @ params["in"] + params["in_bias"]) * real[:, None]
        inputs = jnp.concatenate([inputs[1:], projected[None]])
        documents = jnp.concatenate([documents[1:], document[None]])
        u = params["conv_bias"]
        for tap in range(group.d_conv):
            u = u + params["conv"][tap] * jnp.where((documents[tap + 1] == document)[:, None], inputs[tap], 0.0)
        base = sigmoid(-params["rate"])  # exp(-softplus(p))
        a = base ** (group.c * block_gate("recurrence_gate", u))
        gated = block_gate("input_gate", u) * u
        kept = jnp.where((documents[-2] == document)[:, None], a * h, 0.0)
        new = jnp.where(first[:, None], gated, kept + jnp.sqrt(1.0 - a**2) * gated)
        h = jnp.where(real[:, None], new, h)
        return (inputs, documents, h), (h * gelu(x @ params["gate"] + params["gate_bias"])) @ params["out"]

    start = (
        jnp.zeros((group.d_conv, batch, width), x.dtype),
        jnp.full((group.d_conv + 1, batch), -1, document.dtype),
        jnp.zeros((batch, width), x.dtype),
    )
    over_time = (x.swapaxes(0, 1), real.T, document.T, (context.positions == 0).T)
    _, y = jax.lax.scan(position, start, over_time)
    return y.swapaxes(0, 1) + params["out_bias"]


KIND = Kind(
    symbol="L",
    group="rglru",
    config=RglruConfig,
    traits=lambda config: Traits(),
    spec=spec,
    apply=apply,
    reference=reference,
    state=state,
    extend=extend,
    check=check,
    counted={"scan": "sequential"},
)
