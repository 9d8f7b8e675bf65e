"""Flax modules of every kind and of models: the parameters, values, gradients and updates of the functional form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import hybrid
from hybrid import Context, ModelConfig
from hybrid.interop.flax import Untrained, linen_model, linen_sublayer, linen_variables, nnx_model, nnx_sublayer
from hybrid.interop.flax.common import joined
from hybrid.sublayers import KINDS
from hybrid.testing.subject import compiled
from hybrid.validation import ConfigError

FIELDS = {"d_model": 8, "n_heads": 2, "init_std": 0.4}
CASES = {
    **{symbol: (symbol, {}) for symbol in sorted(KINDS)},
    "branches": ("[A|M]", {"merge": "mean"}),
    "experts without a loss for balance": ("E", {"moe": {"bias_rate": 0.1}}),
    "dropout": ("-", {"dropout": 0.4}),
    "a letter of its own": ("w", {"symbols": {"w": {"kind": "A", "n_kv_heads": 1}}}),
}


class Key(linen.Module):
    """The key that linen gives a module of this place."""

    stream: str

    def __call__(self):
        return self.make_rng(self.stream)


def same(one, other, tolerance=1e-5):
    """Equal to `tolerance` of the greatest value of each leaf."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(np.asarray(b)).max())


def inputs(symbol, seed=0):
    draw = np.random.default_rng(seed)
    given = {"padding": jnp.arange(6)[None] < jnp.array([[6], [4]])}
    if KINDS.get(symbol) is not None and KINDS[symbol].prepare is not None:
        given["memory"] = jnp.asarray(draw.standard_normal((2, 3, 8)), jnp.float32)
    return jnp.asarray(draw.standard_normal((2, 6, 8)), jnp.float32), given


@pytest.mark.parametrize("case", CASES)
def test_a_sublayer_is_its_functional_form(case):
    """Initial values, names, outputs, gradients, updates: of linen and nnx, compiled in one program with ours."""
    symbol, fields = CASES[case]
    fields = {**FIELDS, **fields}
    x, given = inputs(symbol)
    module = linen_sublayer(symbol, **fields)
    ((kind, view),) = module.config.kinds()
    key = jax.random.key(5)
    drop = jax.random.key(6)

    def initial(key):
        made = hybrid.init(module.config, Key("params").apply({}, rngs={"params": key}))
        of_nnx = hybrid.init(module.config, nnx.Rngs(params=3).params())["layers"]["0"]["sublayer"]
        return made["layers"]["0"]["sublayer"], module.init({"params": key}, x, **given), of_nnx

    # To the last bit, which XLA's plain loops do not keep where it merges one product in several ways.
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": True}
    ours, variables, theirs = jax.jit(initial, compiler_options=options)(key)
    same(joined(variables["params"], variables.get("untrained", {})), ours, tolerance=0)
    changing = variables.get("untrained", {})
    other = nnx_sublayer(symbol, rngs=nnx.Rngs(params=3, dropout=9), **fields)
    same(other.tree(), theirs)
    graph, trained, rest = nnx.split(other, nnx.Param, ...)
    same(
        joined(nnx.to_pure_dict(trained), nnx.to_pure_dict(nnx.filter_state(rest, Untrained))),
        other.tree(),
        tolerance=0,
    )
    nnx.replace_by_pure_dict(trained, variables["params"])

    def score(y):
        return (y * jnp.cos(jnp.arange(8.0))).sum()

    def functional(params, key):
        params, key = joined(params, changing), jax.random.fold_in(key, 0)
        real = given["padding"]
        counted = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
        y, aux = kind.apply(view, params, x, Context(positions=counted, dropout_key=key, **given))
        if view.dropout:
            y = jnp.where(jax.random.bernoulli(key, 1 - view.dropout, y.shape), y / (1 - view.dropout), 0)
        return score(y), (y, {**params, **aux.updates})

    def through_linen(params):
        y, after = module.apply(
            {"params": params, "untrained": changing}, x, deterministic=False, rngs={"dropout": drop},
            mutable=["untrained"], **given,
        )  # fmt: skip
        return score(y), (y, joined(params, after.get("untrained", {})))

    def through_nnx(trained):
        found = nnx.merge(graph, trained, rest, copy=True)
        y = found(x, **given)
        return score(y), (y, found.tree())

    @compiled
    def run(params, trained):
        linen_key = Key("dropout").apply({}, rngs={"dropout": drop})
        nnx_key = nnx.Rngs(params=3, dropout=9)["dropout"].fork()()
        return (
            jax.value_and_grad(functional, has_aux=True)(params, linen_key),
            jax.value_and_grad(through_linen, has_aux=True)(params),
            jax.value_and_grad(functional, has_aux=True)(params, nnx_key),
            jax.value_and_grad(through_nnx, has_aux=True)(trained),
        )

    of_linen, found_linen, of_nnx, ((loss, (y, after)), gradients) = run(variables["params"], trained)
    same(found_linen, of_linen)
    same(((loss, (y, after)), nnx.to_pure_dict(gradients)), of_nnx)
    if fields.get("dropout"):
        off, other_off = np.asarray(y) == 0, np.asarray(found_linen[0][1][0]) == 0
        assert 0.2 < off.mean() < 0.6 and (off != other_off).any()
    if changing:
        assert np.abs(np.asarray(after["balance_bias"])).max() > 0


