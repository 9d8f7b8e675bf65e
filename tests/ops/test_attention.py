"""All forms of attention equal the definition, see what they should and nothing else, and need linear memory."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.ops import flash
from hybrid.ops.attention import FORMS, attention, implementation
from hybrid.ops.forms import noted
from hybrid.ops.visibility import Visibility
from hybrid.positions import alibi, relative_bias
from hybrid.validation import ConfigError

FAST = [form for form in FORMS if form not in ("reference", "blocks")]
GENERAL = [form for form in FORMS if form != "blocks"]  # tests/ops/test_local_attention.py


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles, the last one incomplete, in tests of a few positions."""
    monkeypatch.setattr(flash.flash_attention, "__defaults__", (4,))


def inputs(q_length=11, k_length=None, batch=2, n_heads=4, n_kv_heads=2, head_dim=3, value_dim=3, seed=0, dtype=None):
    g = np.random.default_rng(seed)
    k_length = q_length if k_length is None else k_length
    shapes = ((q_length, n_heads, head_dim), (k_length, n_kv_heads, head_dim), (k_length, n_kv_heads, value_dim))
    return {n: jnp.asarray(g.normal(size=(batch, *s)), dtype) for n, s in zip("qkv", shapes, strict=True)}


STATIC = ("form", "causal", "window", "scale", "softcap")


@partial(jax.jit, static_argnames=STATIC)
def value_and_gradient(arrays, fixed, **options):
    """`arrays` are differentiated, `fixed` (positions, segments, validity) are not."""
    out, pull = jax.vjp(lambda arrays: attention(**arrays, **fixed, **options), arrays)
    return out, pull(jnp.cos(out))[0]


def close(a, b, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), a, b)


def cases(seed=0, batch=2, q=11, k=11):
    """name -> (fixed arrays, options)"""
    g = np.random.default_rng(seed)
    segments = jnp.asarray(np.cumsum(g.random((batch, q)) < 0.3, axis=1))
    shuffled = jnp.asarray(np.stack([g.permutation(k) for _ in range(batch)]))
    packed = {"q_segments": segments, "k_segments": segments}
    return {
        "causal": ({}, {}),
        "window both ways": ({}, {"window": 3, "causal": False}),
        "slots in any order": ({"k_positions": shuffled, "k_valid": jnp.asarray(g.random((batch, k)) < 0.7)}, {}),
        "nothing to see": ({"k_valid": jnp.zeros((batch, k), bool).at[0].set(True)}, {"window": 2}),
        "soft cap and scale": ({}, {"softcap": 0.7, "scale": 1.3}),
        "everything": (packed | {"k_valid": jnp.asarray(g.random((batch, k)) < 0.7)}, {"window": 4}),
    }


PAIRS = [(form, case) for form in FAST for case in cases() if (form, case) != ("fused", "soft cap and scale")]


@pytest.mark.parametrize(("form", "case"), PAIRS)
def test_form_equals_the_definition_in_value_and_gradient(x64, small_tiles, form, case):
    fixed, options = cases()[case]
    arrays = inputs(value_dim=3 if form == "fused" else 5)
    # jax.nn.dot_product_attention takes its softmax in float32 whatever the inputs are
    got, want = (value_and_gradient(arrays, fixed, form=f, **options) for f in (form, "reference"))
    close(got, want, atol=1e-5 if form == "fused" else 1e-12)


@pytest.mark.parametrize("shape", [(2, 4), (1, 1)])
@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_bias_and_its_gradient_equal_the_definition(x64, small_tiles, form, shape):
    arrays = inputs(6) | {"bias": jnp.asarray(np.random.default_rng(1).normal(size=(*shape, 6, 6)))}
    got, want = (value_and_gradient(arrays, {}, form=f, softcap=2.0) for f in (form, "reference"))
    close(got, want)


@settings(max_examples=3, deadline=None)
@given(shape=st.sampled_from([(1, 7), (8, 5)]), seed=st.integers(0, 99), window=st.sampled_from([None, 2]))
def test_tiles_equal_the_definition_for_other_lengths_and_any_positions(shape, seed, window):
    """Queries at random positions over keys in random slots, a head a key head."""
    q, k = shape
    positions = jnp.asarray(np.random.default_rng(seed).integers(0, 12, (2, q + k)))
    fixed = {"q_positions": positions[:, :q], "k_positions": positions[:, q:]}
    vis = {"q_segments": None, "k_segments": None, "k_valid": None, "causal": True, "window": window}

    def tiled(q, k, v):
        return flash.flash_attention(q, k, v, Visibility(**fixed, **vis), None, 0.5, None, tile=3)

    with jax.enable_x64(True):
        arrays = inputs(q, k, n_heads=2, seed=seed)
        out, pull = jax.vjp(jax.jit(tiled), *arrays.values())
        want, grads = value_and_gradient(arrays, fixed, form="reference", window=window, scale=0.5)
        close((out, *pull(jnp.cos(out))), (want, *(grads[n] for n in "qkv")))


