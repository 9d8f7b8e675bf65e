"""`E`: a mixture of experts, a channel sublayer in which a token goes through k of E MLPs.

    y = sum over the chosen e of w_e expert_e(x)  +  the shared experts(x)

The router's gates (Mixtral's, Jamba's, DeepSeek-V3's) are in hybrid/ops/routing.py. `dispatch` says how the copies of
tokens reach their experts:

`dropless`  sorted by expert, products of groups of any size. What `dense` gives, for k experts' work a token.
`capacity`  each expert has capacity_factor L k / E places in a row of L tokens; a token that finds one of its experts
            full does without it (Fedus et al. 2022, Lepikhin et al. 2021), and keeps the residual alone where all are.
            Earlier tokens come first, so that it stays causal; a row's tokens compete whatever document they are of.
`dense`     every expert computes every token: the definition, E / k times the work.

Experts are kept busy by a loss (`balance_loss`), by a bias in the choice that moves without a gradient (`bias_rate`,
Wang et al. 2024), or both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hybrid.lazy import jax, jnp, struct
from hybrid.params import Param, normal, zeros
from hybrid.sublayers.kind import Aux, Context, Kind, Traits
from hybrid.sublayers.mlp import ACTIVATIONS, REFERENCES, ActivationName
from hybrid.validation import Checked, ConfigError, NaturalFloat, NaturalInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from hybrid.config import ModelConfig
    from hybrid.ops.routing import Choice


@dataclass(frozen=True)
class MoeConfig(Checked):
    n_experts: PositiveInt = 8
    top_k: PositiveInt = 2
    d_ff: PositiveInt | None = None
    """Width of an expert; None: the model's d_ff."""
    activation: ActivationName = "swiglu"
    gate: Literal["mixtral", "jamba", "sigmoid"] = "mixtral"
    gate_scale: PositiveFloat = 1.0
    """Multiplies the weights of the chosen experts (DeepSeek-V3: 2.5)."""
    n_shared: NaturalInt = 0
    """Experts that every token goes through; one MLP of their widths together, which is their sum."""
    shared_d_ff: PositiveInt | None = None
    """Width of a shared expert; None: that of the others."""
    shared_gate: Literal["none", "sigmoid"] = "none"
    """`sigmoid`: the shared experts' output times sigmoid(x w) (Qwen2-MoE)."""
    balance_loss: NaturalFloat = 0.01
    """Coefficient of the load-balancing loss, which is 1 where the load is even, for any k."""
    z_loss: NaturalFloat = 0.0
    """Coefficient of the router's z-loss (ST-MoE: 1e-3)."""
    bias_rate: NaturalFloat | None = None
    """How far a step moves the bias of the choice (DeepSeek-V3: 1e-3); None: there is none."""
    dispatch: Literal["dropless", "capacity", "dense"] = "dropless"
    capacity_factor: PositiveFloat = 1.25
    form: Literal["auto", "blocks", "ragged"] = "auto"
    """Of the products of `dropless` (hybrid/ops/experts.py)."""

    def check(self) -> None:
        if self.top_k > self.n_experts:
            raise ConfigError("top_k", f"{self.top_k} is not allowed; there are {self.n_experts} experts")
        if self.shared_gate != "none" and not self.n_shared:
            raise ConfigError("shared_gate", f"{self.shared_gate!r} is not allowed without shared experts (n_shared)")


@struct
class MoeState:
    """Nothing is carried."""


def width(config: ModelConfig) -> int:
    """Of an expert."""
    return config.moe.d_ff or config.width_ff


def capacity(config: ModelConfig, length: int) -> int:
    """Places that each expert has in a row of `length` tokens; at most all of them."""
    group = config.moe
    return min(length, math.ceil(group.capacity_factor * length * group.top_k / group.n_experts))


