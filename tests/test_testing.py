"""Every check of the contract fails on a kind that breaks what it is about.

The kind is that of docs/add_a_sublayer.md; each mutant is it with one fault.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from mktestdocs import grab_code_blocks

from hybrid import ConfigError, Context, pattern, testing
from hybrid.sublayers import KINDS, Traits

PAGE = Path(__file__).resolve().parents[1] / "docs" / "add_a_sublayer.md"


@pytest.fixture(scope="module", autouse=True)
def good():
    kinds, symbols = dict(KINDS), dict(pattern.SYMBOLS)
    names: dict = {"__name__": "__main__"}
    code = compile(grab_code_blocks(PAGE.read_text())[0], str(PAGE), "exec", dont_inherit=True)
    exec(code, names)
    yield KINDS["Z"]
    for table, old in ((KINDS, kinds), (pattern.SYMBOLS, symbols)):
        table.clear()
        table.update(old)


def shifted(kind):
    """One token late."""

    def apply(config, params, x, context):
        y, aux = kind.apply(config, params, x, context)
        return jnp.pad(y, ((0, 0), (1, 0), (0, 0)))[:, :-1], aux

    return {"apply": apply}


def backwards(kind):
    """Sees later tokens in place of earlier ones."""

    def apply(config, params, x, context):
        y, aux = kind.apply(config, params, x[:, ::-1], context)
        return y[:, ::-1], aux

    return {"apply": apply}


def over_channels(kind):
    """Averages over the channels of a token in place of the tokens of a channel."""

    def apply(config, params, x, context):
        batch, length, d = x.shape
        rows = jnp.broadcast_to(x.reshape(batch * length, d, 1), (batch * length, d, d))
        y, aux = kind.apply(config, params, rows, Context(positions=None))
        return y[:, -1].reshape(x.shape), aux

    return {"apply": apply}


def forgets_documents(kind):
    def apply(config, params, x, context):
        return kind.apply(config, params, x, context.replace(segment_ids=None))

    return {"apply": apply}


def forgets_padding(kind):
    def apply(config, params, x, context):
        return kind.apply(config, params, x, context.replace(padding=None))

    return {"apply": apply}


def half_a_gradient(kind):
    """Right values, wrong derivative."""

    def apply(config, params, x, context):
        y, aux = kind.apply(config, params, x, context)
        return (y + jax.lax.stop_gradient(y)) / 2, aux

    return {"apply": apply}


def multiples_of_four(kind):
    """Drops what a last, shorter block would be."""

    def apply(config, params, x, context):
        y, aux = kind.apply(config, params, x, context)
        whole = max(13, x.shape[1] // 4 * 4)  # right at the length that the other checks take
        return jnp.where(jnp.arange(x.shape[1])[None, :, None] < whole, y, 0.0), aux

    return {"apply": apply}


def forgets_its_state(kind):
    def extend(config, params, x, state, context):
        return kind.extend(config, params, x, kind.state(config, x.shape[0], 1), context)

    return {"extend": extend}


def mixes_rows(kind):
    def extend(config, params, x, state, context):
        y, state, aux = kind.extend(config, params, x, state, context)
        return y, state.replace(mean=state.mean.at[0].set(state.mean.sum(0))), aux

    return {"extend": extend}


def state_grows(kind):
    def extend(config, params, x, state, context):
        y, state, aux = kind.extend(config, params, x, state, context)
        return y, state.replace(mean=jnp.concatenate([state.mean, state.mean], axis=1)), aux

    return {"extend": extend}


def batch_last(kind):
    return {"state": lambda config, batch, capacity: {"mean": jnp.zeros((config.d_model, batch, 3))}}


def explodes(kind):
    def spec(config):
        tree = kind.spec(config)
        out = tree["out"]
        init = lambda key, shape, dtype: 1000 * out.init(key, shape, dtype)  # noqa: E731
        return {**tree, "out": dataclasses.replace(out, init=init)}

    return {"spec": spec}


def dead_channel(kind):
    def spec(config):
        tree = kind.spec(config)
        out = tree["out"]
        init = lambda key, shape, dtype: out.init(key, shape, dtype).at[:, 3].set(0.0)  # noqa: E731
        return {**tree, "out": dataclasses.replace(out, init=init)}

    return {"spec": spec}


def promotes(kind):
    def apply(config, params, x, context):
        y, aux = kind.apply(config, params, x, context)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32)), aux

    return {"apply": apply}


def coarse(kind):
    """Accumulates in a type with two digits where the model is narrow."""

    def apply(config, params, x, context):
        y, aux = kind.apply(config, params, x, context)
        rounded = y.astype(jnp.float8_e5m2).astype(y.dtype) if x.dtype == jnp.bfloat16 else y
        return rounded, aux

    return {"apply": apply}


def remembers(kind):
    """Counts in Python how often it was traced: another program, other numbers."""
    calls = itertools.count()

    def apply(config, params, x, context):
        y, aux = kind.apply(config, params, x, context)
        return y * (1 + 0.01 * next(calls)), aux

    return {"apply": apply}


def own_dropout(kind):
    """A fixed key in place of the layer's, and nothing where the layer is scanned."""
    calls = itertools.count()

    def apply(config, params, x, context):
        y, aux = kind.apply(config, params, x, context)
        return y * jax.random.bernoulli(jax.random.key(next(calls)), 0.7, y.shape), aux

    return {"apply": apply}