@pytest.mark.parametrize("form", FORMS)
def test_window_of_w_keys_sees_itself_and_w_minus_1_before(x64, small_tiles, form):
    arrays = inputs(12)

    def one(v):
        return attention(arrays["q"], arrays["k"], v, window=3, form=form)[:, 7].sum()

    assert (jax.jit(jax.grad(one))(arrays["v"]) != 0).any((0, 2, 3)).nonzero()[0].tolist() == [5, 6, 7]


@pytest.mark.parametrize("form", GENERAL)
def test_no_gradient_flows_between_documents_or_from_invalid_keys(x64, small_tiles, form):
    arrays, segments = inputs(9, batch=1), jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2]])
    valid = jnp.arange(9)[None] != 5

    def second(k, v):
        out = attention(arrays["q"], k, v, q_segments=segments, k_segments=segments, k_valid=valid, form=form)
        return jnp.sin(out[:, 4:]).sum()

    for gradient in jax.jit(jax.grad(second, (0, 1)))(arrays["k"], arrays["v"]):
        touched = (gradient != 0).any((0, 2, 3))
        assert touched.nonzero()[0].tolist() == [4, 6, 7, 8]


@pytest.mark.parametrize("form", GENERAL)
def test_query_that_sees_no_key_gives_zeros_and_zero_gradients(form, small_tiles):
    arrays = inputs(5, batch=1, dtype=jnp.float32)
    fixed = {"q_positions": jnp.arange(5)[None], "k_positions": jnp.arange(2, 7)[None]}
    out, gradients = value_and_gradient(arrays, fixed, form=form)
    assert (out[:, :2] == 0).all() and (out[:, 2:] != 0).any()
    assert (gradients["q"][:, :2] == 0).all()
    assert all(jnp.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("form", GENERAL)
def test_bfloat16_drifts_by_a_few_roundings(form, small_tiles):
    narrow = inputs(40, head_dim=16, value_dim=16, dtype=jnp.bfloat16)
    run = jax.jit(attention, static_argnames="form")
    out = run(**narrow, form=form)
    assert out.dtype == jnp.bfloat16
    exact = run(**{n: a.astype(jnp.float32) for n, a in narrow.items()}, form="reference")
    assert jnp.abs(out.astype(jnp.float32) - exact).max() < 0.03


@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_scores_of_ten_thousand_do_not_overflow(form, small_tiles):
    arrays = inputs(9, dtype=jnp.float32)
    out, gradients = value_and_gradient(arrays | {"q": arrays["q"] * 1e4}, {}, form=form)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((out, gradients)))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_bias_made_of_positions_and_its_gradient_equal_the_definition(x64, small_tiles, packed, causal):
    """The table is held by the function alone."""
    arrays, fixed = inputs(11), {}
    if packed:
        fixed = {name: cases()["everything"][0]["q_segments"] for name in ("q_segments", "k_segments")}
    arrays["table"] = jnp.asarray(np.random.default_rng(1).normal(size=(8, 4)))

    def run(form):
        def attend(arrays):
            table = arrays["table"]

            def bias(q, k):
                return relative_bias(q, k, table, causal, 9)

            given = {name: arrays[name] for name in "qkv"}
            return attention(**given, **fixed, bias=bias, causal=causal, softcap=2.0, form=form)

        out, pull = jax.vjp(attend, arrays)
        return out, pull(jnp.cos(out))[0]

    close(*(jax.jit(run, static_argnums=0)(form) for form in ("chunked", "reference")))


def visited(tiles):
    return np.asarray(tiles).astype(int).tolist()


def test_only_tiles_in_which_something_is_visible_are_visited():
    positions = jnp.arange(16)[None]
    seg = jnp.repeat(jnp.arange(2), 8)[None]
    base = Visibility(positions, positions, None, None, None, causal=True, window=None)
    assert visited(base.tiles(4, 4)) == np.tril(np.ones((4, 4), int)).tolist()
    window = Visibility(positions, positions, None, None, None, causal=True, window=2)
    assert visited(window.tiles(4, 4)) == (np.eye(4, dtype=int) + np.eye(4, k=-1, dtype=int)).tolist()
    packed = Visibility(positions, positions, seg, seg, positions != 99, causal=True, window=None)
    assert visited(packed.tiles(4, 4)) == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    some = Visibility(positions[:, 12:], positions, None, None, positions >= 8, causal=True, window=None)
    assert visited(some.tiles(4, 4)) == [[0, 0, 1, 1]]


