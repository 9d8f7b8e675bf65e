"""`H`: Hyena, gated long convolutions whose filters are a small network of the position (Poli et al. 2023).

Two forms that the paper and its published code do not share. `order` N counts the gates:

`code`   the operator of the authors' repository and of the published weights: N streams and a value, gate then
         convolve N - 1 times, the first stream gates last. Each convolution has a skip.
`paper`  definition 3.1 and algorithm 3: convolve then gate, N times, no skip.

`filter` says where the taps come from: `implicit`, a network of the position (implicit_filter.py), or `modal`, sums of
decaying oscillations (StripedHyena; modal_filter.py), which take any length and decode from a state that does not grow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.params import Param, fan_in_uniform, normal
from hybrid.sublayers.implicit_filter import implicit_blocks, implicit_spec, implicit_taps, implicit_taps_reference
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.sublayers.modal_filter import modal_extend, modal_spec, modal_state, modal_taps, modal_taps_reference
from hybrid.validation import Checked, ConfigError, NaturalFloat, PositiveFloat, PositiveInt, at_least

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class HyenaConfig(Checked):
    filter_length: PositiveInt = 2048
    """Taps of implicit filters, and their longest sequence; a study sets it to its seq_len. Shorter inputs use a
    prefix."""
    order: Annotated[int, at_least(2)] = 2
    form: Literal["code", "paper"] = "code"
    filter: Literal["implicit", "modal"] = "implicit"
    modes: PositiveInt = 2
    """Poles of a modal filter, a channel."""
    short_conv: PositiveInt = 3
    """Taps of the short convolution of the streams."""
    emb_dim: Annotated[int, at_least(3)] = 5
    """Positional features: the time, and (emb_dim - 1) / 2 complex exponentials."""
    filter_width: PositiveInt = 64
    filter_layers: PositiveInt = 2
    """Hidden layers after the first."""
    sine_frequency: PositiveFloat = 10.0
    """The initial w of sin(w x); one learned vector serves all layers."""
    fast_decay: PositiveFloat = 0.3
    slow_decay: PositiveFloat = 1.5
    decay_target: PositiveFloat = 1e-2
    decay_shift: NaturalFloat = 0.0
    """Added to the window; HyenaDNA has 0.05."""
    feature_rate: NaturalFloat = 1e-5
    """Multiplies the learning rate of the positional features."""

    def check(self) -> None:
        if self.order > 4:
            raise ConfigError("order", f"{self.order} is not allowed; must be 2, 3 or 4")
        if self.emb_dim % 2 == 0:
            raise ConfigError("emb_dim", f"{self.emb_dim} is not allowed; must be odd: a time and pairs")
        if self.decay_target >= 1:
            raise ConfigError("decay_target", f"{self.decay_target} is not allowed; must be below 1")


@struct
class HyenaState:
    """All inputs so far: a long convolution has no shorter state. Grows with the capacity, as a cache does."""

    inputs: tuple[Any, ...]
    """For each long convolution (batch, d_model, capacity)"""
    conv: Any
    """(batch, short_conv - 1, streams d_model): the last inputs of the short convolution"""
    filled: Any
    """(batch,) int32"""


@struct
class ModalState:
    """Constant in length: the recurrences of modal filters."""

    modes: tuple[Any, ...]
    """For each long convolution (batch, d_model, modes, 2), at least float32"""
    conv: Any
    """(batch, short_conv - 1, streams d_model)"""


def long_convs(config: ModelConfig) -> int:
    return config.hyena.order - (1 if config.hyena.form == "code" else 0)


def spec(config: ModelConfig) -> dict[str, Any]:
    group, d = config.hyena, config.d_model
    streams, convs = (group.order + 1) * d, long_convs(config)
    depth = config.n_layers**-0.5 if config.residual_init == "depth" else 1.0
    tree = {
        "in": Param((d, streams), ("embed", "inner"), fan_in_uniform(d)),
        "in_bias": Param((streams,), ("inner",), fan_in_uniform(d), decay=False),
        "short": Param((group.short_conv, streams), (None, "inner"), fan_in_uniform(group.short_conv)),
        "short_bias": Param((streams,), ("inner",), fan_in_uniform(group.short_conv), decay=False),
        **(modal_spec(config, convs) if group.filter == "modal" else implicit_spec(config, convs)),
        "out": Param((d, d), ("inner", "embed"), lambda *a: depth * fan_in_uniform(d)(*a)),
        "out_bias": Param((d,), ("embed",), fan_in_uniform(d), decay=False),
    }  # fmt: skip
    if group.form == "code":
        tree["skip"] = Param((convs, d), (None, "inner"), normal(1.0), decay=False)
    return tree


_TAPS = {"implicit": implicit_taps, "modal": modal_taps}


def filters(config: ModelConfig, params: Mapping[str, Any], length: int) -> Any:
    """The first `length` taps of each long convolution: (convolutions, d_model, length), at least float32."""
    return _TAPS[config.hyena.filter](config, params, length)


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model), length at most filter_length. Long inputs go by blocks of channels."""
    from hybrid.ops.fftconv import channel_blocks
    from hybrid.ops.forms import note
    from hybrid.sharding import active_mesh

    blocks = 1 if active_mesh() is not None else channel_blocks(config.d_model, x.shape[0], x.shape[1])
    note("hyena", "whole" if blocks == 1 else f"blocks of {config.d_model // blocks} channels")
    if blocks == 1:
        return _whole(config, params, x, context), Aux()
    from hybrid.sublayers.hyena_blocks import mix, stacked

    hidden, own, taps = _BLOCK_TAPS[config.hyena.filter](config, params, x.shape[1], blocks)
    rows = stacked(config, params, own, blocks)
    y = mix(config, taps, x, hidden, rows, params["out"], context.padding, functools.partial(_gated, config))
    return y + params["out_bias"].astype(y.dtype), Aux()


