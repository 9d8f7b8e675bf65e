"""Gates by hand, losses at their known values, places with nothing lost or counted twice."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.ops.routing import balance, capacity_places, choose, entropy, load, router_z, sorted_places

LOGITS = np.array([[2.0, -1.0, 0.5, 1.0], [0.0, 3.0, -2.0, 1.0]])
EXP, SIGMOID = np.exp(LOGITS), 1 / (1 + np.exp(-LOGITS))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("gate", "wanted"),
    [
        ("mixtral", [softmax(np.array([2.0, 1.0])), softmax(np.array([3.0, 1.0]))]),
        ("jamba", [[EXP[0, 0] / EXP[0].sum(), EXP[0, 3] / EXP[0].sum()], [EXP[1, 1], EXP[1, 3]] / EXP[1].sum()]),
        ("sigmoid", [SIGMOID[0, [0, 3]] / SIGMOID[0, [0, 3]].sum(), SIGMOID[1, [1, 3]] / SIGMOID[1, [1, 3]].sum()]),
    ],
)
def test_gates_are_their_formulas(x64, gate, wanted):
    choice = choose(jnp.asarray(LOGITS), 2, gate)
    assert choice.experts.tolist() == [[0, 3], [1, 3]]
    np.testing.assert_allclose(choice.weights, np.array(wanted), rtol=1e-12)
    np.testing.assert_allclose(choice.probabilities.sum(-1), 1.0, rtol=1e-12)


def test_only_jambas_weights_leave_a_part_out(x64):
    sums = {gate: choose(jnp.asarray(LOGITS), 2, gate).weights.sum(-1) for gate in ("mixtral", "jamba", "sigmoid")}
    np.testing.assert_allclose(sums["mixtral"], 1.0)
    np.testing.assert_allclose(sums["sigmoid"], 1.0)
    assert (sums["jamba"] < 0.96).all()


@pytest.mark.parametrize("gate", ["mixtral", "jamba", "sigmoid"])
def test_the_bias_moves_the_choice_and_not_the_weights(x64, gate):
    bias = jnp.asarray([0.0, 0.0, 5.0, 0.0])
    plain, moved = choose(jnp.asarray(LOGITS), 1, gate), choose(jnp.asarray(LOGITS), 1, gate, bias)
    assert plain.experts.ravel().tolist() == [0, 1]
    assert moved.experts.ravel().tolist() == [2, 2]
    np.testing.assert_array_equal(plain.probabilities, moved.probabilities)
    if gate == "jamba":  # the weight is the score without its bias
        np.testing.assert_allclose(moved.weights[:, 0], softmax(LOGITS)[:, 2], rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("gate", ["mixtral", "jamba", "sigmoid"])
def test_an_even_router_has_a_balance_loss_of_exactly_one(gate, k):
    choice = choose(jnp.zeros((6, 4)), k, gate)
    real = jnp.ones(6, bool)
    assert float(balance(load(choice.experts, real, 4), choice.probabilities, real)) == 1.0


def test_a_router_that_knows_one_expert_has_the_greatest_loss(x64):
    choice = choose(jnp.asarray([[60.0, 0.0, 0.0, 0.0]] * 5), 1, "mixtral")
    real = jnp.ones(5, bool)
    np.testing.assert_allclose(balance(load(choice.experts, real, 4), choice.probabilities, real), 4.0)


def test_the_loss_is_that_of_other_code_bases_over_k(x64):
    """Theirs adds up the shares of all k choices and does not divide: k times ours."""
    draw = np.random.default_rng(0)
    logits, k, experts = draw.standard_normal((50, 6)), 3, 6
    real = jnp.ones(50, bool)
    choice = choose(jnp.asarray(logits), k, "mixtral")
    probabilities = softmax(logits)
    theirs = 0.0
    for j in range(k):
        for e in range(experts):
            theirs += np.mean(np.asarray(choice.experts)[:, j] == e) * probabilities[:, e].mean()
    shares = load(choice.experts, real, experts)
    ours = balance(shares.astype(float), choice.probabilities, real)
    np.testing.assert_allclose(ours, experts * theirs / k, rtol=1e-6)


def test_z_loss_and_entropy_by_hand(x64):
    real = jnp.asarray([True, False])
    np.testing.assert_allclose(router_z(jnp.asarray(LOGITS), real), np.log(EXP[0].sum()) ** 2, rtol=1e-12)
    np.testing.assert_allclose(entropy(jnp.full((4,), 0.25)), np.log(4), rtol=1e-12)
    assert float(entropy(jnp.asarray([1.0, 0.0, 0.0]))) == 0.0


@st.composite
def routed(draw):
    """Of two shapes, that compile once each."""
    tokens, experts, k = draw(st.sampled_from([(7, 4, 2), (4, 3, 3)]))
    rows = [draw(st.permutations(range(experts)))[:k] for _ in range(tokens)]
    real = draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    return np.array(rows, np.int32), np.array(real), experts


sorted_once = jax.jit(sorted_places, static_argnums=2)
capacity_once = jax.jit(capacity_places, static_argnums=(2, 3))


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(routed())
def test_sorted_places_hold_every_choice_once_and_experts_in_order(case):
    experts, real, n = case
    places, sizes = sorted_once(jnp.asarray(experts), jnp.asarray(real), n)
    flat = experts.ravel()
    kept = np.repeat(real, experts.shape[1])
    assert sizes.tolist() == [int(((flat == e) & kept).sum()) for e in range(n)]
    assert sorted(places.choice.tolist()) == list(range(flat.size))
    assert flat[np.asarray(places.choice)][: kept.sum()].tolist() == sorted(flat[kept].tolist())
    assert (np.asarray(places.choice)[np.asarray(places.slot).ravel()] == np.arange(flat.size)).all()
    assert (np.asarray(places.token) == np.asarray(places.choice) // experts.shape[1]).all()


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(routed(), st.sampled_from([1, 3]))
def test_capacity_serves_the_first_and_no_more_than_there_is_room_for(case, capacity):
    experts, real, n = case
    places = capacity_once(jnp.asarray(experts), jnp.asarray(real), n, capacity)
    slot, choice = np.asarray(places.slot), np.asarray(places.choice)
    tokens, k = experts.shape
    full = dict.fromkeys(range(n), 0)
    for t in range(tokens):
        for j in range(k):
            e = experts[t, j]
            wanted = n * capacity
            if real[t] and full[e] < capacity:
                wanted = e * capacity + full[e]
                full[e] += 1
                assert choice[wanted] == t * k + j
                assert places.token[wanted] == t
            assert slot[t, j] == wanted
    assert (choice < tokens * k).sum() == sum(full.values())
    assert (np.asarray(places.token)[choice == tokens * k] == tokens).all()