def spec(config: ModelConfig) -> dict[str, Any]:
    group, d = config.moe, config.d_model
    experts, into = group.n_experts, ("up", "gate") if ACTIVATIONS[group.activation].gated else ("up",)
    start, end, used = normal(config.init_std), normal(config.output_std), group.top_k / experts

    def expert(shape: tuple[int, int], axes: tuple[str, str], init: Any) -> Param:
        return Param((experts, *shape), ("expert", *axes), init, used=used)

    tree: dict[str, Any] = {name: expert((d, width(config)), ("embed", "mlp"), start) for name in into}
    tree["down"] = expert((width(config), d), ("mlp", "embed"), end)
    tree["router"] = Param((d, experts), ("embed", None), start, dtype="float32")
    if group.bias_rate is not None:
        tree["balance_bias"] = Param((experts,), (None,), zeros, decay=False, dtype="float32", trainable=False)
    if group.n_shared:
        shared = group.n_shared * (group.shared_d_ff or width(config))
        tree["shared"] = {name: Param((d, shared), ("embed", "mlp"), start) for name in into}
        tree["shared"]["down"] = Param((shared, d), ("mlp", "embed"), end)
        if group.shared_gate == "sigmoid":
            tree["shared"]["router"] = Param((d, 1), ("embed", None), start)
    return tree