def _whole(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
    """All channels at once."""
    from hybrid.ops.fftconv import fft_conv
    from hybrid.sharding import constrain, per_device

    streams, _ = _streams(config, params, x, None, context)
    kernels = constrain(filters(config, params, x.shape[1]), None, "channels", None)

    def convolve(i: int, u: Any) -> Any:
        channels = (kernels[i], params["skip"][i]) if "skip" in params else (kernels[i],)
        conv = per_device(
            fft_conv,
            [("batch", "channels", None), ("channels", None), ("channels",)][: 1 + len(channels)],
            ("batch", "channels", None),
        )
        return conv(u, *channels)

    return _gate(config, params, streams, convolve)


def _modal_blocks(config: ModelConfig, params: Mapping[str, Any], length: int, blocks: int) -> tuple:
    """The same of modal filters, which share no hidden layer."""
    from hybrid.sublayers.hyena_blocks import by_channels

    own = {name: by_channels(params[name], 1, blocks) for name in ("poles", "residues")}
    return None, own, lambda hidden, own: modal_taps(config, own, length)


_BLOCK_TAPS: dict[str, Callable[..., tuple]] = {"implicit": implicit_blocks, "modal": _modal_blocks}


def state(config: ModelConfig, batch: int, capacity: int) -> HyenaState | ModalState:
    """capacity d_model numbers for each long convolution: as much as a cache of keys alone. Modal: 2 modes d_model."""
    group, d = config.hyena, config.d_model
    if group.filter == "modal":
        conv = jnp.zeros((batch, group.short_conv - 1, (group.order + 1) * d), config.compute_dtype)
        return ModalState(modes=tuple(modal_state(config, batch) for _ in range(long_convs(config))), conv=conv)
    inputs = tuple(jnp.zeros((batch, d, capacity), config.compute_dtype) for _ in range(long_convs(config)))
    conv = jnp.zeros((batch, group.short_conv - 1, (group.order + 1) * d), config.compute_dtype)
    return HyenaState(inputs=inputs, conv=conv, filled=jnp.zeros((batch,), jnp.int32))


def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: Any, context: Context) -> tuple:
    """x, y: (batch, new tokens, d_model). A new token costs a product with all taps up to its position; if the filter
    is modal, a step of its recurrence."""
    return _EXTEND[config.hyena.filter](config, params, x, state, context)


def _extend_modal(config: ModelConfig, params: Mapping[str, Any], x: Any, state: ModalState, context: Context) -> tuple:
    streams, conv = _streams(config, params, x, state.conv, context)
    kernels = filters(config, params, x.shape[1])
    modes = list(state.modes)

    def convolve(i: int, u: Any) -> Any:
        skip = params["skip"][i] if "skip" in params else None
        y, modes[i] = modal_extend(params["poles"][i], params["residues"][i], kernels[i], skip, u, modes[i])
        return y

    y = _gate(config, params, streams, convolve)
    return y, ModalState(modes=tuple(modes), conv=conv), Aux()


def _extend_implicit(
    config: ModelConfig, params: Mapping[str, Any], x: Any, state: HyenaState, context: Context
) -> tuple:
    from hybrid.ops.fftconv import conv_tail

    capacity = state.inputs[0].shape[2]
    if x.shape[1] > capacity:
        raise ConfigError("capacity", f"the state has room for {capacity} tokens; {x.shape[1]} were given")
    streams, conv = _streams(config, params, x, state.conv, context)
    kernels = filters(config, params, capacity)
    inputs = list(state.inputs)

    def convolve(i: int, u: Any) -> Any:
        skip = params["skip"][i] if "skip" in params else None

        def row(history: Any, new: Any, filled: Any) -> tuple[Any, Any]:
            y = conv_tail(history[None].astype(new.dtype), new[None], kernels[i], skip, filled=filled)[0]
            return y, jax.lax.dynamic_update_slice_in_dim(history, new.astype(history.dtype), filled, 1)

        y, inputs[i] = jax.vmap(row)(inputs[i], u, state.filled)
        return y

    y = _gate(config, params, streams, convolve)
    return y, HyenaState(inputs=tuple(inputs), conv=conv, filled=state.filled + x.shape[1]), Aux()