@pytest.mark.parametrize("symbol", ["A", "M", "X"])
def test_decoding_in_pieces_gives_the_whole(symbol):
    x, given = inputs(symbol)
    memory = given.get("memory")
    module = linen_sublayer(symbol, **FIELDS)

    def decode(found):
        pieces, state = [], found.init_state(2, 6, memory=memory)
        for start, stop in ((0, 3), (3, 4), (4, 6)):
            y, state = found.extend(x[:, start:stop], state)
            pieces.append(y)
        return jnp.concatenate(pieces, axis=1), found(x, memory=memory)

    @compiled
    def run(key):
        variables = module.init(key, x, memory=memory)
        other = nnx_sublayer(symbol, rngs=nnx.Rngs(key), **FIELDS)
        return decode(module.bind(variables)), decode(other)

    for pieces, whole in run(jax.random.key(0)):
        np.testing.assert_allclose(pieces, whole, atol=1e-5)


CONFIG = ModelConfig(
    pattern="AE(M-)2", vocab_size=13, d_model=8, n_heads=2, scan_layers=True, dropout=0.2, moe={"bias_rate": 0.1},
    mamba={"d_state": 2},
)  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 13, (2, 7)))


def test_a_model_is_its_functional_form():
    module, key, drop = linen_model(CONFIG), jax.random.key(5), jax.random.key(6)

    def initial(key):
        ours = hybrid.init(CONFIG, Key("params").apply({}, rngs={"params": key}))
        return ours, module.init({"params": key}, TOKENS), hybrid.init(CONFIG, nnx.Rngs(3).params())

    ours, variables, others = compiled(initial)(key)
    same(joined(variables["params"], variables["untrained"]), ours, tolerance=0)
    assert linen_variables(CONFIG, ours).keys() == {"params", "untrained"}
    same(linen_variables(CONFIG, ours), jax.tree.map(lambda leaf: leaf, dict(variables)), tolerance=0)
    other = nnx_model(CONFIG, rngs=nnx.Rngs(3))
    same(other.tree(), others)
    graph, state = nnx.split(nnx_model(CONFIG, params=ours, rngs=nnx.Rngs(dropout=9)))

    @compiled
    def run(ours, variables, state):
        key = Key("dropout").apply({}, rngs={"dropout": drop})
        hidden, aux = hybrid.forward(CONFIG, ours, TOKENS, dropout_key=key)
        plain = hybrid.apply(CONFIG, ours, TOKENS)
        found, after = module.apply(
            variables, TOKENS, deterministic=False, rngs={"dropout": drop}, mutable=["untrained"], method="forward"
        )
        merged = nnx.merge(graph, state)
        merged.eval()
        quiet = merged(TOKENS)
        merged.train()
        y, _ = merged.forward(TOKENS)
        dropped, _ = hybrid.forward(CONFIG, ours, TOKENS, dropout_key=nnx.Rngs(dropout=9)["dropout"].fork()())
        biases = [ours["layers"]["1"]["sublayer"]["balance_bias"], aux.updates["balance_bias"][0]]
        return (
            (hidden, aux.losses, aux.metrics, plain, plain, dropped), (found[0], found[1].losses, found[1].metrics,
            module.apply(variables, TOKENS), quiet, y), biases, after["untrained"], merged.tree(),
        )  # fmt: skip

    wanted, found, (before, bias), after, tree = run(ours, variables, state)
    same(found, wanted)
    np.testing.assert_array_equal(after["layers"]["1"]["sublayer"]["balance_bias"], bias)
    assert tree["layers"]["1"]["sublayer"]["balance_bias"].shape == before.shape
    assert np.abs(np.asarray(tree["layers"]["1"]["sublayer"]["balance_bias"] - before)).max() > 0


