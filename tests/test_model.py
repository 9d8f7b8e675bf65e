"""The stack around the sublayers: embedding, norms, head, segments, dropout keys, decoding."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hybrid
from hybrid import Aux, ConfigError, ModelConfig
from hybrid.layout import arrange, per_layer, scans, stack_segments
from hybrid.params import Param, zeros
from hybrid.pattern import SYMBOLS
from hybrid.sublayers import KINDS, Kind, Traits
from hybrid.testing.stack import loss_and_gradients
from hybrid.testing.subject import compiled
from hybrid.validation import Checked

pytestmark = pytest.mark.usefixtures("x64")

EXACT = {"param_dtype": "float64", "compute_dtype": "float64"}
SMALL = {"vocab_size": 13, "d_model": 8, "n_heads": 2, "hyena": {"filter_length": 16}, **EXACT}


def tokens_of(batch=2, length=9):
    return jnp.asarray(np.random.default_rng(0).integers(0, 13, (batch, length)), jnp.int32)


def params_of(config, seed=0):
    """Values away from the initial ones, made without the cost of jax's random numbers."""
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: hybrid.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * draw.standard_normal(leaf.shape), leaf.dtype), shapes)


def naive(config, params, tokens, decoder_tokens=None):
    """The model as a loop over its layers and their references."""

    def norm(params, x):
        if config.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * params["scale"]
        return x + params["bias"] if config.norm == "layernorm" else x

    def stack(config, params, tokens, table, memory=None):
        length, d = tokens.shape[1], config.d_model
        x = table["tokens"][tokens] * config.embedding_scale
        if config.positions == "learned":
            x = x + table["positions"][:length]
        if config.positions == "sinusoidal":
            angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, d, 2) / d)
            x = x + np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, d)
        x = x + table["types"][0] if config.token_types else x
        x = norm(table["norm"], x) if config.embedding_norm else x
        index = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        context = hybrid.Context(positions=index, memory=memory, shared=params.get("shared", {}))
        layers = per_layer({"layers": params["layers"]})["layers"]
        for i, (kind, view) in enumerate(config.kinds()):
            layer = layers[str(i)]
            y = x if config.norm_position == "after" else norm(layer["norm"], x)
            y = kind.reference(view, layer["sublayer"], y, context)
            if config.norm_position == "both":
                y = norm(layer["norm_after"], y)
            x = norm(layer["norm"], x + y) if config.norm_position == "after" else x + y
        return x if config.norm_position == "after" else norm(params["final_norm"], x)

    if decoder_tokens is None:
        x = stack(config, params, tokens, params["embedding"])
    else:
        memory = stack(config.encoder_config, params["encoder"], tokens, params["embedding"])
        x = stack(config, params, decoder_tokens, params["embedding"], memory)
    head = params.get("head", {})
    if config.head == "transform":
        x = x @ head["transform"] + head["transform_bias"]
        x = norm(head["norm"], x * (1 + jax.scipy.special.erf(x / np.sqrt(2))) / 2)
    logits = x @ (params["embedding"]["tokens"].T if config.tie_embeddings else head["kernel"]) * config.logit_scale
    logits = logits + head["bias"] if config.head_bias else logits
    return logits if config.logit_softcap is None else config.logit_softcap * jnp.tanh(logits / config.logit_softcap)


