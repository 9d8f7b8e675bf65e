"""Attention inside a window, in blocks: equal to the definition, and linear in the length."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops import attention as module
from hybrid.ops import local_attention
from hybrid.ops.attention import attention
from hybrid.ops.flash import tile_of
from hybrid.validation import ConfigError


def inputs(length, batch=2, n_heads=4, n_kv_heads=2, head_dim=3, seed=0, dtype=None):
    g = np.random.default_rng(seed)
    shapes = {"q": (n_heads, head_dim), "k": (n_kv_heads, head_dim), "v": (n_kv_heads, 5)}
    return {n: jnp.asarray(g.normal(size=(batch, length, *s)), dtype) for n, s in shapes.items()}


@partial(jax.jit, static_argnames=("form", "window", "scale", "softcap", "distances"))
def value_and_gradient(arrays, fixed, distances=False, **options):
    """`distances`: arrays["slope"] is a bias for the distance, as a function of positions."""

    def run(arrays):
        slope = arrays["slope"]
        if distances:
            options["bias"] = lambda q, k: jnp.sin(slope * (q[:, None, :, None] - k[:, None, None, :]))
        return attention(arrays["q"], arrays["k"], arrays["v"], **fixed, **options)

    out, pull = jax.vjp(run, arrays | {"slope": arrays.get("slope", jnp.ones((4, 1, 1)))})
    return out, pull(jnp.cos(out))[0]


@pytest.fixture
def small_groups(monkeypatch):
    """Blocks are taken two or three at a time, so that a row of a test has several groups of them."""
    monkeypatch.setattr(local_attention, "QUERIES", {"other": 9})


def close(a, b, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), a, b)


@pytest.mark.parametrize(("length", "window"), [(23, 4), (24, 3), (5, 9), (7, 7), (11, 1), (1, 3)])
def test_blocks_equal_the_definition_at_any_length(x64, small_groups, length, window):
    got, want = (value_and_gradient(inputs(length), {}, form=f, window=window) for f in ("blocks", "reference"))
    close(got, want)


def test_blocks_equal_the_definition_with_documents_padding_and_all_options(x64, small_groups):
    g = np.random.default_rng(3)
    segments = jnp.asarray(np.cumsum(g.random((2, 23)) < 0.2, axis=1))
    valid = jnp.asarray(g.random((2, 23)) < 0.7).at[1, :9].set(False)  # the second row is padded on the left
    fixed = {"q_segments": segments, "k_segments": segments, "k_valid": valid}
    options = {"window": 4, "softcap": 0.7, "scale": 1.3, "distances": True}
    arrays = inputs(23) | {"slope": jnp.arange(1.0, 5.0).reshape(4, 1, 1)}
    got, want = (value_and_gradient(arrays, fixed, form=f, **options) for f in ("blocks", "reference"))
    close(got, want)
    assert (got[1]["slope"] != 0).all()


def test_bfloat16_drifts_by_a_few_roundings():
    narrow = inputs(40, head_dim=16, dtype=jnp.bfloat16)
    run = jax.jit(attention, static_argnames=("form", "window"))
    out = run(**narrow, form="blocks", window=8)
    assert out.dtype == jnp.bfloat16
    exact = run(**{n: a.astype(jnp.float32) for n, a in narrow.items()}, form="reference", window=8)
    assert jnp.abs(out.astype(jnp.float32) - exact).max() < 0.03


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": None},
        {"causal": False},
        {"q_positions": jnp.arange(6)[None], "k_positions": jnp.arange(6)[None]},
        {"k": jnp.zeros((2, 7, 2, 3)), "v": jnp.zeros((2, 7, 2, 3))},
        {"bias": jnp.zeros((1, 1, 6, 6))},
    ],
)
def test_what_does_not_lie_in_blocks_is_refused(wrong):
    with pytest.raises(ConfigError, match="'blocks' needs a causal window"):
        attention(**(inputs(6, dtype=jnp.float32) | {"window": 2, "form": "blocks"} | wrong))


def automatic(length, window, **options):
    arrays = inputs(length, batch=1, dtype=jnp.float32)
    defaults = dict.fromkeys(("q_positions", "k_positions", "q_segments", "k_segments", "k_valid"))
    call = module._checked(**arrays, **defaults, causal=True, window=window, scale=None, softcap=None, bias=None)
    return module._automatic(call)


def test_a_row_of_many_windows_is_never_computed_whole():
    assert automatic(200, 8) == "blocks"
    assert automatic(200, 64) == "chunked"
    assert automatic(4096, 512) == "chunked"
    assert automatic(20, 16) == "plain"
    assert automatic(200, None) == "chunked"


def test_tiles_are_no_larger_than_a_window_that_is_wide():
    assert [tile_of(8192, w) for w in (8, 200, 512, 100_000)] == [64, 64, 256, 256]


def memory(length, window, form):
    """Bytes of temporaries of the gradient at one head of 8, and the largest array of the program."""

    def loss(q, k, v):
        return attention(q, k, v, window=window, form=form).sum()

    shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
    gradient = jax.grad(loss, (0, 1, 2))
    return jax.jit(gradient).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("window", [16, 256])
def test_memory_of_the_gradient_is_linear_in_the_length(window):
    """auto: blocks for the one, tiles for the other. An array of 16384 x 16384 booleans would be 256 MiB."""
    short, long = (memory(length, window, "auto") for length in (4096, 16384))
    assert long <= 4.5 * short
    assert long < 16384 * 16384 / 8
