"""The long convolution equals its definition, is causal, linear (not circular), and can be continued."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hybrid.ops import fftconv
from hybrid.ops.fftconv import (
    TAIL_FORMS,
    channel_blocks,
    conv_tail,
    fft_conv,
    fft_conv_reference,
    gated_conv,
    transform_size,
)
from hybrid.ops.forms import noted
from hybrid.validation import ConfigError


def inputs(length, taps, batch=2, channels=3, seed=0, dtype=None):
    g = np.random.default_rng(seed)
    shapes = {"u": (batch, channels, length), "kernel": (channels, taps), "skip": (channels,)}
    return {name: jnp.asarray(g.normal(size=shape), dtype) for name, shape in shapes.items()}


@partial(jax.jit, static_argnames=("function", "cut", "capacity", "form"))
def value_and_gradient(function, arrays, **options):
    out, pull = jax.vjp(lambda arrays: function(**arrays, **options), arrays)
    return out, pull(jnp.cos(out))[0]


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), a, b)


@settings(max_examples=6, deadline=None)
@given(shape=st.sampled_from([(1, 1), (7, 3), (7, 7), (5, 9)]), seed=st.integers(0, 99))
def test_equals_the_direct_sum_in_value_and_gradient(shape, seed):
    """Kernels shorter and longer than the input; sizes that are no power of anything."""
    with jax.enable_x64(True):
        arrays = inputs(*shape, seed=seed)
        close(value_and_gradient(fft_conv, arrays), value_and_gradient(fft_conv_reference, arrays))


def test_each_channel_has_its_own_kernel_and_no_position_sees_a_later_one(x64):
    arrays = inputs(6, 6)

    def one(u):
        return fft_conv(u, arrays["kernel"])[1, 2, 3]

    gradient = jax.grad(one)(arrays["u"])
    np.testing.assert_allclose(gradient[1, 2, :4], arrays["kernel"][2, 3::-1], atol=1e-12)
    assert np.abs(gradient.at[1, 2, :4].set(0)).max() < 1e-12


def test_float32_error_is_that_of_float32_at_8192_positions():
    arrays = inputs(8192, 8192, batch=1, channels=1, dtype=jnp.float32)
    exact = np.convolve(*(np.asarray(arrays[n], np.float64).ravel() for n in ("u", "kernel")))[:8192]
    got = np.asarray(fft_conv(arrays["u"], arrays["kernel"])).ravel()
    assert np.abs(got - exact).max() <= 1e-5 * np.abs(exact).max()


def test_bfloat16_input_is_transformed_in_float32(x64):
    arrays = inputs(24, 24, dtype=jnp.bfloat16)
    y = fft_conv(**arrays)
    assert y.dtype == jnp.bfloat16
    exact = jax.jit(fft_conv_reference)(**{n: a.astype(jnp.float64) for n, a in arrays.items()})
    np.testing.assert_allclose(y.astype(jnp.float64), exact, rtol=2**-8, atol=1e-4)
    gradients = jax.grad(lambda a: fft_conv(**a).astype(jnp.float32).sum())(arrays)
    assert {g.dtype for g in gradients.values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("saved", ["inputs", "spectra"])
@pytest.mark.parametrize("axis", [0, 1])
def test_gates_and_skip_are_those_of_the_formula_in_value_and_gradient(axis, saved, x64):
    arrays = inputs(9, 12)
    g = np.random.default_rng(1)
    arrays |= {name: jnp.asarray(g.normal(size=(2, 3, 9))) for name in ("before", "after")}

    def fused(u, kernel, skip, before, after):
        turn = (lambda array: array.swapaxes(0, 1)) if axis == 0 else (lambda array: array)
        gates = {"before": turn(before), "after": turn(after)}
        return turn(gated_conv(turn(u), kernel, skip=skip, channel_axis=axis, saved=saved, **gates))

    def plain(u, kernel, skip, before, after):
        return after * fft_conv_reference(before * u, kernel, skip)

    close(value_and_gradient(fused, arrays), value_and_gradient(plain, arrays))
    del arrays["before"], arrays["after"]

    ungated = value_and_gradient(lambda u, kernel, skip: gated_conv(u, kernel, channel_axis=1, saved=saved), arrays)
    close(ungated, value_and_gradient(lambda u, kernel, skip: fft_conv_reference(u, kernel), arrays))


def test_blocks_of_channels_equal_all_at_once(x64, monkeypatch):
    arrays = inputs(10, 10, channels=32)
    whole = value_and_gradient(fft_conv, arrays)
    monkeypatch.setattr(fftconv, "_WHOLE_BYTES", {"other": 0})
    monkeypatch.setattr(fftconv, "_BLOCK_BYTES", {"other": 0})
    with noted() as forms:
        close(jax.vjp(lambda arrays: fft_conv(**arrays), arrays)[0], whole[0])
    assert forms["fft_conv"] == "blocks of 16 channels"
    pull = jax.vjp(lambda arrays: fft_conv(**arrays), arrays)[1]
    close(pull(jnp.cos(whole[0]))[0], whole[1])


@pytest.mark.parametrize(
    ("channels", "batch", "length", "blocks"),
    [
        (128, 1, 4096, 1),  # small enough at once
        (128, 1, 65_536, 4),
        (128, 1, 1_048_576, 8),  # no fewer than 16
        (768, 8, 8192, 24),
        (97, 1, 1_048_576, 1),  # a prime number cannot be cut
        (100, 1, 1_048_576, 5),
    ],
)
def test_blocks_of_long_inputs_have_16_channels_or_more(channels, batch, length, blocks):
    assert channel_blocks(channels, batch, length) == blocks


def test_memory_of_a_long_convolution_is_that_of_a_block():
    """float32, forward and backward: 8 arrays of the input's size where the spectra of all channels would be 12."""

    def temporaries():
        u, kernel = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((1, 64, 65_536), (64, 65_536)))
        gradient = jax.jit(jax.grad(lambda u, k: jnp.sum(fft_conv(u, k) ** 2), argnums=(0, 1)))
        return gradient.lower(u, kernel).compile().memory_analysis().temp_size_in_bytes / (4 * 64 * 65_536)

    assert temporaries() <= 8