MODELS = {
    "plain": {},
    "untied": {"tie_embeddings": False, "positions": "none"},
    "learned positions": {"positions": "learned", "max_length": 20, "embedding_scale": 3.0},
    "sinusoids, soft cap": {"positions": "sinusoidal", "logit_softcap": 1.5},
    "layer norm after": {"norm": "layernorm", "norm_position": "after"},
    "norms on both sides": {"norm_position": "both", "norm_eps": 1e-2},
    "other kinds": {"pattern": "MH", "norm": "layernorm"},
    "encoder of masked words": {
        "pattern": "B-", "norm": "layernorm", "norm_position": "after", "positions": "learned", "max_length": 20,
        "token_types": 2, "embedding_norm": True, "head": "transform", "head_bias": True,
    },
    "branches, biases of distance": {"pattern": "[A|M]-", "positions": "alibi", "merge": "mean"},
}  # fmt: skip
ENCODER_DECODERS = {
    "post-norm, sinusoids": {"norm": "layernorm", "norm_position": "after", "positions": "sinusoidal"},
    "relative bias, scaled head": {"positions": "t5", "logit_scale": 0.35, "relative_buckets": 4},
    "a Mamba that reads a memory": {"pattern": "MX", "encoder": "H-B", "positions": "none"},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_loop_over_its_layers(name):
    config = ModelConfig(**{**SMALL, "pattern": "A-", **MODELS[name]})
    params, tokens = params_of(config), tokens_of()
    logits = compiled(lambda params: hybrid.apply(config, params, tokens))(params)
    wanted = compiled(partial(naive, config))(params, tokens)
    np.testing.assert_allclose(logits, wanted, rtol=1e-9, atol=1e-11)


def encoder_decoder(name):
    config = ModelConfig(**{**SMALL, "pattern": "AX-", "encoder": "B-B-", **ENCODER_DECODERS[name]})
    return config, params_of(config), tokens_of(length=7), tokens_of(length=9)[:, ::-1]


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoder_is_the_loop_over_both_stacks(name):
    config, params, tokens, decoder_tokens = encoder_decoder(name)
    run = compiled(lambda params: hybrid.apply(config, params, tokens, decoder_tokens=decoder_tokens))
    wanted = compiled(partial(naive, config))(params, tokens, decoder_tokens)
    np.testing.assert_allclose(run(params), wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoder_decodes_from_a_memory_made_once(name):
    config, params, tokens, decoder_tokens = encoder_decoder(name)
    padding = jnp.arange(7)[None] < jnp.array([[7], [4]])
    options = {"decoder_tokens": decoder_tokens, "padding": padding}
    whole = compiled(lambda params: hybrid.apply(config, params, tokens, **options))(params)
    memory = compiled(lambda params: hybrid.encode(config, params, tokens, padding=padding))(params)
    extend = compiled(lambda tokens, state: hybrid.extend(config, params, tokens, state))
    state, rows = hybrid.init_state(config, 2, 9, params=params, memory=memory, memory_padding=padding), []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        logits, state = extend(decoder_tokens[:, start:stop], state)
        rows.append(logits)
    np.testing.assert_allclose(jnp.concatenate(rows, axis=1), whole, rtol=1e-8, atol=1e-10)
    # The second row is as if its padding were not there.
    short = tokens[1:, :4]
    alone = compiled(lambda: hybrid.apply(config, params, short, decoder_tokens=decoder_tokens[1:]))()
    np.testing.assert_allclose(whole[1:], alone, rtol=1e-8, atol=1e-10)


def test_both_stacks_may_be_scanned_and_have_their_own_dropout():
    fields = {**SMALL, "pattern": "(AX-)2", "encoder": "(B-)2", "positions": "t5", "relative_buckets": 4}
    unrolled, scanned = (ModelConfig(**fields, dropout=0.5, scan_layers=scan) for scan in (False, True))
    params, tokens = params_of(unrolled), tokens_of()

    def run(config):
        def loss(params):
            options = {"decoder_tokens": tokens, "dropout_key": jax.random.key(1)}
            return (hybrid.apply(config, arrange(config, params), tokens[:, :5], **options) ** 2).mean()

        return compiled(jax.value_and_grad(loss))(params)

    (one, gradients), (other, same) = run(unrolled), run(scanned)
    np.testing.assert_allclose(one, other, rtol=1e-10)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["encoder"]))


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"pattern": "AX", "encoder": "B"}, {}, "decoder_tokens: must be given"),
        ({"pattern": "A"}, {"decoder_tokens": jnp.zeros((2, 3), int)}, "decoder_tokens: not allowed"),
        (
            {"pattern": "AX", "encoder": "B"},
            {"decoder_tokens": jnp.zeros((2, 3), int), "segment_ids": jnp.zeros((2, 9), int)},
            "cross_attention: mixes packed documents",
        ),
    ],
)
def test_inputs_that_do_not_fit_the_stacks_are_refused(fields, options, message):
    config = ModelConfig(**SMALL, **fields)
    with pytest.raises(ConfigError, match=message):
        hybrid.apply(config, params_of(config), tokens_of(), **options)


def test_prompts_of_several_lengths_go_through_in_one_batch():
    """Padding in front of a row changes nothing, at once or token by token, whatever the way positions are told."""
    for positions in ("rope", "learned", "alibi", "t5"):
        config = ModelConfig(**SMALL, pattern="AM-H", positions=positions, max_length=12)
        params, tokens = params_of(config), tokens_of()
        padding = jnp.arange(9)[None] >= jnp.array([[0], [4]])
        apply = compiled(partial(hybrid.apply, config, params))
        extend = compiled(partial(hybrid.extend, config, params))
        alone, whole = apply(tokens[1:, 4:]), apply(tokens, padding=padding)
        np.testing.assert_allclose(whole[1:, 4:], alone, rtol=1e-8, atol=1e-10)
        logits, state = extend(tokens[:, :6], hybrid.init_state(config, 2, 12), padding[:, :6])
        more, state = extend(tokens[:, 6:], state)
        np.testing.assert_allclose(jnp.concatenate([logits[1:, 4:], more[1:]], axis=1), alone, rtol=1e-8, atol=1e-10)
        assert state.length.tolist() == [9, 5]