def router_logits(params: Mapping[str, Any], x: Any) -> Any:
    """(T, E) of x (T, d_model), in float32 whatever x and the platform's products are in."""
    precise = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x.astype(precise), params["router"].astype(precise), precision=jax.lax.Precision.HIGHEST)


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model). Padding goes to no expert and counts in no loss or metric."""
    from hybrid.ops.routing import choose

    group = config.moe
    rows = x.reshape(-1, x.shape[-1])
    real = (jnp.ones(x.shape[:2], bool) if context.padding is None else context.padding).reshape(-1)
    logits = router_logits(params, rows)
    choice = choose(logits, group.top_k, group.gate, params.get("balance_bias"))
    y, dropped = DISPATCH[group.dispatch](config, params, x, choice, real)
    y = y.astype(x.dtype)
    if "shared" in params:
        y = y + _shared(config, params["shared"], x)
    return y, _report(config, params, logits, choice, real, dropped)


def _report(
    config: ModelConfig, params: Mapping[str, Any], logits: Any, choice: Choice, real: Any, dropped: Any
) -> Aux:
    from hybrid.ops import routing

    group = config.moe
    shares = routing.load(choice.experts, real, group.n_experts)
    even = routing.balance(shares.astype(logits.dtype), choice.probabilities, real)
    z = routing.router_z(logits, real)
    terms = {"moe_balance": (group.balance_loss, even), "moe_z": (group.z_loss, z)}
    metrics = {
        "moe_balance": even,
        "moe_entropy": routing.mean_over(routing.entropy(choice.probabilities), real),
        "moe_load_entropy": routing.entropy(shares),
        "worst_moe_load": group.n_experts * shares.max(),
        "moe_dropped": dropped,
    }
    updates = {}
    if group.bias_rate is not None:
        behind = jnp.sign(1.0 / group.n_experts - shares)
        updates["balance_bias"] = params["balance_bias"] + group.bias_rate * behind
    losses = {name: coefficient * value for name, (coefficient, value) in terms.items() if coefficient}
    return Aux(losses=losses, metrics=jax.lax.stop_gradient(metrics), updates=jax.lax.stop_gradient(updates))


def _shared(config: ModelConfig, params: Mapping[str, Any], x: Any) -> Any:
    from hybrid.ops.linear import linear

    hidden = [linear(x, params[name]) for name in ("up", "gate") if name in params]
    y = linear(ACTIVATIONS[config.moe.activation](*hidden), params["down"])
    return y * jax.nn.sigmoid(linear(x, params["router"])) if "router" in params else y


# --- from tokens to experts and back ----------------------------------------------------------------------------------


def _dropless(config: ModelConfig, params: Mapping[str, Any], x: Any, choice: Choice, real: Any) -> tuple[Any, Any]:
    """On a mesh each device serves its own tokens with the experts, and the parts of them, that it has; what they give
    is added up over the devices that share the tokens."""
    from hybrid.ops.experts import grouped_linear, moved
    from hybrid.ops.routing import sorted_places
    from hybrid.sharding import RULES, per_device

    group, (batch, length, _) = config.moe, x.shape
    names = [name for name in ("up", "gate", "down") if name in params]

    def piece(x: Any, experts: Any, weights: Any, real: Any, *own: Any) -> Any:
        params = dict(zip(names, own, strict=True))
        here, hidden = params["up"].shape[0], params["up"].shape[2]
        experts, weights, real = (array.reshape(-1, *array.shape[2:]) for array in (experts, weights, real))
        shared = [*RULES["expert"]] if here < group.n_experts else []
        shared += RULES["mlp"] if hidden < width(config) else ()
        groups = here
        if here < group.n_experts:  # one group more, for choices that other devices serve
            experts = experts - here * jax.lax.axis_index(*RULES["expert"])
            experts, groups = jnp.where((experts >= 0) & (experts < here), experts, here), here + 1
        places, sizes = sorted_places(experts, real, groups)
        inputs = moved(x.reshape(-1, x.shape[-1]), places.token, places.slot)
        outputs = _experts(
            config, params, inputs, lambda rows, weight: grouped_linear(rows, weight, sizes[:here], group.form)
        )
        y = _weighed(outputs, places, weights * group.gate_scale).reshape(x.shape)
        return jax.lax.psum(y, tuple(shared)) if shared else y

    rows = ("batch", "length")
    into = [("expert", "mlp", None) if name == "down" else ("expert", None, "mlp") for name in names]
    axes = [(*rows, None), (*rows, None), (*rows, None), rows, *into]
    chosen = (choice.experts.reshape(batch, length, -1), choice.weights.reshape(batch, length, -1))
    run = per_device(piece, axes, (*rows, None))
    y = run(x, *chosen, real.reshape(batch, length), *(params[name] for name in names))
    return y, jnp.zeros((), jnp.float32)


def _capacity(config: ModelConfig, params: Mapping[str, Any], x: Any, choice: Choice, real: Any) -> tuple[Any, Any]:
    from hybrid.ops.experts import moved
    from hybrid.ops.linear import linear
    from hybrid.ops.routing import capacity_places
    from hybrid.sharding import constrain

    group, (batch, length, d) = config.moe, x.shape
    experts, places_each = group.n_experts, capacity(config, length)
    chosen = choice.experts.reshape(batch, length, -1)
    places = jax.vmap(lambda e, r: capacity_places(e, r, experts, places_each))(chosen, real.reshape(batch, length))
    inputs = jax.vmap(moved)(x, places.token, places.slot).reshape(batch, experts, places_each, d)
    inputs = constrain(inputs, "batch", "expert", None, None).swapaxes(0, 1)
    outputs = _experts(config, params, inputs, jax.vmap(linear)).swapaxes(0, 1)
    outputs = constrain(outputs, "batch", "expert", None, None).reshape(batch, experts * places_each, d)
    weights = choice.weights.reshape(batch, length, -1) * group.gate_scale
    y = jax.vmap(_weighed)(outputs, places, weights)
    full = (places.slot == experts * places_each).reshape(real.shape[0], -1) & real[:, None]
    return y, full.sum() / jnp.maximum(group.top_k * real.sum(), 1).astype(jnp.float32)


def _dense(config: ModelConfig, params: Mapping[str, Any], x: Any, choice: Choice, real: Any) -> tuple[Any, Any]:
    from hybrid.ops.linear import linear

    group = config.moe
    rows = jnp.broadcast_to(x.reshape(1, -1, x.shape[-1]), (group.n_experts, real.shape[0], x.shape[-1]))
    outputs = _experts(config, params, rows, jax.vmap(linear))
    each = jax.nn.one_hot(choice.experts, group.n_experts, dtype=choice.weights.dtype)
    weights = (each * choice.weights[..., None]).sum(1) * real[:, None] * group.gate_scale
    return jnp.einsum("te,etd->td", weights, outputs).reshape(x.shape), jnp.zeros((), jnp.float32)


def _experts(config: ModelConfig, params: Mapping[str, Any], rows: Any, product: Callable[[Any, Any], Any]) -> Any:
    """The MLP of each expert on its rows."""
    hidden = [product(rows, params[name]) for name in ("up", "gate") if name in params]
    return product(ACTIVATIONS[config.moe.activation](*hidden), params["down"])


def _weighed(outputs: Any, places: Any, weights: Any) -> Any:
    """Each token's sum over its choices: outputs (S, d), weights (T, k) -> (T, d), in the type of the weights."""
    from hybrid.ops.experts import moved

    rows = moved(outputs, places.slot.reshape(-1), places.choice[:, None]).reshape(*weights.shape, -1)
    return jnp.einsum("tk,tkd->td", weights, rows)


