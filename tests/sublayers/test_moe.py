"""Experts: forms of dispatch that agree, drops counted, padding left out, losses that do not see rows, counts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.accounting import flops, parameters
from hybrid.config import ModelConfig
from hybrid.model import forward
from hybrid.sublayers import KINDS
from hybrid.sublayers.moe import capacity
from hybrid.testing import Subject, example
from hybrid.testing.subject import compiled, context
from hybrid.validation import ConfigError

KIND = KINDS["E"]


def subject(**moe):
    return Subject("E", example("E", d_ff=5, moe={"n_experts": 4, **moe}))


def run(one: Subject, params, x, padding=None):
    """(y, Aux), compiled."""
    return compiled(lambda params, x: KIND.apply(one.view, params, x, context(x, padding=padding)))(params, x)


def skewed(one: Subject, to=(0, 1)):
    """Parameters whose router likes some experts more than the others, whatever x is."""
    router = jnp.asarray(np.random.default_rng(0).standard_normal(one.params["router"].shape))
    return {**one.params, "router": router.at[:, list(to)].multiply(4.0)}


@pytest.mark.parametrize("other", [{"dispatch": "capacity", "capacity_factor": 2.0}, {"dispatch": "dense"}])
def test_dropless_is_dense_and_is_capacity_with_room_for_all(x64, other):
    """In float64, with gradients to x and every leaf, losses included; room for all is a factor of E / k."""
    base = subject(z_loss=0.1, balance_loss=0.1, n_shared=1, shared_gate="sigmoid")
    x, params = base.inputs(), skewed(base)
    weights = jnp.asarray(np.random.default_rng(4).standard_normal(x.shape))

    def value(moe):
        one = subject(z_loss=0.1, balance_loss=0.1, n_shared=1, shared_gate="sigmoid", **moe)

        def loss(params, x):
            y, aux = KIND.apply(one.view, params, x, context(x))
            return (weights * y).sum() + sum(aux.losses.values()), aux.metrics

        return compiled(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)

    got, wanted = value({}), value(other)
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)


def test_dropped_choices_are_counted_exactly_and_leave_nothing_but_the_residual(x64):
    one = subject(dispatch="capacity", capacity_factor=0.5, top_k=1)
    x = one.inputs()
    x = jnp.abs(x)
    router = jnp.zeros_like(one.params["router"]).at[:, 2].set(1.0)  # all to expert 2
    length = x.shape[1]
    room = capacity(one.view, length)
    assert room == 2  # ceil(13 / 4 / 2)
    y, aux = run(one, {**one.params, "router": router}, x)
    assert float(aux.metrics["moe_dropped"]) == pytest.approx((length - room) / length)
    np.testing.assert_array_equal(y[:, room:], 0.0)
    assert (np.abs(y[:, :room]).max(-1) > 0).all()
    assert float(aux.metrics["worst_moe_load"]) == 4.0
    whole = dataclasses.replace(one.config, pattern="E")
    params = Subject.init(whole)
    params["layers"]["0"]["sublayer"]["router"] = router
    params["layers"]["0"]["norm"]["scale"] *= 0.0  # x is 0 for the router: all tie, and go to the first
    reported = compiled(lambda params: forward(whole, params, one.tokens())[1])(params)
    assert float(reported.metrics["moe_dropped"][0]) == pytest.approx((length - room) / length)


def test_padding_takes_no_place_and_counts_in_nothing(x64):
    for moe in ({"dispatch": "capacity", "capacity_factor": 0.7}, {}):
        one = subject(z_loss=0.1, bias_rate=0.1, **moe)
        x, params = one.inputs(1), skewed(one)
        padding = jnp.arange(x.shape[1])[None] >= 5  # in front, where it would be served first
        y, aux = run(one, params, x, padding)
        again, other = run(one, params, x.at[:, :5].set(7.0), padding)
        np.testing.assert_array_equal(y[:, 5:], again[:, 5:])
        np.testing.assert_array_equal(y[:, :5], 0.0)
        for a, b in zip(jax.tree.leaves(aux), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)
        if not moe:
            alone, reported = run(one, params, x[:, 5:])
            np.testing.assert_allclose(y[:, 5:], alone, rtol=1e-12)
            for a, b in zip(jax.tree.leaves(aux), jax.tree.leaves(reported), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12)


def test_losses_do_not_see_how_tokens_are_cut_into_rows(x64):
    one = subject(z_loss=0.1)
    x, params = one.inputs(2, 12), skewed(one)
    wanted = run(one, params, x)[1]
    for rows in (1, 3, 8):
        got = run(one, params, x.reshape(rows, -1, x.shape[-1]))[1]
        for name in ("losses", "metrics"):
            for a, b in zip(jax.tree.leaves(getattr(got, name)), jax.tree.leaves(getattr(wanted, name)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12)


def test_coefficients_multiply_what_is_reported(x64):
    one = subject(z_loss=0.3, balance_loss=0.25)
    aux = run(one, one.params, one.inputs())[1]
    np.testing.assert_allclose(aux.losses["moe_balance"], 0.25 * aux.metrics["moe_balance"])
    np.testing.assert_allclose(aux.losses["moe_z"], 0.3 * jnp.mean(
        jax.nn.logsumexp(one.inputs() @ one.params["router"], -1) ** 2))  # fmt: skip
    assert run(subject(balance_loss=0.0), one.params, one.inputs())[1].losses == {}


def test_the_bias_without_a_loss_evens_out_a_skewed_router(x64):
    """A fixed router that sends nearly all tokens to two experts; only the bias moves."""
    one = subject(gate="sigmoid", bias_rate=0.02, balance_loss=0.0)
    x = jax.random.normal(jax.random.key(0), (4, 64, 8), jnp.float64).at[..., 0].set(1.0)
    params = skewed(one)
    params["router"] = 0.3 * params["router"] + jnp.zeros((8, 4)).at[0].set(jnp.asarray([3.0, 2.0, -1.0, -2.0]))
    step = compiled(lambda params: KIND.apply(one.view, params, x, context(x))[1])
    worst = []
    for _ in range(80):
        aux = step(params)
        worst.append(float(aux.metrics["worst_moe_load"]))
        params["balance_bias"] = aux.updates["balance_bias"]
    assert worst[0] > 1.7
    assert max(worst[-5:]) < 1.15
    gradient = compiled(jax.grad(lambda params: KIND.apply(one.view, params, x, context(x))[0].sum()))(params)
    np.testing.assert_array_equal(gradient["balance_bias"], 0.0)


def test_descending_the_balance_loss_alone_evens_out_a_skewed_router(x64):
    one = subject(balance_loss=1.0)
    x = jax.random.normal(jax.random.key(0), (4, 64, 8), jnp.float64).at[..., 0].set(1.0)
    params = skewed(one)
    params["router"] = 0.3 * params["router"] + jnp.zeros((8, 4)).at[0].set(jnp.asarray([2.0, 1.0, -1.0, -1.0]))

    def loss(router):
        aux = KIND.apply(one.view, {**params, "router": router}, x, context(x))[1]
        return aux.losses["moe_balance"], aux.metrics["worst_moe_load"]

    step, router, seen = compiled(jax.value_and_grad(loss, has_aux=True)), params["router"], []
    for _ in range(60):
        values, gradient = step(router)
        seen.append(values)
        router = router - 2.0 * gradient
    assert seen[0][0] > 1.3
    assert seen[0][1] > 1.6
    assert seen[-1][0] < 1.02
    assert seen[-1][1] < 1.3


def test_the_bias_moves_by_its_rate_towards_the_experts_that_have_less(x64):
    one = subject(bias_rate=0.01, top_k=1)
    x = jnp.ones((1, 6, 8))
    params = {**one.params, "router": jnp.zeros((8, 4)).at[:, 1].set(1.0), "balance_bias": jnp.zeros(4)}
    np.testing.assert_allclose(
        run(one, params, x)[1].updates["balance_bias"], [0.01, -0.01, 0.01, 0.01], rtol=1e-6
    )  # fmt: skip


def test_the_router_is_float32_in_a_16_bit_model():
    one = example("E", compute_dtype="bfloat16", param_dtype="bfloat16")
    assert Subject.init(one)["layers"]["0"]["sublayer"]["router"].dtype == jnp.float32
    x = jnp.ones((1, 3, 8), jnp.bfloat16)
    params = Subject.init(one)["layers"]["0"]["sublayer"]
    # 1 + 2^-12 in one of 8 rows decides; 16 bits do not see it
    params["router"] = jnp.ones((8, 8), jnp.float32).at[0, 5].set(1 + 2.0**-12).at[0, 2].set(1 + 2.0**-13)
    y, aux = compiled(lambda params: KIND.apply(one, params, x, context(x)))(params)
    assert y.dtype == jnp.bfloat16
    only = dataclasses.replace(one, moe={**dataclasses.asdict(one.moe), "dispatch": "dense"})
    dense = compiled(lambda params: KIND.apply(only, params, x, context(x))[0])(params)
    np.testing.assert_allclose(np.asarray(y, float), np.asarray(dense, float), rtol=0.02, atol=1e-6)
    from hybrid.ops.routing import choose
    from hybrid.sublayers.moe import router_logits

    assert choose(router_logits(params, x[0]), 2, "mixtral").experts.tolist() == [[5, 2]] * 3
    assert {leaf.dtype for leaf in jax.tree.leaves(aux.metrics)} == {jnp.dtype("float32")}


# --- counts -----------------------------------------------------------------------------------------------------------


def test_mixtral_8x7b_has_its_published_counts():
    """46.7 billion parameters, 12.9 active (Jiang et al. 2024)."""
    config = ModelConfig(
        pattern="(AE)32", vocab_size=32000, d_model=4096, n_heads=32, n_kv_heads=8, d_ff=14336, tie_embeddings=False,
        moe={"n_experts": 8, "top_k": 2},
    )  # fmt: skip
    assert parameters(config).total == 46_702_792_704
    assert parameters(config).active == 46_702_792_704 - 32 * 6 * 3 * 4096 * 14336  # six of eight experts rest
    assert round(parameters(config).active / 1e9, 1) == 12.9


def test_operations_are_those_of_the_active_experts():
    """Twice the experts cost a wider router and nothing else; capacity costs what its places do; dense all of them."""

    def cost(**moe):
        return flops(ModelConfig(pattern="E", vocab_size=5, d_model=16, d_ff=32, moe=moe), 64).forward

    length, d, ff = 64, 16, 32
    small, large = cost(n_experts=8), cost(n_experts=16)
    one_expert = 2 * length * 3 * d * ff
    assert 2 * length * d * 8 <= large - small < 2 * length * d * 8 + 30 * length * 8  # softmax, losses, metrics
    assert cost(n_experts=8, top_k=3) - small == pytest.approx(one_expert, rel=0.1)
    assert cost(n_experts=8, dispatch="dense") - small == pytest.approx(6 * one_expert, rel=0.1)
    wide, narrow = (cost(n_experts=8, dispatch="capacity", capacity_factor=factor) for factor in (2.0, 1.0))
    assert wide - narrow == pytest.approx(2 * one_expert, rel=0.1)


def test_shared_experts_are_one_mlp_as_wide_as_all_of_them():
    shapes = jax.tree.map(lambda param: param.shape, KIND.spec(subject(n_shared=3, shared_d_ff=2).view)["shared"])
    assert shapes == {"up": (8, 6), "gate": (8, 6), "down": (6, 8)}
    assert KIND.spec(subject(n_shared=2, d_ff=7).view)["shared"]["up"].shape == (8, 14)


@pytest.mark.parametrize(
    ("field", "moe"),
    [
        ("moe.top_k", {"top_k": 9}),
        ("moe.shared_gate", {"shared_gate": "sigmoid"}),
        ("moe.gate", {"gate": "mixtrall"}),
        ("moe.capacity_factor", {"capacity_factor": 0.0}),
    ],
)
def test_what_cannot_be_is_refused_by_name(field, moe):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        example("E", moe=moe)


def test_capacity_refuses_packed_documents_and_is_held_to_no_cut():
    traits = KIND.traits(subject(dispatch="capacity").view)
    assert (traits.packing, traits.chunk_exact) == ("refused", False)
    assert KIND.traits(subject().view).chunk_exact