def test_tiles_that_are_seen_in_whole_are_those_without_a_masked_score():
    g = np.random.default_rng(0)
    positions = jnp.asarray(np.sort(g.integers(0, 30, (2, 16)), axis=1))
    seg = jnp.repeat(jnp.arange(2), 8)[None]
    found = 0
    for causal, window, segments, valid in (
        (True, None, None, None), (True, 9, None, None), (False, 9, None, None), (True, None, seg, None),
        (False, None, None, jnp.arange(16)[None] != 5),
    ):  # fmt: skip
        vis = Visibility(positions, positions[:, ::-1], segments, segments, valid, causal=causal, window=window)
        mask, whole = jax.jit(lambda vis: (vis.mask(), vis.whole_tiles(4, 4)))(vis)
        tiles = np.asarray(mask).reshape(-1, 4, 4, 4, 4).all((0, 2, 4))
        assert visited(whole) == tiles.astype(int).tolist()
        found += tiles.sum()
    assert found > 5


def test_vmap_equals_a_loop(x64, small_tiles):
    many = [inputs(9, seed=s) for s in range(2)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *many)
    got = jax.vmap(lambda a: value_and_gradient(a, {}, form="chunked", window=3))(stacked)
    alone = [value_and_gradient(a, {}, form="chunked", window=3) for a in many]
    close(got, jax.tree.map(lambda *a: jnp.stack(a), *alone))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"form": "chunkd"}, "did you mean 'chunked'"),
        ({"window": 0}, "window"),
        ({"q_segments": jnp.zeros((2, 5), int)}, "k_segments"),
        ({"bias": jnp.zeros((1, 3, 5, 5))}, "bias"),
        ({"form": "fused", "softcap": 1.0}, "no softcap"),
        ({"form": "fused", "v": jnp.zeros((2, 5, 2, 4))}, "values as wide as keys"),
    ],
)
def test_what_cannot_be_done_is_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        attention(**(inputs(5, dtype=jnp.float32) | wrong))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="n_kv_heads: 2 is not allowed"):
        attention(**inputs(5, n_heads=3, dtype=jnp.float32))


def temporaries(length, **options):
    """Bytes of temporaries of forward and gradient at 4 heads of 64."""

    def loss(q, k, v):
        return attention(q, k, v, **options).sum()

    shape = jax.ShapeDtypeStruct((1, length, 4, 64), jnp.float32)
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("options", [{}, {"window": 512}], ids=["global", "window"])
def test_chunked_gradient_at_8192_positions_needs_at_most_60_mib(options):
    """The scores alone would be 1 GiB."""
    assert temporaries(8192, form="chunked", **options) <= 60 * 2**20


def test_window_at_32768_positions_needs_at_most_250_mib():
    """Four times what 8192 positions need: linear."""
    long, short = (temporaries(length, form="chunked", window=512) for length in (32768, 8192))
    assert long <= min(250 * 2**20, 4.5 * short)


@pytest.mark.parametrize("form", ["auto", "chunked"])
def test_biases_of_distances_are_never_whole(form):
    """All distances of 8192 positions would be 256 MiB, times heads."""
    table = jnp.ones((32, 4))
    assert temporaries(8192, form=form, bias=lambda q, k: alibi(q, k, 4)) <= 80 * 2**20
    assert temporaries(8192, form=form, bias=lambda q, k: relative_bias(q, k, table, True, 128)) <= 80 * 2**20


@pytest.mark.parametrize(
    ("dtype", "head_dim", "value_dim", "platform", "want"),
    [
        (jnp.bfloat16, 64, 64, "gpu", "cudnn"),
        (jnp.float16, 128, 128, "gpu", "cudnn"),
        (jnp.bfloat16, 64, 64, "cpu", None),
        (jnp.bfloat16, 64, 64, "tpu", None),
        (jnp.float32, 64, 64, "gpu", None),
        (jnp.bfloat16, 60, 60, "gpu", None),
        (jnp.bfloat16, 256, 256, "gpu", None),
        (jnp.bfloat16, 64, 32, "gpu", None),
    ],
)
def test_cudnn_is_asked_for_where_it_takes_such_arrays(dtype, head_dim, value_dim, platform, want):
    arrays = inputs(4, head_dim=head_dim, value_dim=value_dim, dtype=dtype)
    assert implementation(*arrays.values(), platform) == want


@pytest.mark.parametrize(
    ("length", "dtype", "options", "want"),
    [
        (8192, jnp.bfloat16, {}, "fused cudnn"),
        (2048, jnp.float32, {}, "fused"),
        (8192, jnp.float32, {}, "chunked 512"),
        (8192, jnp.bfloat16, {"softcap": 1.0}, "chunked 512"),
        (8192, jnp.bfloat16, {"window": 64}, "blocks"),
    ],
)
def test_form_that_a_gpu_would_take(monkeypatch, length, dtype, options, want):
    """The choice alone: nothing is compiled."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, *rest, **options: q + 0 * v)
    shape = jax.ShapeDtypeStruct((1, length, 4, 64), dtype)
    with noted() as chosen:
        jax.eval_shape(partial(attention, **options), shape, shape, shape)
    assert chosen == {"attention": want}


def test_long_sequences_do_not_materialise_scores_by_default():
    assert temporaries(4096) < 4096 * 4096 * 4