DISPATCH: dict[str, Callable[..., tuple[Any, Any]]] = {"dropless": _dropless, "capacity": _capacity, "dense": _dense}
"""(config, params, x, choice, real) -> y, the share of choices of real tokens that found no place."""


# --- decoding and the definition --------------------------------------------------------------------------------------


def state(config: ModelConfig, batch: int, capacity: int) -> MoeState:
    return MoeState()


def extend(config: ModelConfig, params: Mapping[str, Any], x: Any, state: MoeState, context: Context) -> tuple:
    y, aux = apply(config, params, x, context)
    return y, state, aux


def reference(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> Any:
    """Every expert on every token, and a sum in which the chosen count; with capacity, served in order."""
    group, (batch, length, _) = config.moe, x.shape
    real = jnp.ones((batch, length), bool) if context.padding is None else context.padding
    logits = x @ params["router"]
    if group.gate == "sigmoid":
        scores = 1.0 / (1.0 + jnp.exp(-logits))
    else:
        scores = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
    left = scores + params.get("balance_bias", 0.0)
    chosen = []  # for each choice (batch, length, E): one where it fell
    for _ in range(group.top_k):
        chosen.append(jnp.arange(group.n_experts) == left.argmax(-1)[..., None])
        left = jnp.where(chosen[-1], -jnp.inf, left)
    total = sum((scores * one).sum(-1, keepdims=True) for one in chosen)
    weights = group.gate_scale * scores / (1.0 if group.gate == "jamba" else total)
    taken = sum(chosen) * real[..., None]
    if group.dispatch == "capacity":
        taken = _reference_places(chosen, real, capacity(config, length))
    y = jnp.zeros_like(x)
    for e in range(group.n_experts):
        own = {name: params[name][e] for name in ("up", "gate", "down") if name in params}
        y = y + (weights * taken)[..., e, None] * _reference_mlp(config, own, x)
    if "shared" in params:
        shared = _reference_mlp(config, params["shared"], x)
        y = y + (shared / (1.0 + jnp.exp(-x @ params["shared"]["router"])) if "router" in params["shared"] else shared)
    return y


def _reference_places(chosen: list[Any], real: Any, limit: int) -> Any:
    """(batch, length, E): the choices that found their expert with a free place."""
    full = jnp.zeros(chosen[0][:, 0].shape, int)
    taken = jnp.zeros(chosen[0].shape, bool)
    for t in range(taken.shape[1]):
        for one in chosen:
            wanted = one[:, t] & real[:, t, None]
            taken = taken.at[:, t].set(taken[:, t] | (wanted & (full < limit)))
            full = full + wanted
    return taken


def _reference_mlp(config: ModelConfig, params: Mapping[str, Any], x: Any) -> Any:
    f, up = REFERENCES[config.moe.activation], x @ params["up"]
    return (f(x @ params["gate"]) * up if "gate" in params else f(up)) @ params["down"]


def _traits(config: ModelConfig) -> Traits:
    alone = config.moe.dispatch != "capacity"
    return Traits(mixer=False, reach="none", chunk_exact=alone, packing="exact" if alone else "refused")


KIND = Kind(
    symbol="E",
    group="moe",
    config=MoeConfig,
    traits=_traits,
    spec=spec,
    apply=apply,
    reference=reference,
    state=state,
    extend=extend,
    counted={"form": "ragged"},
)
