"""Callers learn which forms the operators took while they were traced."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hybrid.ops.forms import note, noted


def test_forms_are_noted_in_the_order_in_which_they_came_and_once_each():
    with noted() as chosen:
        for operator, form in (
            ("scan", "chunked 32"),
            ("attention", "flash"),
            ("scan", "step"),
            ("scan", "chunked 32"),
        ):
            note(operator, form)
    assert chosen == {"scan": "chunked 32, step", "attention": "flash"}


def test_nothing_is_noted_outside_of_the_block():
    with noted() as chosen:
        pass
    note("scan", "step")
    assert chosen == {}


def test_blocks_within_blocks_all_listen():
    with noted() as outer:
        note("scan", "step")
        with noted() as inner:
            note("attention", "flash")
    assert inner == {"attention": "flash"}
    assert outer == {"scan": "step", "attention": "flash"}


def test_a_compiled_function_notes_when_it_is_traced_and_not_when_it_runs():
    @jax.jit
    def double(x):
        note("double", "plain")
        return 2 * x

    with noted() as chosen:
        double(jnp.ones(3))
    assert chosen == {"double": "plain"}
    with noted() as again:
        double(jnp.ones(3))
    assert again == {}