MUTANTS = [
    (shifted, "reference"),
    (shifted, "lengths"),
    (shifted, "chunks"),
    (backwards, "causality"),
    (backwards, "reach"),
    (over_channels, "reach"),
    (forgets_documents, "packing"),
    (forgets_documents, "masks"),
    (forgets_padding, "masks"),
    (half_a_gradient, "reference"),
    (multiples_of_four, "lengths"),
    (forgets_its_state, "chunks"),
    (mixes_rows, "state"),
    (state_grows, "state"),
    (batch_last, "state"),
    (explodes, "initial"),
    (dead_channel, "initial"),
    (promotes, "precision"),
    (coarse, "precision"),
    (remembers, "compilation"),
    (remembers, "transforms"),
    (own_dropout, "dropout"),
]


@pytest.mark.parametrize(("mutate", "check"), MUTANTS, ids=[f"{f.__name__}-{check}" for f, check in MUTANTS])
def test_the_check_sees_the_fault(good, mutate, check, monkeypatch):
    mutant = dataclasses.replace(good, **mutate(good))
    monkeypatch.setitem(KINDS, "Z", mutant)
    from hybrid.config import _resolve

    _resolve.cache_clear()
    with pytest.raises(AssertionError, match=r"^Z \(average\): "):
        testing.check(mutant, only=[check])
    _resolve.cache_clear()


def test_all_checks_pass_without_a_fault(good):
    testing.check(good)


def test_a_kind_without_a_reference_is_told_so(good):
    with pytest.raises(AssertionError, match="no naive reference"):
        testing.check(dataclasses.replace(good, reference=None), only=["reference"])


def test_a_trait_that_is_not_true_is_found(good):
    """A mixer that says it acts on each position alone, or says it sees a window and sees all."""
    alone = dataclasses.replace(good, traits=lambda config: Traits(reach="none"))
    with pytest.raises(AssertionError, match="output 1 depends on input 0"):
        testing.check(alone, only=["causality"])
    both_ways = dataclasses.replace(good, traits=lambda config: Traits(causal=False))
    with pytest.raises(AssertionError, match="sees both ways"):
        testing.check(both_ways, only=["reach"])


def test_what_is_no_check_is_refused():
    with pytest.raises(ConfigError, match=r"only: 'chunk' is not a check; did you mean 'chunks'\?"):
        testing.check("-", only=["chunk"])


def test_the_kind_must_stand_in_the_pattern():
    with pytest.raises(ValueError, match=r"the pattern 'M' has no - \(mlp\)"):
        testing.check("-", testing.example("M"))


def test_all_checks_run_on_one_device_but_those_of_several(monkeypatch):
    ran = []
    checks = {name: (lambda subject, name=name: ran.append(name)) for name in testing.CHECKS}
    monkeypatch.setattr(testing, "CHECKS", checks)
    testing.check("-")
    assert ran == [name for name in testing.CHECKS if name not in ("sharding", "sequence")]