def test_scanning_and_recomputing_change_nothing():
    """A stack of several segments: two that repeat and one that does not."""
    fields = {**SMALL, "pattern": "(MA)2H-2"}
    unrolled = ModelConfig(**fields, scan_layers=False)
    scanned = ModelConfig(**fields, scan_layers=True, remat="sublayer")
    assert [(segment.unit, segment.repeats) for segment in stack_segments(scanned)] == [
        (("M", "A"), 2), (("H",), 1), (("-",), 2),
    ]  # fmt: skip
    params, tokens = params_of(unrolled), tokens_of()
    loss, gradients = loss_and_gradients(unrolled, tokens)(params)
    again, same = loss_and_gradients(scanned, tokens)(arrange(scanned, params))
    np.testing.assert_allclose(again, loss, rtol=1e-12)
    for one, other in zip(jax.tree.leaves(same), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-12)


def test_the_default_unrolls_shallow_stacks_on_a_cpu():
    assert not scans(ModelConfig(**SMALL, pattern="M32"))
    assert scans(ModelConfig(**SMALL, pattern="M33"))
    assert scans(ModelConfig(**SMALL, pattern="M2", scan_layers=True))
    assert not scans(ModelConfig(**SMALL, pattern="M99", scan_layers=False))


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_packed_documents_are_as_if_alone(positions):
    """Positions count from 0 in each; a segment id that comes back is another document."""
    config = ModelConfig(**SMALL, pattern="MA-", positions=positions, max_length=9)
    params, tokens = params_of(config), tokens_of(batch=1)
    segment_ids = jnp.array([[5, 5, 5, 0, 0, 0, 5, 5, 5]])
    apply = compiled(lambda tokens, ids: hybrid.apply(config, params, tokens, segment_ids=ids))
    packed = apply(tokens, segment_ids)
    for start in (0, 3, 6):
        part = slice(start, start + 3)
        np.testing.assert_allclose(packed[:, part], apply(tokens[:, part], None), rtol=1e-9)


def test_given_positions_are_used():
    config = ModelConfig(**SMALL, pattern="A-", positions="learned", max_length=9)
    params, tokens = params_of(config), tokens_of()
    index = jnp.broadcast_to(jnp.arange(9), tokens.shape)
    apply = compiled(lambda positions: hybrid.apply(config, params, tokens, positions=positions))
    plain = apply(None)
    np.testing.assert_allclose(apply(index), plain, rtol=1e-12, atol=1e-13)
    assert not np.allclose(apply(index[:, ::-1]), plain)


@pytest.mark.parametrize(
    ("fields", "options", "field"),
    [
        ({"pattern": "H"}, {}, "hyena"),
        ({"pattern": "-", "positions": "learned", "max_length": 8}, {}, "max_length"),
        ({"pattern": "MH", "hyena": {"filter_length": 64}}, {"segment_ids": jnp.zeros((2, 20), int)}, "hyena"),
    ],
)
def test_what_a_model_cannot_take_is_refused(fields, options, field):
    config = ModelConfig(**{**SMALL, **fields})
    with pytest.raises(ConfigError) as caught:
        hybrid.apply(config, params_of(config), tokens_of(length=20), **options)
    assert caught.value.field == field


def test_logits_are_at_least_float32():
    config = ModelConfig(**{**SMALL, "param_dtype": "float32", "compute_dtype": "bfloat16"}, pattern="-")
    params = params_of(config)
    hidden, _ = compiled(partial(hybrid.forward, config, params))(tokens_of())
    assert hidden.dtype == jnp.bfloat16
    assert jax.eval_shape(lambda: hybrid.apply(config, params, tokens_of())).dtype == jnp.float32


# --- what sublayers report --------------------------------------------------------------------------------------------


