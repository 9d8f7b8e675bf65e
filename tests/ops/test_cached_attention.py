"""Attention to a cache equals the definition, reads what is filled alone, and is done in place."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from hybrid.ops import cached_attention as module
from hybrid.ops.attention import attention
from hybrid.ops.cached_attention import FORMS, cached_attention, put
from hybrid.params import init
from hybrid.positions import relative_bias
from hybrid.sublayers.kind import Context
from hybrid.testing import example
from hybrid.validation import ConfigError


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks, the last one incomplete, and several tiles of queries."""
    for name, value in (("CHUNK", 16), ("NARROWEST", 4), ("WIDEST", 8), ("QUERIES", 3)):
        monkeypatch.setattr(module, name, value)


def case(new=1, slots=11, n_heads=4, n_kv_heads=2, head_dim=3, value_dim=5, batch=2, seed=0, filled=9):
    """Slots in any order, some of them evicted, one row shorter than the other."""
    g = np.random.default_rng(seed)
    arrays = {
        "q": g.normal(size=(batch, new, n_heads, head_dim)),
        "keys": g.normal(size=(batch, n_kv_heads, head_dim, slots)),
        "values": g.normal(size=(batch, n_kv_heads, slots, value_dim)),
    }
    order = np.stack([g.permutation(filled) for _ in range(batch)])
    positions = np.zeros((batch, slots), int)
    positions[:, :filled] = order
    valid = (np.arange(slots) < filled - np.arange(batch)[:, None] * 3) & (g.random((batch, slots)) < 0.8)
    latest = np.broadcast_to(filled - new + np.arange(new), (batch, new))
    fixed = {"q_positions": latest, "k_positions": positions, "k_valid": valid}
    return jax.tree.map(jnp.asarray, arrays), jax.tree.map(jnp.asarray, fixed)


@partial(jax.jit, static_argnames=("form", "window", "softcap", "scale"))
def run(arrays, fixed, used=None, **options):
    out, pull = jax.vjp(lambda arrays: cached_attention(**arrays, **fixed, used=used, **options), arrays)
    return out, pull(jnp.cos(out))[0]


@partial(jax.jit, static_argnames=("window", "softcap", "scale"))
def definition(arrays, fixed, **options):
    def attend(arrays):
        k, v = arrays["keys"].transpose(0, 3, 1, 2), arrays["values"].swapaxes(1, 2)
        rest = {name: value for name, value in arrays.items() if name == "bias"}
        return attention(arrays["q"], k, v, **fixed, **options, form="reference", **rest)

    out, pull = jax.vjp(attend, arrays)
    return out, pull(jnp.cos(out))[0]


def close(got, want, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {}),
        ({"n_heads": 2}, {"window": 4}),
        ({"new": 7, "filled": 10}, {}),
        ({"new": 2, "slots": 4, "filled": 4}, {"softcap": 0.7, "scale": 1.3}),
        ({"n_heads": 2, "batch": 1, "slots": 1, "filled": 1}, {}),
    ],
)
def test_form_equals_the_definition_in_value_and_gradient(x64, small_chunks, form, shape, options):
    arrays, fixed = case(**shape)
    close(run(arrays, fixed, form=form, **options), definition(arrays, fixed, **options))


@pytest.mark.parametrize("new", [1, 5])
def test_bias_of_distances_and_its_gradient_equal_the_definition(x64, small_chunks, new):
    arrays, fixed = case(new)
    table = jnp.asarray(np.random.default_rng(1).normal(size=(8, 4)))
    bias = Partial(lambda table, q, k: relative_bias(q, k, table, True, 16), table)
    close(run({**arrays, "bias": bias}, fixed), definition({**arrays, "bias": bias}, fixed))


def test_a_query_that_sees_no_slot_gives_zeros(small_chunks):
    arrays, fixed = case()
    out, gradients = run(arrays, {**fixed, "k_valid": fixed["k_valid"].at[1].set(False)})
    assert (out[1] == 0).all() and (out[0] != 0).any()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_slots_behind_those_used_are_not_read(small_chunks):
    """They hold what is not a number, which even a weight of zero would carry on."""
    arrays, fixed = case(slots=40, filled=7)
    arrays["values"] = arrays["values"].at[:, :, 8:].set(jnp.nan)
    arrays["keys"] = arrays["keys"].at[..., 8:].set(jnp.nan)
    part = jax.jit(lambda used: cached_attention(**arrays, **fixed, used=used))
    assert jnp.isfinite(part(7)).all()
    assert not jnp.isfinite(part(40)).all()


def test_put_writes_each_row_at_its_own_slot_and_leaves_rows_that_are_not_real(x64):
    cache, new = jnp.zeros((3, 2, 6)), jnp.arange(1.0, 13).reshape(3, 2, 2)
    got = jax.jit(partial(put, axis=2))(cache, new, jnp.array([4, 0, 1]), real=jnp.array([True, False, True]))
    want = np.zeros((3, 2, 6))
    want[0, :, 4:], want[2, :, 1:3] = new[0], new[2]
    np.testing.assert_array_equal(got, want)


def test_shapes_that_do_not_fit_are_refused():
    arrays, fixed = case()
    with pytest.raises(ConfigError, match="keys"):
        cached_attention(**{**arrays, "keys": arrays["keys"].swapaxes(2, 3)}, **fixed)
    with pytest.raises(ConfigError, match="n_kv_heads"):
        cached_attention(**{**arrays, "q": arrays["q"][:, :, :3]}, **fixed)
    with pytest.raises(ConfigError, match="did you mean 'chunked'"):
        cached_attention(**arrays, **fixed, form="chunkd")


CAPACITY = 8192


def step_of(symbol, batch, **fields):
    """(one step of the sublayer, shapes of its arguments): d_model 256, 4 heads of 64, float32."""
    config = example(symbol, **{"d_model": 256, "n_heads": 4, **fields})
    kind, view = config.sublayer(symbol)
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))["layers"]["0"]["sublayer"]
    state = jax.eval_shape(lambda: kind.state(view, batch, CAPACITY))

    def step(params, x, state, positions):
        return kind.extend(view, params, x, state, Context(positions=positions))[:2]

    x, positions = jnp.zeros((batch, 1, 256)), jnp.zeros((batch, 1), jnp.int32)
    return step, (params, x, state, positions)


STACKS = [{}, {"n_kv_heads": 1}, {"positions": "alibi"}, {"sliding_window": {"window": 4096}}]


@pytest.mark.parametrize("fields", STACKS)
def test_a_step_of_one_token_is_done_in_place_with_at_most_1_mib(fields):
    """The cache has 16 MiB (4 with one key head)."""
    step, arguments = step_of("S" if "sliding_window" in fields else "A", 1, **fields)
    memory = jax.jit(step, donate_argnums=2).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 2**20
    assert memory.alias_size_in_bytes >= sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[2]))


def test_many_steps_in_one_compiled_loop_copy_no_cache():
    """Eight rows: the cache has 128 MiB."""
    step, arguments = step_of("A", 8)

    def steps(params, x, state, positions):
        def body(carry, t):
            x, state = carry
            y, state = step(params, x, state, positions + t)
            return (y, state), y

        return jax.lax.scan(body, (x, state), jnp.arange(16))

    compiled = jax.jit(steps, donate_argnums=2).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 8 * 2**20