_EXTEND: dict[str, Callable[..., tuple]] = {"implicit": _extend_implicit, "modal": _extend_modal}


def _streams(
    config: ModelConfig, params: Mapping[str, Any], x: Any, before: Any, context: Context
) -> tuple[list[Any], Any]:
    """The order + 1 streams, each (batch, d_model, length) with channels first, and the short convolution's tail."""
    from hybrid.ops.linear import linear
    from hybrid.ops.on_mesh import causal_conv
    from hybrid.sharding import constrain

    # Padding is zero on both sides of the short convolution, so that what stands in front of a row leaves no trace.
    real = None if context.padding is None else context.padding[..., None].astype(x.dtype)
    u = linear(x, params["in"], params["in_bias"])
    u = u if real is None else u * real
    u, last = causal_conv(u, params["short"], params["short_bias"], initial=before)
    u = u if real is None else u * real
    streams = jnp.split(u.swapaxes(1, 2), config.hyena.order + 1, axis=1)
    # In two steps: the second is an all-to-all of the devices that share the length.
    streams = [constrain(stream, "batch", "inner", "length") for stream in streams]
    return [constrain(stream, "batch", "channels", None) for stream in streams], last


def _gate(config: ModelConfig, params: Mapping[str, Any], streams: list[Any], convolve: Any) -> Any:
    """Gates and long convolutions in the order of the form, and the last product; (batch, length, d_model)."""
    from hybrid.ops.linear import linear
    from hybrid.sharding import constrain

    def around(i: int, v: Any, before: Any, after: Any) -> Any:
        y = convolve(i, v if before is None else v * before)
        return y if after is None else y * after

    v = _gated(config, streams, around)
    v = constrain(constrain(v, "batch", "channels", None), "batch", "inner", "length").swapaxes(1, 2)
    return linear(v, params["out"], params["out_bias"])


def _gated(config: ModelConfig, streams: list[Any], convolve: Callable[[int, Any, Any, Any], Any]) -> Any:
    """Gates and long convolutions in the order of the form. convolve: (which, v, gate before, gate after) -> v."""
    *gates, v = streams
    if config.hyena.form == "code":
        for i, gate in enumerate(reversed(gates[1:])):
            v = convolve(i, v, gate, gates[0] if i == len(gates) - 2 else None)
    else:
        for i, gate in enumerate(gates):
            v = convolve(i, v, None, gate)
    return v


_TAPS_REFERENCE = {"implicit": implicit_taps_reference, "modal": modal_taps_reference}


def reference(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
    """Each long convolution as a product with its Toeplitz matrix."""
    group, d = config.hyena, config.d_model
    batch, length, _ = x.shape
    taps = _TAPS_REFERENCE[group.filter](config, params, length)  # (length, convs d)

    def delayed(v: Any, steps: int) -> Any:
        return jnp.pad(v, ((0, 0), (steps, 0), (0, 0)))[:, :length]

    def long_conv(n: int, v: Any) -> Any:
        k = taps[:, n * d : (n + 1) * d]
        lag = jnp.arange(length)[:, None] - jnp.arange(length)[None]
        toeplitz = jnp.where(lag[..., None] >= 0, k[jnp.maximum(lag, 0)], 0.0)
        y = (toeplitz[None] * v[:, None]).sum(2)
        return y + params["skip"][n] * v if "skip" in params else y

    real = jnp.ones((batch, length)) if context.padding is None else context.padding
    projected = (x @ params["in"] + params["in_bias"]) * real[..., None]
    short = params["short_bias"]
    for back in range(group.short_conv):
        short = short + params["short"][group.short_conv - 1 - back] * delayed(projected, back)
    short = short * real[..., None]
    streams = [short[..., n * d : (n + 1) * d] for n in range(group.order + 1)]
    v = streams[-1]
    if group.form == "code":
        for n in range(group.order - 1):
            v = long_conv(n, v * streams[group.order - 1 - n])
        v = v * streams[0]
    else:
        for n in range(group.order):
            v = streams[n] * long_conv(n, v)
    return v @ params["out"] + params["out_bias"]


def traits(config: ModelConfig) -> Traits:
    longest = None if config.hyena.filter == "modal" else config.hyena.filter_length
    return Traits(packing="refused", whole_rows=True, max_length=longest)


KIND = Kind(
    symbol="H",
    group="hyena",
    config=HyenaConfig,
    traits=traits,
    spec=spec,
    apply=apply,
    reference=reference,
    state=state,
    extend=extend,
)