def test_a_model_with_an_encoder():
    config = ModelConfig(pattern="AX-", encoder="B-", vocab_size=13, d_model=8, n_heads=2, positions="t5")
    module, target = linen_model(config), TOKENS[:, :5]

    @compiled
    def run(key):
        variables = module.init(key, TOKENS, decoder_tokens=target)
        wanted = hybrid.apply(config, variables["params"], TOKENS, decoder_tokens=target)
        rows = []
        for found in (module.bind(variables), nnx_model(config, params=variables["params"])):
            state = found.init_state(2, 5, memory=found.encode(TOKENS))
            rows += [found(TOKENS, decoder_tokens=target), found.extend(target, state)[0]]
        return wanted, rows

    wanted, rows = run(jax.random.key(0))
    for row in rows:
        np.testing.assert_allclose(row, wanted, atol=1e-5)


def test_a_gradient_step_of_nnx_trains_parameters_and_leaves_the_rest():
    model = nnx_model(ModelConfig(pattern="E", vocab_size=13, d_model=8, moe={"bias_rate": 0.1}), rngs=nnx.Rngs(0))
    before = jax.tree.map(np.asarray, model.tree())

    @nnx.jit
    def step(model, tokens):
        gradients = nnx.grad(lambda model: (model(tokens) ** 2).mean())(model)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(model, nnx.Param), gradients))

    step(model, TOKENS)
    after = model.tree()["layers"]["0"]["sublayer"]
    assert np.abs(np.asarray(after["router"]) - before["layers"]["0"]["sublayer"]["router"]).max() > 0
    assert set(np.unique(np.abs(np.asarray(after["balance_bias"])))) <= {np.float32(0), np.float32(0.1)}
    assert np.asarray(after["balance_bias"]).any()


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'd_state'"):
        linen_sublayer("M", d_model=8, mamba={"d_stat": 4})
    with pytest.raises(ConfigError, match="must be one sublayer"):
        nnx_sublayer("MM", d_model=8, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="rngs: must be given"):
        nnx_model(CONFIG)
    module = nnx_sublayer("-", d_model=8, dropout=0.5, rngs=nnx.Rngs(0))
    module.rngs = nnx.data(None)
    with pytest.raises(ConfigError, match="dropout is on"):
        module(jnp.ones((1, 2, 8)))
    hyena = nnx_sublayer("H", d_model=8, hyena={"filter_length": 4}, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="takes at most 4 tokens"):
        hyena(jnp.ones((1, 5, 8)))
