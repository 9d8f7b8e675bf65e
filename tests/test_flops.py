"""Counting operations from a jaxpr: products, loops, derivatives, transforms."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest

from hybrid.flops import count_jaxpr

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def count(function, *arrays):
    return count_jaxpr(jax.make_jaxpr(function)(*arrays))


def test_a_product_is_two_operations_for_each_multiply_add():
    assert count(jnp.matmul, A, B) == PRODUCT
    assert count(lambda a, b: jnp.einsum("zij,zjk->zik", a, b), jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7))) == 4 * PRODUCT


def test_jit_vmap_and_custom_derivatives_are_looked_into():
    @jax.custom_vjp
    def product(a, b):
        return a @ b

    product.defvjp(lambda a, b: (a @ b, (a, b)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    assert count(jax.jit(jnp.matmul), A, B) == PRODUCT
    assert count(jax.vmap(jnp.matmul), jnp.ones((6, 3, 5)), jnp.ones((6, 5, 7))) == 6 * PRODUCT
    assert count(product, A, B) == PRODUCT
    gradient = jax.grad(lambda a, b: product(a, b).astype(jnp.int32).sum() * 0.0 + product(a, b).sum(), argnums=(0, 1))
    assert count(gradient, A, B) >= 3 * PRODUCT


def test_a_scan_counts_its_body_as_often_as_it_runs():
    square = jnp.ones((4, 4))

    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ square, None), x, None, length=9)[0]

    assert count(loop, square) == 9 * 2 * 4**3
    # The constant factor has no gradient: one product backward for each forward, and jax runs both loops.
    assert count(jax.grad(lambda x: loop(x)[0, 0]), square) == 2 * 9 * 2 * 4**3


def test_a_loop_of_known_length_is_a_scan_and_one_of_unknown_length_is_refused():
    assert count(lambda x: jax.lax.fori_loop(0, 6, lambda i, x: x * 2.0, x), jnp.ones(3)) == 18
    with pytest.raises(ValueError, match="trips"):
        count(lambda x: jax.lax.while_loop(lambda x: x[0] < 3, lambda x: x * 2.0, x), jnp.ones(3))


def test_the_gradient_of_a_product_costs_two_and_remat_one_more():
    def loss(a, b):
        return jnp.tanh(a @ b)[0, 0]

    once = count(jax.grad(loss, argnums=(0, 1)), A, B)
    assert 3 * PRODUCT <= once < 3 * PRODUCT + 6 * 21  # and some arithmetic on the 21 results
    again = count(jax.grad(jax.checkpoint(loss), argnums=(0, 1)), A, B)
    assert PRODUCT <= again - once < PRODUCT + 2 * 21


def test_of_two_branches_the_dearer_is_counted():
    def choose(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))

    assert count(choose, A, B) == PRODUCT


@pytest.mark.parametrize("n", [8, 30])
def test_a_fourier_transform_is_5_n_log2_n(n):
    complex_rows = jnp.ones((4, n), jnp.complex64)
    operations = round(4 * 5 * n * math.log2(n))
    assert count(jnp.fft.fft, complex_rows) == operations
    assert count(jnp.fft.ifft, complex_rows) == operations
    assert count(lambda x: jnp.fft.rfft(x, n), jnp.ones((4, n))) == operations
    half = jnp.ones((4, n // 2 + 1), jnp.complex64)
    assert count(lambda x: jnp.fft.irfft(x, n), half) == operations


def test_a_convolution_counts_its_taps():
    x, kernel = jnp.ones((2, 3, 16)), jnp.ones((5, 3, 4))
    assert count(lambda x, k: jax.lax.conv(x, k, (1,), "SAME"), x, kernel) == 2 * (2 * 5 * 16) * (3 * 4)


def test_moving_comparing_and_whole_numbers_are_free():
    assert count(lambda x: jnp.where(x.T > 0, x.T, 0.0).reshape(-1)[::-1], A) == 0
    assert count(lambda i: i + i * 2, jnp.arange(5)) == 0


def test_reductions_and_elementwise():
    assert count(lambda x: x.sum(), A) == 15
    assert count(lambda x: jnp.exp(x) * x, A) == 30