@pytest.fixture
def probe(monkeypatch):
    """A kind that adds nothing to the stream and reports its dropout key and a loss."""

    @dataclasses.dataclass(frozen=True)
    class ProbeConfig(Checked):
        pass

    def apply(config, params, x, context):
        data = jnp.zeros(2, jnp.uint32) if context.dropout_key is None else jax.random.key_data(context.dropout_key)
        loss = (params["weight"] ** 2).sum()
        return 0.0 * x, Aux(losses={"probe": loss}, metrics={"key": data[0].astype(jnp.float64), "one": loss})

    monkeypatch.setitem(SYMBOLS, "P", "probe")
    monkeypatch.setitem(
        KINDS,
        "P",
        Kind(
            "P", "probe", ProbeConfig, lambda config: Traits(mixer=False, reach="none", decodable=False),
            lambda config: {"weight": Param((2,), (None,), zeros)}, apply,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("scan_layers", [False, True])
def test_losses_add_up_and_metrics_have_a_row_a_layer(probe, scan_layers):
    config = ModelConfig(**SMALL, pattern="P3-P", scan_layers=scan_layers)
    params = params_of(config)
    single = per_layer(params)["layers"]
    _, aux = compiled(partial(hybrid.forward, config, params))(tokens_of())
    rows = [float((single[i]["sublayer"]["weight"] ** 2).sum()) for i in "0124"]
    np.testing.assert_allclose(aux.losses["probe"], sum(rows), rtol=1e-12)
    np.testing.assert_allclose(aux.metrics["one"], rows, rtol=1e-12)


def test_each_layer_and_each_step_has_its_own_dropout_key(probe):
    """And the same ones under scan."""
    keys = {}
    for scan_layers in (False, True):
        config = ModelConfig(**SMALL, pattern="(P-)3", scan_layers=scan_layers, dropout=0.5)
        params = params_of(config)
        forward = compiled(
            lambda key, config=config, params=params: hybrid.forward(config, params, tokens_of(), dropout_key=key)[1]
        )
        for step in (0, 1):
            aux = forward(jax.random.key(step))
            keys[scan_layers, step] = tuple(np.asarray(aux.metrics["key"]).tolist())
    assert keys[False, 0] == keys[True, 0]
    assert keys[False, 1] == keys[True, 1]
    assert len({*keys[False, 0], *keys[False, 1]}) == 6


def test_dropout_keeps_the_mean_and_the_share_that_it_is_asked_for():
    from hybrid.stack import drop

    config = ModelConfig(**SMALL, pattern="-", dropout=0.25)
    dropped = np.asarray(drop(config, jnp.ones((200, 200)), jax.random.key(0)))
    assert set(np.unique(dropped)) == {0.0, 1 / 0.75}
    assert abs((dropped == 0).mean() - 0.25) < 0.01


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_prefill_chunks_and_single_steps_give_what_apply_gives():
    config = ModelConfig(**SMALL, pattern="MAH-", positions="learned", max_length=16)
    params, tokens = params_of(config), tokens_of(length=9)
    whole = compiled(lambda tokens: hybrid.apply(config, params, tokens))(tokens)
    extend = compiled(lambda tokens, state: hybrid.extend(config, params, tokens, state))
    state, rows = hybrid.init_state(config, 2, 12), []
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 8), (8, 9)):
        logits, state = extend(tokens[:, start:stop], state)
        rows.append(logits)
    np.testing.assert_allclose(jnp.concatenate(rows, axis=1), whole, rtol=1e-8, atol=1e-11)
    assert state.length.tolist() == [9, 9]
    assert int(state.room) == 3


def test_parameters_of_a_scanned_stack_decode_too():
    config = ModelConfig(**SMALL, pattern="-4", scan_layers=True)
    params, tokens = params_of(config), tokens_of()
    extend = compiled(lambda state: hybrid.extend(config, params, tokens, state)[0])
    whole = compiled(lambda: hybrid.apply(config, params, tokens))
    np.testing.assert_allclose(extend(hybrid.init_state(config, 2, 9)), whole(), rtol=1e-9, atol=1e-12)


def test_tokens_past_the_capacity_are_refused():
    config = ModelConfig(**SMALL, pattern="M")
    with pytest.raises(ConfigError, match="capacity: the state has room for 4 more tokens; 9 were given"):
        hybrid.extend(config, params_of(config), tokens_of(), hybrid.init_state(config, 2, 4))


def test_states_longer_than_a_sublayer_takes_are_refused():
    with pytest.raises(ConfigError, match="capacity: 17 is not allowed; hyena takes at most 16"):
        hybrid.init_state(ModelConfig(**SMALL, pattern="MH"), 1, 17)
    with pytest.raises(ConfigError, match="capacity: 9 is not allowed; max_length is 8"):
        hybrid.init_state(ModelConfig(**SMALL, pattern="M", positions="learned", max_length=8), 1, 9)


def test_what_cannot_decode_is_refused_by_name(probe):
    with pytest.raises(ConfigError, match=r"P \(probe\) cannot decode"):
        hybrid.init_state(ModelConfig(**SMALL, pattern="MP"), 1, 4)