def in_two_parts(u, kernel, skip, filled, cut, capacity, form):
    """The first part at once, the rest after a history of `capacity` entries."""
    history = jnp.pad(u[..., :cut], ((0, 0), (0, 0), (0, capacity - cut)))
    left = fft_conv(u[..., :cut], kernel, skip)
    return jnp.concatenate([left, conv_tail(history, u[..., cut:], kernel, skip, filled=filled, form=form)], axis=-1)


@settings(max_examples=6, deadline=None)
@given(
    cut=st.integers(0, 8), spare=st.integers(0, 5), taps=st.sampled_from([1, 5, 20]), form=st.sampled_from(TAIL_FORMS)
)
@example(cut=4, spare=2, taps=5, form="direct")
@example(cut=4, spare=2, taps=20, form="fft")
def test_continued_after_any_cut_equals_the_whole(cut, spare, taps, form):
    """With a traced `filled`, histories with room to spare, and more new inputs than there is room for."""
    with jax.enable_x64(True):
        arrays = inputs(9, taps, seed=cut)
        got = value_and_gradient(
            in_two_parts, arrays, filled=jnp.asarray(cut), cut=cut, capacity=cut + spare, form=form
        )
        close(got, value_and_gradient(fft_conv_reference, arrays))


def test_one_new_input_is_a_dot_product_and_many_are_a_transform():
    def primitives(new):
        history, u, kernel = jnp.zeros((1, 2, 64)), jnp.zeros((1, 2, new)), jnp.zeros((2, 64))
        return str(jax.make_jaxpr(lambda *a: conv_tail(*a, filled=3))(history, u, kernel))

    assert "fft" not in primitives(1) and "dot_general" in primitives(1)
    assert "fft" in primitives(32)


def test_gradient_saves_the_inputs_and_nothing_else(x64):
    """Transforms of what was saved are cheap; saved spectra are four times the inputs."""
    arrays = inputs(33, 33)
    _, pull = jax.vjp(lambda u, k: fft_conv(u, k), arrays["u"], arrays["kernel"])
    saved = sorted(leaf.shape for leaf in jax.tree.leaves(pull) if leaf.ndim)
    assert saved == [(2, 3, 33), (3, 33)]


@pytest.mark.parametrize("least", [1, 2, 3, 7, 17, 97, 1000, 1025, 131071])
def test_transform_size_is_the_smallest_even_5_smooth_number(least):
    def smooth(n):
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    assert transform_size(least) == next(n for n in range(least, 4 * least + 2) if n % 2 == 0 and smooth(n))


def test_wrong_shapes_and_forms_are_refused():
    arrays = inputs(4, 4, dtype=jnp.float32)
    with pytest.raises(ConfigError, match="kernel"):
        fft_conv(arrays["u"], arrays["kernel"][:2])
    with pytest.raises(ConfigError, match="skip"):
        fft_conv(arrays["u"], arrays["kernel"], jnp.ones(4))
    with pytest.raises(ConfigError, match="did you mean 'direct'"):
        conv_tail(arrays["u"], arrays["u"], arrays["kernel"], filled=4, form="dircet")
