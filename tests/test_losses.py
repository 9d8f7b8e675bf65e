"""Cross-entropy at the labelled positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import ModelConfig, losses
from hybrid.losses import FORMS, token_losses
from hybrid.model import logits
from hybrid.ops.forms import noted
from hybrid.params import init

CONFIG = ModelConfig(
    pattern="-", vocab_size=7, d_model=4, logit_softcap=2.0, param_dtype="float64", compute_dtype="float64"
)
DRAW = np.random.default_rng(0)
HIDDEN = DRAW.standard_normal((2, 5, 4))
LABELS = np.array([[0, 6, -1, 3, -1], [2, -1, -1, 5, 1]])


@pytest.fixture
def params(x64):
    return init(CONFIG, jax.random.key(0))


def by_hand(params):
    out = np.asarray(logits(CONFIG, params, jnp.asarray(HIDDEN)))
    probabilities = np.exp(out) / np.exp(out).sum(-1, keepdims=True)
    rows = [
        [-np.log(probabilities[b, t, LABELS[b, t]]) if LABELS[b, t] >= 0 else 0.0 for t in range(5)] for b in (0, 1)
    ]
    return np.array(rows)


def test_nats_of_each_label_and_zero_where_none_is_scored(params):
    nats, scored = token_losses(CONFIG, params, jnp.asarray(HIDDEN), jnp.asarray(LABELS))
    np.testing.assert_allclose(nats, by_hand(params), rtol=1e-12)
    np.testing.assert_array_equal(scored, LABELS >= 0)


def test_labels_at_given_positions(params):
    places = jnp.array([[3, 0, 0], [4, 3, 0]])
    labels = jnp.array([[3, 0, -1], [1, 5, 2]])
    nats, scored = token_losses(CONFIG, params, jnp.asarray(HIDDEN), labels, places)
    whole = by_hand(params)
    np.testing.assert_allclose(nats, [[whole[0, 3], whole[0, 0], 0.0], whole[1, [4, 3, 0]]], rtol=1e-12)
    assert scored.tolist() == [[True, True, False], [True, True, True]]


def test_positions_without_a_label_have_no_gradient(params):
    def loss(hidden):
        return token_losses(CONFIG, params, hidden, jnp.asarray(LABELS))[0].sum()

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(HIDDEN)))
    assert (gradient[LABELS < 0] == 0).all()
    assert (np.abs(gradient[LABELS >= 0]).sum(-1) > 0).all()


def test_a_row_without_labels_has_a_finite_gradient(params):
    labels = jnp.full((2, 5), -1)
    gradient = jax.grad(lambda hidden: token_losses(CONFIG, params, hidden, labels)[0].sum())(jnp.asarray(HIDDEN))
    assert (gradient == 0).all()


def test_far_logits_do_not_overflow():
    config = ModelConfig(pattern="-", vocab_size=7, d_model=4, embedding_scale=1.0)
    params = {"embedding": {"tokens": 1e4 * jnp.eye(7, 4)}}
    nats, _ = token_losses(config, params, jnp.ones((1, 1, 4)), jnp.array([[6]]))
    np.testing.assert_allclose(nats, [[1e4 + np.log(4)]], rtol=1e-6)


def test_losses_of_narrow_models_are_float32():
    config = ModelConfig(pattern="-", vocab_size=7, d_model=4, compute_dtype="bfloat16")
    params = {"embedding": {"tokens": jnp.ones((7, 4))}}
    nats, _ = token_losses(config, params, jnp.ones((1, 2, 4), jnp.bfloat16), jnp.array([[1, 2]]))
    assert nats.dtype == jnp.float32
    np.testing.assert_allclose(nats, np.log(7), rtol=1e-6)


HEADS = {
    "own head": {"tie_embeddings": False},
    "tied": {"logit_softcap": 2.0},
    "transform": {"head": "transform", "head_bias": True, "logit_scale": 0.3},
}


@pytest.mark.parametrize("head", HEADS)
def test_chunks_equal_all_logits_at_once_in_value_and_gradient(x64, monkeypatch, head):
    config = ModelConfig(
        pattern="-", vocab_size=7, d_model=4, param_dtype="float64", compute_dtype="float64", **HEADS[head]
    )
    params = init(config, jax.random.key(1))
    monkeypatch.setattr(losses, "CHUNK", 2 * 7 * 2)  # two positions of both rows: three chunks, the last half empty

    def run(form):
        def loss(params, hidden):
            nats, scored = token_losses(config, params, hidden, jnp.asarray(LABELS), form=form)
            return (jnp.sin(nats) * scored).sum(), nats

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(HIDDEN))

    with noted() as chosen:
        got = run("chunked")
    assert chosen["token_losses"] == "chunked 2"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), got, run("plain"))


def temporaries(form):
    """Bytes of forward and gradient of 2048 tokens over 50,000 words, d_model 256."""
    config = ModelConfig(pattern="-", vocab_size=50_000, d_model=256)
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    hidden, labels = jax.ShapeDtypeStruct((2, 1024, 256), jnp.float32), jax.ShapeDtypeStruct((2, 1024), jnp.int32)

    def loss(params, hidden, labels):
        return token_losses(config, params, hidden, labels, form=form)[0].mean()

    with noted() as chosen:
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, hidden, labels).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20, chosen["token_losses"]


def test_a_large_vocabulary_needs_a_third_of_its_logits():
    """All logits are 391 MiB, of which the plain form needs two. 49 MiB of the rest are the gradient of the head."""
    chunked, form = temporaries("auto")
    assert form.startswith("chunked")
    assert chunked <= 130
    assert temporaries("plain")[0] >= 700


def test_small_vocabularies_keep_the_plain_form(params):
    with noted() as chosen:
        token_losses(CONFIG, params, jnp.asarray(HIDDEN), jnp.asarray(LABELS))
    assert chosen == {"token_losses": "plain"}
    assert set(FORMS) == {"plain", "chunked"}
